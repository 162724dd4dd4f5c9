"""Fixtures that the tests of the figures share."""

import gymnasium as gym
import pytest
from matplotlib.figure import Figure

from tests.helpers import SMALL


@pytest.fixture
def make_small_env():
    """Return a function that makes the environment with the numbers of `SMALL`."""
    return lambda **changes: gym.make("PermShuffle-v0", **{**SMALL, **changes})


@pytest.fixture
def saved_figure(monkeypatch):
    """Return a function that returns the one figure that was saved, whose file must be there."""
    figures, savefig = [], Figure.savefig

    def save(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    def one(path):
        assert path.stat().st_size > 0
        (figure,) = figures
        return figure

    monkeypatch.setattr(Figure, "savefig", save)
    return one
