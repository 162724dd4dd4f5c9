"""The wheel and the source distribution are complete: each works in a new environment, away from the checkout."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.helpers import ROOT, SMALL

pytestmark = pytest.mark.ci

PACKAGES = {"permenv", "agents", "experiments"}

SMOKE = """
import importlib.metadata, importlib.util, pathlib, sys

import agents
import experiments.common.files
import gymnasium as gym
import permenv

for package in (agents, experiments, permenv):
    assert pathlib.Path(package.__file__).is_relative_to(sys.prefix), package.__file__
for package in (agents, permenv):
    assert pathlib.Path(package.__file__).with_name("py.typed").is_file(), package
assert importlib.metadata.version("permenv") == {version!r}
assert importlib.util.find_spec("tests") is None
env = gym.make("PermShuffle-v0", **{numbers})
last = agents.rollout(env, agents.make("reinforce", env, seed=0), seed=0, updates=1)
assert last.info["update"] == 1
"""


def run(*command, cwd):
    """Run a command; if it fails, so does the test, with what the command has said."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.fixture(scope="module")
def version():
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both from a copy of the checkout, without the network; the folder they are in."""
    pytest.importorskip("build", reason="pip install -e '.[dev]'")
    source, target = tmp_path_factory.mktemp("source") / "permenv", tmp_path_factory.mktemp("dist")
    leave_out = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave_out)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", target, cwd=source)
    return target


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_it_works_in_a_new_environment(built, version, tmp_path, pattern):
    (package,) = built.glob(pattern)
    place, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=empty)
    (site,) = place.glob("[Ll]ib/**/site-packages")
    # nothing but the package itself is installed: the libraries are those of this environment, and the line that says
    # so names no editable installation
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", site)
    run(sys.executable, "-m", "pip", "install", *options, package, cwd=empty)
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    (python,) = (place / folder / "python" for folder in ("bin", "Scripts") if (place / folder).is_dir())
    run(python, "-I", "-c", SMOKE.format(version=version, numbers=SMALL), cwd=empty)


def test_the_wheel_holds_the_packages_and_nothing_else(built, version):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [PurePosixPath(name) for name in file.namelist()]
    assert {name.parts[0] for name in names} == {*PACKAGES, f"permenv-{version}.dist-info"}
    inside = {str(name) for name in names if name.parts[0] in PACKAGES}
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert inside == {*modules, "permenv/py.typed", "agents/py.typed"}


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built, version):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = [PurePosixPath(name).relative_to(f"permenv-{version}") for name in file.getnames()]
    tops = {name.parts[0] for name in names if name.parts}
    metadata = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "PKG-INFO", "setup.cfg", "permenv.egg-info"}
    assert tops == {*PACKAGES, *metadata}
