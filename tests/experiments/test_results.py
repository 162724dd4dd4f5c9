"""Every file in the results has a command, and the command's script writes it."""

import ast
import re
from collections import Counter

import pytest

from tests.helpers import ROOT

RESULTS = ROOT / "experiments" / "results"
ROW = re.compile(r"\| `(?P<file>[^`]+)` \| `(?P<command>python (?P<script>experiments/\S+\.py)[^`]*)` \|")
TABLE = [row.groupdict() for row in map(ROW.fullmatch, (RESULTS / "README.md").read_text().splitlines()) if row]


def names_in(script):
    """Return patterns of the file names in a script's strings; whatever is filled in is `.+`."""
    patterns = set()
    for node in ast.walk(ast.parse(script.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
            texts = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
            if max(len(text or "") for text in texts) > 4:  # a name is not filled in altogether
                patterns.add("".join(".+" if text is None else re.escape(text.split("/")[-1]) for text in texts))
    return patterns


def test_every_file_is_listed_once_and_no_other():
    listed = Counter(row["file"] for row in TABLE)
    assert listed == Counter(path.name for path in RESULTS.iterdir() if path.name != "README.md")


@pytest.mark.parametrize("row", TABLE, ids=[row["file"] for row in TABLE])
def test_the_script_of_its_command_writes_the_file(row):
    script = ROOT / row["script"]
    assert script.is_file()
    file = row["file"]
    stem = file.rsplit(".", 1)[0]  # scripts that write several kinds name the stem
    in_command = row["command"].split("/")[-1] in (file, stem)
    assert in_command or any(re.fullmatch(name, each) for name in names_in(script) for each in (file, stem))


def test_every_named_run_of_the_main_job_exists():
    from experiments.studies.main_runs import RUNS

    named = {
        name for row in TABLE for name in re.findall(r"--runs (\S+)", row["command"]) if "main_runs" in row["script"]
    }
    assert named == set(RUNS)
    written = [name for run in RUNS.values() for name in (run.summary, *run.pictures.values())]
    assert sorted(written) == sorted(row["file"] for row in TABLE if "main_runs" in row["script"])
