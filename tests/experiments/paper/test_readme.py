"""The page of the paper: it has every row, its commands parse, and what it names exists."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments.common.options import parse
from experiments.paper import all as everything
from tests.helpers import ROOT

TEXT = (ROOT / "experiments" / "paper" / "README.md").read_text(encoding="utf-8")
COLUMNS = {
    8: ("item", "what", "here", "command", "paper", "ours", "n", "difference"),
    4: ("item", "what", "here", "test"),
}
ROWS = [
    dict(zip(COLUMNS[len(cells)], cells, strict=True))
    for cells in (
        [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")
    )
    if cells[0] != "item"
]
RUN = [row for row in ROWS if "command" in row]
NOT_RUN = "not run yet"

ITEMS = [
    *(f"Table {name}" for name in ("1", "2", "3", "4", "5", "F.1")),
    *(f"Figure {number}" for number in range(1, 7)),
    *(f"Figure {name}" for name in ("C.1", "D.1", "E.1", "G.1", "G.2", "H.1", "I.1", "I.2", "I.3")),
    *(f"Equation {number}" for number in range(1, 11)),
    "Algorithm 1",
    *(f"Equation {name}" for name in ("E.1", "E.2", "H.3", "H.4", "H.5")),
]
"""All tables, figures and equations of the paper and its appendix."""


def names_defined(path):
    """The functions, classes and constants at the top of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def options_of(command):
    """What the command's script makes of its arguments."""
    python, script, *arguments = shlex.split(command.strip("`"))
    assert python == "python"
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return parse(module.Config, arguments=arguments)


def test_every_item_of_the_paper_has_its_row():
    assert [row["item"] for row in ROWS] == ITEMS


@pytest.mark.parametrize("row", ROWS, ids=[row["item"] for row in ROWS])
def test_what_it_names_is_there(row):
    path, name = row["here"].strip("`").split(": ")
    assert name in names_defined(ROOT / path)


def test_files_that_are_named_exist():
    named = set(re.findall(r"(?:permenv|agents|experiments|tests)/[\w./-]+\.\w+", TEXT))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("row", RUN, ids=[row["item"] for row in RUN])
def test_its_command_parses_and_says_how_many_seeds(row):
    config = options_of(row["command"])
    if hasattr(config, "seeds") and row["n"] != "1":
        assert row["n"].split(",")[0] == str(config.seeds)


def test_one_command_runs_them_all():
    commands = {f"python {command}" for command in everything.COMMANDS.values()}
    trained_first = {f"python {everything.COMMANDS['imagenette']}"}
    assert {row["command"].strip("`") for row in RUN} == commands - trained_first


@pytest.mark.parametrize("row", RUN, ids=[row["item"] for row in RUN])
def test_it_says_whether_a_result_is_committed(row):
    out = getattr(options_of(row["command"]), "out", None)
    if isinstance(out, Path) and out.parent == Path("experiments/results"):
        there = any((ROOT / out.with_suffix(suffix)).is_file() for suffix in (".json", ".png"))
        assert (row["ours"] == NOT_RUN) != there
