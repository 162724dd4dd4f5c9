"""The documentation: its code runs, its commands parse, its site builds, and README is a page of a minute."""

import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from experiments.common.options import parse
from permenv.wrappers import MixtureAction
from tests.documentation import blocks, pages
from tests.helpers import ROOT

TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
SCRIPT = re.compile(r"(?:^|&& )(?:[A-Z_]+=\S+ )*(?:python|torchrun --nproc-per-node \d+) (experiments/.*)")
COMMANDS = [
    (str(path.relative_to(ROOT)), command)
    for path in TEXTS
    for block in blocks(path, "bash")
    for line in block.splitlines()
    for command in SCRIPT.findall(line)
]


def test_every_page_of_the_documentation_has_been_found():
    assert len(pages()) > 10
    assert len(COMMANDS) > 10
    lines = [line for path in TEXTS for block in blocks(path, "bash") for line in block.splitlines()]
    assert len(COMMANDS) == sum(".py" in line and "experiments/" in line for line in lines)


@pytest.mark.ci
@pytest.mark.parametrize("page", pages())
def test_the_code_of_a_page_runs(page, tmp_path):
    """In a process of its own, since a reader's code registers tasks and imports other libraries."""
    if page.endswith("other-library.md"):
        pytest.importorskip("skrl", reason="the extra dev has it")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.documentation", page],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_reward_of_the_tutorial_takes_a_divergence_for_the_worst_outcome(make_env):
    code, _ = blocks(ROOT / "docs" / "tutorials" / "reward.md", "python")[0].split("\n\nenv = ")
    namespace = {}
    exec(code, namespace)
    env = namespace["WorstPermutations"](MixtureAction(make_env(free_iterations=0, learning_rate=1e12)))
    env.reset(seed=0)
    env.accuracy = 0.25  # as after some training
    _, reward, terminated, _, info = env.step(env.action_space.sample())
    assert terminated
    assert info["diverged"]
    assert reward == -0.25  # no update can lose more


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_command_of_the_documentation_parses(page, command, tmp_path, monkeypatch):
    script, *arguments = shlex.split(command, comments=True)
    for name in re.findall(r"mine:(\w+)", command):  # the reader's
        own = f"import agents\n\nclass {name}(agents.Agent):\n    def __init__(self, *spaces, seed, group=0): ...\n"
        (tmp_path / "mine.py").write_text(own)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "mine", None)  # which forgets this module after the test
        del sys.modules["mine"]
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    config = parse(module.Config, arguments=arguments)
    if page.startswith("docs/tutorials"):  # of what a reader tries out, nothing replaces a committed result
        assert "experiments/results" not in str(config.out)


@pytest.mark.ci
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs has it")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "excluded from the built site" not in done.stderr, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_readme_is_read_in_a_minute_or_two():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


MESSAGES = re.findall(r"^`(.+)`\n:", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_a_message_is_explained_once():
    assert len(MESSAGES) == len(set(MESSAGES)) > 10


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_is_one_of_ours(message):
    sources = [path for package in ("permenv", "agents", "experiments") for path in (ROOT / package).rglob("*.py")]
    assert any(message in path.read_text(encoding="utf-8") for path in sources)
