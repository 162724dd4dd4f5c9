"""Every file in the results has a command, which its script understands and with which it writes the file."""

import ast
import importlib
import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from experiments.common.files import with_ending
from experiments.common.options import parse
from experiments.common.training.run_folder import CHECKPOINT
from experiments.studies.main_runs import RUNS
from tests.helpers import ROOT

RESULTS = ROOT / "experiments" / "results"
ROW = re.compile(r"\| (?P<files>`[^|]+`) \| `(?P<command>python experiments/[^`]+)` \|")
TABLE = [
    (re.findall(r"`([^`]+)`", row["files"]), row["command"])
    for row in map(ROW.fullmatch, (RESULTS / "README.md").read_text().splitlines())
    if row
]


def endings(script):
    """Return what the script appends to the name of its `--out`."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "with_ending":
                found.add(node.args[1].value)
            elif node.func.id == "publish":
                found |= {".json"} if len(node.args) == 3 else {".json", ".png"}
    return found


def written_by(command):
    """Return the files that a command writes; its options are parsed, and nothing is run."""
    words = shlex.split(command)
    if "&&" in words:
        split = words.index("&&")
        words, (copy, source, copied) = words[:split], words[split + 1 :]
        options = options_of(words)
        assert (copy, Path(source)) == ("cp", options.folder / CHECKPOINT)
        return {Path(copied)}
    options = options_of(words)
    if "main_runs" in words[1]:
        return {
            options.out / name for run in options.only for name in (RUNS[run].summary, *RUNS[run].pictures.values())
        }
    out = getattr(options, "file", options.out)
    return {out} | {with_ending(out, ending) for ending in endings(ROOT / words[1])}


def options_of(words):
    python, script, *arguments = words
    assert python == "python"
    assert (ROOT / script).is_file()
    return parse(importlib.import_module(script.removesuffix(".py").replace("/", ".")).Config, arguments=arguments)


def test_every_file_is_listed_once_and_no_other():
    listed = Counter(itertools.chain.from_iterable(files for files, _ in TABLE))
    assert listed == Counter(path.name for path in RESULTS.iterdir() if path.name != "README.md")


@pytest.mark.parametrize(("files", "command"), TABLE, ids=[files[0] for files, _ in TABLE])
def test_the_command_writes_the_files(files, command):
    assert {RESULTS / file for file in files} <= {ROOT / path for path in written_by(command)}


TUNING = ("nano", "nano-rates", "curricula", "curricula-2400", "within-run", "tuning-imagenette", "rates-imagenette")
"""Results that something was chosen by."""


def seeds_of(command):
    options = options_of(shlex.split(command.split(" && ")[0]))
    first = getattr(options, "first_seed", getattr(options, "seed", 0))
    return {*range(first, first + getattr(options, "seeds", 1))}


def test_no_result_is_of_a_seed_on_which_something_was_chosen():
    searched = {*range(50, 100)}  # those of `experiments/search.py`
    tuned = set.union(*(seeds_of(command) for (file, *_), command in TABLE if Path(file).stem in TUNING))
    for (file, *_), command in TABLE:
        assert not seeds_of(command) & searched, command
        if Path(file).stem not in TUNING:
            assert not seeds_of(command) & tuned, command


def test_every_named_run_of_the_main_job_exists():
    named = [name for _, command in TABLE if "main_runs" in command for name in re.findall(r"--only (\S+)", command)]
    assert sorted(named) == sorted(RUNS)
