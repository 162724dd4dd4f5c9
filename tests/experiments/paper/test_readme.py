"""The page of the paper: it has every item, its commands are those that run, and what it names and links exists."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments.common.evaluation.paper_numbers import PAPER
from experiments.common.evaluation.protocols import PROTOCOLS
from experiments.common.options import parse
from experiments.paper import all as everything
from tests.documentation import blocks
from tests.helpers import ROOT

PAGE = ROOT / "experiments" / "paper" / "README.md"
RESULTS = Path("experiments/results")
TEXT = PAGE.read_text(encoding="utf-8")
NOT_RUN = "not run yet"


def sections_of(text):
    """The text below each heading, by its words."""
    _, *found = re.split(r"^#{1,3} (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def rows_of(text, columns):
    """The rows of a table, below its head."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return [dict(zip(columns, each, strict=True)) for each in cells[1:]]


SECTIONS = sections_of(TEXT)
INDEX = rows_of(SECTIONS["Index"], ("link", "what", "name", "ours", "n"))
EQUATIONS = rows_of(SECTIONS["Equations"], ("item", "what", "here", "test"))
RUN = [{**row, "item": row["link"].partition("]")[0].strip("[")} for row in INDEX]
NAMES = [row["item"] for row in RUN]

ITEMS = [
    *(f"Table {name}" for name in ("1", "2", "3", "4", "5", "F.1")),
    *(f"Figure {number}" for number in range(1, 7)),
    *(f"Figure {name}" for name in ("C.1", "D.1", "E.1", "G.1", "G.2", "H.1", "I.1", "I.2", "I.3")),
    *(f"Equation {number}" for number in range(1, 11)),
    "Algorithm 1",
    *(f"Equation {name}" for name in ("E.1", "E.2", "H.3", "H.4", "H.5")),
]
"""All tables, figures and equations of the paper and its appendix."""


def anchor_of(heading):
    """The name of a heading in a link."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


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


def code_of(item):
    """Where an item is in the code, as its section or its row says."""
    if item in SECTIONS:
        (place,) = re.findall(r"In the code:\s`([^`]+)`", SECTIONS[item])
        return place
    (row,) = (row for row in EQUATIONS if row["item"] == item)
    return row["here"].strip("`")


def command_of(item):
    """The command of an item's section."""
    (command,) = re.findall(r"^```bash\n(.+)\n```$", SECTIONS[item], re.MULTILINE)
    return command


def options_of(command):
    """What the command's script makes of its arguments."""
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return parse(module.Config, arguments=arguments)


def test_every_item_of_the_paper_has_its_row():
    assert NAMES + [row["item"] for row in EQUATIONS] == ITEMS


@pytest.mark.parametrize("row", RUN, ids=NAMES)
def test_its_row_leads_to_its_section(row):
    assert row["item"] in SECTIONS
    assert row["link"] == f"[{row['item']}](#{anchor_of(row['item'])})"


@pytest.mark.parametrize("item", ITEMS)
def test_what_it_names_is_there(item):
    path, name = code_of(item).split(": ")
    assert name in names_defined(ROOT / path)


def test_files_that_are_named_exist():
    named = set(re.findall(r"(?:permenv|agents|experiments|tests)/[\w./-]+\.\w+", TEXT))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_links_lead_to_files_and_headings():
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXT)
    assert len(links) > 20
    for target, anchor in links:
        file = (PAGE.parent / target).resolve() if target else PAGE
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{target}#{anchor}"


def test_pictures_have_words_in_their_place():
    pictures = re.findall(r"!\[(.*)\]\(", TEXT)
    assert len(pictures) > 4
    assert all(len(words.split()) > 4 for words in pictures)


@pytest.mark.parametrize("row", RUN, ids=NAMES)
def test_its_command_is_that_of_its_name(row):
    command = everything.COMMANDS[row["name"].strip("`")]
    assert command_of(row["item"]) == f"python {command}"


def test_no_command_is_without_an_item():
    beside_another = {"imagenette", "table_f1_learned"}  # trains networks for figures; another policy's Table F.1
    assert {row["name"].strip("`") for row in RUN} == everything.COMMANDS.keys() - beside_another
    assert len(blocks(PAGE, "bash")) == len(RUN)


@pytest.mark.parametrize("row", RUN, ids=NAMES)
def test_its_command_parses_and_says_how_many_seeds(row):
    config = options_of(command_of(row["item"]))
    if hasattr(config, "seeds") and row["n"] != "1":
        assert row["n"] == str(config.seeds)


@pytest.mark.parametrize("row", RUN, ids=NAMES)
def test_it_says_whether_a_result_is_committed(row):
    """And shows the picture, where one is."""
    out, section = getattr(options_of(command_of(row["item"])), "out", None), SECTIONS[row["item"]]
    if isinstance(out, Path) and out.parent == RESULTS:
        there = any((ROOT / out.with_suffix(suffix)).is_file() for suffix in (".json", ".png"))
        assert (row["ours"] == NOT_RUN) != there
        assert (NOT_RUN in " ".join(section.split())) != there
        picture = out.with_suffix(".png")
        assert (f"](../results/{picture.name})" in section) == (ROOT / picture).is_file()


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_figures_are_in_the_section_of_its_table(name):
    section = SECTIONS[re.match(r"Table \d", PROTOCOLS[name].table)[0]]
    for data, networks in PAPER[name].items():
        for network, figures in networks.items():
            assert f" {figures[PROTOCOLS[name].metric]:.1f} |" in section, (data, network)


def test_no_cell_holds_a_paragraph():
    cells = [cell.strip() for line in TEXT.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    assert max(map(len, cells)) <= 120
