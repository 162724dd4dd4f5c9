"""Imports go one way, modules stay short, and starting is quick because heavy libraries are imported where needed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT, SMALL

LAYERS = """
permenv.atomic
permenv.torch_state permenv.config permenv.checkpoint permenv.streams permenv.progress permenv.locks permenv.records
permenv.permutations permenv.reward permenv.grouping permenv.augment permenv.schema permenv.distributed permenv.device
permenv.data permenv.batch_norm permenv.saved_run
permenv.heads
permenv.networks
permenv.tasks permenv.training permenv.validation permenv.transfer
permenv.registry permenv.run_schema permenv.minibatches
permenv.memory
permenv.setup
permenv.pretraining
permenv.episode
permenv.render
permenv.window
permenv.env
permenv.wrappers
permenv
agents
experiments.common
experiments
"""
"""Each line is a layer: its modules import modules of the lines above, not of their own line or of the lines below. A
package stands for its modules, which may import one another, but not in a circle. `permenv` stands for the package's
`__init__`, which collects the public names."""

NARROWER = {
    "permenv.checkpoint": {"atomic"},
    "permenv.data": {"locks", "progress"},
    "permenv.heads": set(),
    "permenv.saved_run": {"checkpoint", "config", "schema"},
    "permenv.distributed": {"config"},
    "permenv.device": {"config"},
    "permenv.batch_norm": {"config", "distributed"},
    "permenv.networks": {"config", "heads"},
    "permenv.tasks": {"augment", "config", "data", "heads", "networks", "permutations"},
    "permenv.registry": {"config", "tasks"},
    "permenv.setup": {"config", "device", "memory", "networks", "registry", "tasks"},
    "permenv.training": {"batch_norm", "config", "device", "distributed", "heads", "networks", "schema"},
    "permenv.validation": {"distributed", "heads", "networks", "torch_state"},
    "permenv.minibatches": {"distributed", "streams", "tasks", "training"},
    "permenv.transfer": {"atomic", "augment", "checkpoint", "config", "data", "networks", "progress", "saved_run"},
    "permenv.pretraining": {
        *(
            "checkpoint",
            "config",
            "device",
            "distributed",
            "grouping",
            "minibatches",
            "networks",
            "records",
            "run_schema",
        ),
        *("saved_run", "schema", "setup", "streams", "tasks", "torch_state", "training", "validation"),
    },
    "permenv.episode": {"checkpoint", "config", "pretraining", "records", "reward", "schema"},
    "permenv.render": {"episode", "grouping", "reward", "tasks"},
    "permenv.window": {"config", "episode", "render"},
    "permenv.wrappers": {"config", "env", "grouping", "records", "reward"},
}
"""What the modules of permenv import of it, where that is narrower than their layer."""

MAX_LINES = 450
MAX_LINES_OF_ENV = 350


def modules() -> dict[str, Path]:
    """The modules of the three packages by their dotted names."""
    found = {}
    for package in ("permenv", "agents", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module without what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from nodes_at_run_time(node)


def imports(name: str) -> set[str]:
    """The dotted names of all modules that a module imports anywhere, also inside functions."""
    found = set()
    for node in nodes_at_run_time(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the layers"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in MODULES else str(node.module) for each in submodules}
    return found


def unit_of(module: str) -> str:
    """The unit of `LAYERS` that a module belongs to: the longest name that it begins with."""
    units = [unit for unit in LAYERS.split() if module == unit or module.startswith(f"{unit}.")]
    return max(units, key=len)


OURS = {name: {each for each in imports(name) if each in MODULES} for name in MODULES}
"""By module, the modules of the three packages that it imports."""

LAYER_OF = {unit: number for number, line in enumerate(LAYERS.strip().splitlines()) for unit in line.split()}


# One direction


def test_the_layers_are_those_of_the_code():
    """A new module of permenv must be given a place in the table."""
    assert {name for name in MODULES if name.count(".") == 1 and name.startswith("permenv.")} < LAYER_OF.keys()
    assert LAYER_OF.keys() - {"permenv", "agents", "experiments"} <= MODULES.keys()


def test_contributing_shows_the_layers_and_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"```text{LAYERS}```" in text
    paths = re.findall(r"`((?:permenv|agents|experiments|tests|docs)/[\w/.]*)`", text)
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_lower_layers_only(module):
    unit = unit_of(module)
    for imported in OURS[module]:
        other = unit_of(imported)
        assert other == unit or LAYER_OF[other] < LAYER_OF[unit], f"{module} imports {imported}"


def test_what_experiments_share_imports_down_its_list_only():
    """Each line of the docstring of `experiments.common` is a layer, as in `LAYERS`, the highest first."""
    common = "experiments.common"
    documentation = ast.get_docstring(ast.parse(MODULES[common].read_text()))
    lines = [line.partition(":")[0] for line in documentation.splitlines() if line.startswith("- ")]
    place = {f"{common}.{name}": number for number, line in enumerate(lines) for name in re.findall(r"`(\w+)/?`", line)}
    own = {name: ".".join(name.split(".")[:3]) for name in MODULES if name.startswith(f"{common}.")}
    assert place.keys() == set(own.values())
    for module, part in own.items():
        for other in {own[each] for each in OURS[module] if each in own} - {part}:
            assert place[other] > place[part], f"{module} imports {other}"


@pytest.mark.parametrize("unit", NARROWER)
def test_a_module_of_the_core_imports_no_more_than_it_needs(unit):
    found = {unit_of(each) for name in MODULES if unit_of(name) == unit for each in OURS[name]} - {unit}
    assert found <= {f"permenv.{name}" for name in NARROWER[unit]}


@pytest.mark.parametrize("module", [name for name in MODULES if unit_of(name) == "agents"])
def test_an_agent_imports_of_permenv_what_knows_no_environment(module):
    known = {"agents", *(f"permenv.{name}" for name in ("checkpoint", "config", "grouping", "schema"))}
    if module.startswith("agents.sb3"):
        known |= {"permenv", "permenv.wrappers"}
    assert {unit_of(each) for each in OURS[module]} <= known


def test_no_modules_import_one_another_in_a_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in sorted(OURS[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        *(
            (f"permenv.{name}", {"gymnasium"})
            for name in ("tasks", "training", "pretraining", "episode", "render", "window")
        ),
        *((f"permenv.{name}", {"gymnasium"}) for name in ("validation", "transfer.retrieval", "checkpoint")),
        ("permenv.torch_state", {"gymnasium", "numpy"}),
        ("permenv.reward", {"gymnasium", "numpy", "torch"}),
        ("permenv.records", {"gymnasium", "torch"}),
        ("permenv.permutations", {"gymnasium", "torch"}),
        ("permenv.grouping", {"gymnasium", "torch"}),
        ("permenv.streams", {"gymnasium", "torch"}),
        ("permenv.env", {"matplotlib", "sklearn", "cv2"}),
    ],
)
def test_a_module_does_without_these_libraries(module, libraries):
    assert not libraries & {each.split(".")[0] for each in imports(module)}


def test_matplotlib_is_imported_by_pictures_only():
    users = {name for name in MODULES if any(each.split(".")[0] == "matplotlib" for each in imports(name))}
    assert {name for name in users if name.startswith("permenv")} == {
        "permenv.render",
        "permenv.window",
        "permenv.transfer.pictures",
    }
    assert not any(name.startswith("agents") for name in users)


# Short modules


def lines_of_code(source: str) -> int:
    """Lines that are not blank, a comment or part of a docstring."""
    tree, counted = ast.parse(source), set()
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings |= set(range(first.lineno, first.end_lineno + 1))
    for number, line in enumerate(source.splitlines(), start=1):
        if line.strip() and not line.strip().startswith("#") and number not in docstrings:
            counted.add(number)
    return len(counted)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_more_than_450_lines_of_code(module):
    assert lines_of_code(MODULES[module].read_text()) <= MAX_LINES


def test_the_environment_is_short_beside_its_documentation():
    source = MODULES["permenv.env"].read_text()
    (environment,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    documentation = environment.body[0]
    length = len(source.splitlines()) - (documentation.end_lineno - documentation.lineno + 1)
    assert length <= MAX_LINES_OF_ENV


def test_lines_of_code_are_counted_without_docstrings_comments_and_blank_lines():
    function = 'def f():\n    """Doc."""\n    text = """\n    two\n    """\n'
    source = '"""A\n\nmodule."""\n\n# comment\nx = 1  # counted\n\n\n' + function
    assert lines_of_code(source) == 5


# Quick starts

HEAVY = ("sklearn", "cv2", "matplotlib", "tensorboard", "stable_baselines3", "scipy", "timm", "torchvision", "pandas")
COMPILERS = ("torch._dynamo", "torch._inductor", "sympy")

START = """
import json, sys

