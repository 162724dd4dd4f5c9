"""A disk that is full after a random number of bytes: one line says so, and with room every script goes on to its end.

`pytest -m long tests/experiments/test_full_disk.py -s` tries 200 sizes, or PERMENV_FILLS sizes, and prints a table.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.helpers import write_photos
from tests.experiments.test_kills import ENTRIES, Entry, Warm, contents, start_or_resume, warm
from tests.helpers import ROOT

__all__ = ["warm"]  # a fixture

FAILURES = ("lost", "different", "leftovers", "tracebacks", "wordless")
PAGE = 4096


class Disk:
    """A file system of a given size in a folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def resize(self, size: int) -> None:
        """Give it another size."""
        self._run("mount", "-o", f"remount,size={size}", str(self._folder))

    @classmethod
    @contextmanager
    def of(cls, folder: Path, size: int) -> Iterator["Disk"]:
        """Mount an empty one; a test is skipped where that is not allowed."""
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
        try:
            yield cls(folder)
        finally:
            cls._run("umount", str(folder))

    @staticmethod
    def _run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)


pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked from a process that is warm"),
    pytest.mark.skipif(shutil.which("mount") is None, reason="there is no command to mount a file system"),
]


def fill_often(warm: Warm, entry: Entry, folder: Path, fills: int, seed: int) -> Counter:
    """Let a run meet a full disk so many times; compare what it leaves with a run that had room."""
    rng = random.Random(seed)
    for name in ("first", "whole"):  # the first may have to render data
        assert warm.wait(warm.start(entry, folder / name)) == 0, (folder / f"{name}.log").read_text()
    whole = contents(folder / "whole")
    pages = sum(-(-path.stat().st_size // PAGE) for path in (folder / "whole").rglob("*") if path.is_file())
    table = Counter({"fills": 0, **dict.fromkeys(FAILURES, 0)})
    tries = 0
    while table["fills"] < fills:
        place = folder / f"full-{tries}"
        tries += 1
        with Disk.of(place, PAGE * rng.randint(1, pages)) as disk:
            code = warm.wait(start_or_resume(warm, entry, place, rng))
            if code == 0:  # it had room enough
                continue
            table["fills"] += 1
            said = place.with_suffix(".log").read_text()
            table["tracebacks"] += "Traceback" in said
            lines = [line for line in said.splitlines() if "error:" in line]
            table["wordless"] += code != 1 or len(lines) != 1 or "No space left" not in lines[0]
            disk.resize(2**30)
            code = warm.wait(start_or_resume(warm, entry, place, rng))
            if code != 0:
                print(place.with_suffix(".log").read_text())
                table["lost"] += 1
                continue
            found = contents(place)
            table["different"] += found["numbers"] != whole["numbers"]
            table["leftovers"] += found["files"] != whole["files"]
    return table


@pytest.mark.ci
@pytest.mark.parametrize("name", ["reinforce.py, spatial", "sb3.py, ppo", "across_runs.py", "leaderboard.py"])
def test_a_run_that_met_a_full_disk_is_continued_to_the_same_end(warm, tmp_path, name):
    table = fill_often(warm, ENTRIES[name], tmp_path, fills=3, seed=0)
    assert table == Counter({"fills": 3, **dict.fromkeys(FAILURES, 0)})


@pytest.mark.ci
def test_features_that_met_a_full_disk_leave_nothing_and_are_written_when_there_is_room(tmp_path):
    write_photos(tmp_path / "photos")
    place = tmp_path / "disk"
    command = [
        *(sys.executable, "experiments/extract.py", "random", "--backbone", "two-convolutions", "--device", "cpu"),
        *("--images", str(tmp_path / "photos"), "--out", str(place / "features")),
    ]
    options = {"cwd": ROOT, "env": {**os.environ, "PERMENV_CACHE": str(tmp_path / "cache")}, "check": False}
    with Disk.of(place, 3 * PAGE) as disk:  # for the header and a part of the rows
        done = subprocess.run(command, capture_output=True, text=True, **options)
        assert done.returncode == 1, "no signal has ended it"
        assert "No space left" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not list(place.iterdir())
        disk.resize(2**30)
        assert subprocess.run(command, capture_output=True, **options).returncode == 0
        assert len(np.load(place / "features.npy")) == 36


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_full_disks(warm, tmp_path, capsys):
    fills, totals = int(os.environ.get("PERMENV_FILLS", "200")), Counter()
    columns = ("fills", *FAILURES)
    with capsys.disabled():
        print("\n| script | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|")
    for place, (name, entry) in enumerate(ENTRIES.items()):
        (tmp_path / str(place)).mkdir()
        row = fill_often(warm, entry, tmp_path / str(place), (fills + place) // len(ENTRIES), seed=1 + place)
        totals += row
        with capsys.disabled():
            print(f"| {name} | " + " | ".join(str(row[each]) for each in columns) + " |", flush=True)
    assert totals == Counter(fills=fills)
