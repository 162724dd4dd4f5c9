"""Fixtures that the tests of the figures share."""

import gymnasium as gym
import pytest

from tests.helpers import SMALL


@pytest.fixture
def make_small_env():
    """Return a function that makes the environment with the numbers of `SMALL`."""
    return lambda **changes: gym.make("PermShuffle-v0", **{**SMALL, **changes})