def imported():
    return [name for name in {names} if name in sys.modules]

import permenv
after_import = imported()

import gymnasium as gym
env = gym.make("PermShuffle-v0", **{numbers})
env.reset(seed=0)
for _ in range(4):
    *_, info = env.step(0)
assert info["iteration"] == 1
print(json.dumps([after_import, imported()]))
"""


@pytest.fixture(scope="module")
def started():
    """The heavy modules that a fresh process has imported after `import permenv`, and after its first iteration."""
    script = START.format(names=(*HEAVY, *COMPILERS), numbers=SMALL)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return [set(names) for names in ast.literal_eval(result.stdout)]


def test_importing_permenv_imports_no_heavy_library(started):
    assert started[0] == set()


def test_a_first_iteration_needs_neither_torchs_compiler_nor_matplotlib(started):
    assert not started[1] & {*COMPILERS, "matplotlib", "tensorboard", "stable_baselines3", "timm", "torchvision"}
    assert "sklearn" in started[1]  # for the groups: so the test sees what is imported


@pytest.mark.parametrize("module", ["tqdm", "cv2", "sklearn", "matplotlib", "timm", "PIL", "simplejpeg"])
def test_permenv_imports_this_library_inside_functions_only(module):
    """`import permenv` cannot show it of tqdm, which torch imports itself."""
    for name, path in MODULES.items():
        if name.startswith("permenv") and name not in ("permenv.render", "permenv.window"):
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert module not in {each.split(".")[0] for each in names}, name
