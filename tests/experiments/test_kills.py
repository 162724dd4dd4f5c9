"""Killed at random instants, every script continues to what an uninterrupted run leaves behind.

`pytest -m long tests/experiments/test_kills.py -s` kills a thousand times, or PERMENV_KILLS times, and prints a table.
"""

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.common.training.run_folder import CHECKPOINT, LOCK
from permenv import checkpoint
from tests.experiments.helpers import arguments
from tests.helpers import PARTS, ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked from a process that is warm")

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FAILURES = ("lost", "different", "leftovers", "tracebacks", "hangs")
LONGEST = 10.0
"""Seconds within which a signal must end a process."""
CHAIN = 4
"""Kills of one run at most; each but the first is of a run that was resumed."""


@dataclass(frozen=True)
class Entry:
    """A script and its arguments."""

    script: str
    arguments: tuple[str, ...] = ()

    @property
    def is_sweep(self) -> bool:
        return self.script in ("leaderboard", "search")


ENTRIES = {
    **{f"reinforce.py, {task}": Entry("reinforce", ("--task", task)) for task in PARTS},
    "reinforce.py, --compare-random": Entry("reinforce", ("--compare-random",)),
    **{f"sb3.py, {name}": Entry("sb3", ("--algorithm", name)) for name in ("ppo", "a2c", "dqn", "sac")},
    "across_runs.py": Entry("across_runs", ("--episodes=6", "--episodes-per-update=2", "--processes=0")),
    "leaderboard.py": Entry("leaderboard", ("--agents", "exp3", "random", "--seeds=2", "--processes=0")),
    "search.py": Entry("search", ("--vary", "env.learning-rate", "0.01", "0.02", "--seeds=2", "--processes=0")),
}


