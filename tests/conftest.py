"""Fixtures that several test files share."""

import random
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import permenv  # noqa: F401 - registers the environments
from tests.helpers import REAL_DATA, SMALL

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts that tests start would ignore Ctrl-C as well

torch.set_num_threads(1)  # the tests' networks are so small that a second thread only waits for the first


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep the tests out of the user's cache; a test may set a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERMENV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def global_generators():
    """Give each test the same states of the global random generators, and leave them as they were."""
    python, ours, theirs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.default_generator.manual_seed(0)
    yield
    random.setstate(python)
    np.random.set_state(ours)  # noqa: NPY002
    torch.set_rng_state(theirs)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Give one test a cache of its own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PERMENV_CACHE", str(place))
    return place


@pytest.fixture
def make_env():
    """Return a function that makes `PermShuffle-v0` as small as a test needs it."""
    made: list[gym.Env] = []

    def make(**overrides: Any) -> gym.Env:
        made.append(gym.make("PermShuffle-v0", **{**SMALL, **overrides}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data; without it, the test is skipped and says so."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data in {REAL_DATA}: name its folder in PERMENV_DATA")
    return REAL_DATA