class Warm:
    """The process of `tests.experiments.warm`."""

    def __init__(self) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        one_thread["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # of pyarrow, which pandas imports
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.experiments.warm"],
            cwd=ROOT,
            env={**os.environ, **one_thread},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def start(self, entry: Entry, folder: Path, resume: bool = False) -> int:
        """Start a script whose files go to a folder; return the id of its process."""
        own = (
            {"runs": str(folder / "runs"), "out": str(folder / "board")}
            if entry.is_sweep
            else {
                "out": str(folder),
                "resume": resume,
            }
        )
        words = ("--device=cpu", *arguments(num_scenes=60, fc6=8, fc7=16, total_updates=4), *entry.arguments)
        return self._ask(
            {"script": entry.script, "arguments": words, "changes": own, "log": str(folder.with_suffix(".log"))}
        )

    def wait(self, process: int) -> int:
        """Return the exit code of a process, when it has ended."""
        return self._ask({"wait": process})

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _ask(self, order: dict[str, Any]) -> int:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


def kill_often(warm: Warm, entry: Entry, folder: Path, kills: int, seed: int) -> dict[str, Counter]:
    """Kill runs until so many kills have hit one; compare what they leave when they were resumed to their ends.

    Returns:
        By signal, the kills and the failures of each kind; of a run that was killed several times at its last kill.
    """
    rng = random.Random(seed)
    for name in ("first", "whole"):  # the first may have to render data
        start = time.perf_counter()
        assert warm.wait(warm.start(entry, folder / name)) == 0, (folder / f"{name}.log").read_text()
        seconds = time.perf_counter() - start
    whole = contents(folder / "whole")
    assert contents(folder / "first") == whole
    table = {each.name: Counter({"kills": 0, **dict.fromkeys(FAILURES, 0)}) for each in SIGNALS}
    hits = 0
    while hits < kills:
        place = folder / f"killed-{hits}"
        last = None
        while last is None or hits < kills:
            number = SIGNALS[hits % len(SIGNALS)]
            process = start_or_resume(warm, entry, place, rng)
            time.sleep(rng.uniform(0, seconds))
            os.kill(process, number)
            killed = time.perf_counter()
            code = warm.wait(process)
            if code == 0:  # it had ended
                break
            last = number.name
            table[last]["kills"] += 1
            table[last]["hangs"] += time.perf_counter() - killed > LONGEST
            hits += 1
            said = place.with_suffix(".log").read_text()
            table[last]["tracebacks"] += "Traceback" in said or code not in (-number, 128 + number)
            if hits % CHAIN == 0:
                break
        if last is None:
            continue
        code = warm.wait(start_or_resume(warm, entry, place, rng))
        if code != 0:
            print(place.with_suffix(".log").read_text())
            table[last]["lost"] += 1
            continue
        found = contents(place)
        table[last]["different"] += found["numbers"] != whole["numbers"]
        table[last]["leftovers"] += found["files"] != whole["files"]
    return table


def start_or_resume(warm: Warm, entry: Entry, folder: Path, rng: random.Random) -> int:
    """Start a script as its messages say: a run without a checkpoint begins again either way."""
    begun = (folder / LOCK).exists()
    return warm.start(entry, folder, (folder / CHECKPOINT).exists() or (begun and rng.random() < 0.5))


def contents(folder: Path) -> dict[str, Any]:
    """Return the names of a finished run's files, and all numbers in them that are no times."""
    names = Counter(
        "tensorboard" if path.name.startswith("events.") else str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
    )
    numbers: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.name == "metrics.csv":
            with path.open() as file:
                numbers[name] = [without_times(row) for row in csv.DictReader(file)]
        elif path.name == CHECKPOINT:
            numbers[name] = without_times(checkpoint.read(path))
        elif path.name == "summary.json":
            numbers[name] = json.loads(path.read_text())["tasks"]
        elif path.parent.name == "runs":
            numbers[name] = without_times(json.loads(path.read_text())["result"]) if path.suffix == ".json" else None
    return {"files": names, "numbers": numbers}


TIMES = ("seconds", "policy", "validation", "grouping", "cost", "out", "resume")
"""What differs between two runs of the same options: times, and where they are."""


def without_times(tree: Any) -> Any:
    """Return a tree with digests instead of tensors, and without `TIMES`."""
    if isinstance(tree, dict):
        return {name: without_times(value) for name, value in tree.items() if name not in TIMES or not _is_leaf(value)}
    if isinstance(tree, list | tuple):
        return [without_times(value) for value in tree]
    if isinstance(tree, torch.Tensor):
        tree = tree.numpy()
    if isinstance(tree, np.ndarray):
        return f"{tree.dtype} {tree.shape} {hashlib.sha256(np.ascontiguousarray(tree)).hexdigest()}"
    return tree


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, dict | list)


def failures(table: dict[str, Counter]) -> dict[str, int]:
    """Return the number of failures of each kind."""
    return {kind: sum(row[kind] for row in table.values()) for kind in FAILURES}


@pytest.mark.ci
@pytest.mark.parametrize("name", ENTRIES)
def test_a_killed_run_is_continued_to_the_same_end(warm, tmp_path, name):
    table = kill_often(warm, ENTRIES[name], tmp_path, kills=4, seed=0)
    assert sum(row["kills"] for row in table.values()) == 4
    assert not any(failures(table).values()), table


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_thousand_kills(warm, tmp_path, capsys):
    kills, totals = int(os.environ.get("PERMENV_KILLS", "1000")), Counter()
    columns = ("kills", *FAILURES)
    with capsys.disabled():
        print("\n| script | signal | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
    for place, (name, entry) in enumerate(ENTRIES.items()):
        (tmp_path / str(place)).mkdir()
        table = kill_often(warm, entry, tmp_path / str(place), (kills + place) // len(ENTRIES), seed=1 + place)
        for number, row in table.items():
            totals += row
            with capsys.disabled():
                print(f"| {name} | {number} | " + " | ".join(str(row[each]) for each in columns) + " |", flush=True)
    assert totals == Counter(kills=kills)
