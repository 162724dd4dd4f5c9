"""Streams of random numbers: each draw of a run has a generator of its own, keyed by what it decides.

A generator depends on (seed, purpose, iteration, task) and on nothing that was drawn before. So a draw can be made
ahead of time, by another thread or process, or not at all, and all other draws stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np


class Purpose(IntEnum):
    """What is drawn. The numbers enter the keys: a trajectory stays the same only as long as they do."""

    WEIGHTS = 0
    VALIDATION_SET = 1
    LABELS = 2
    SAMPLES = 3
    AUGMENTATION = 4
    GROUPS = 5


def stream(seed: int, purpose: Purpose, iteration: int = 0, task: int = 0) -> np.random.Generator:
    """Make the generator of one draw.

    Args:
        seed: Of the run, at least 0.
        purpose: What is drawn.
        iteration: SGD iterations before it.
        task: Number of the ordering task within the run.

    Returns:
        A new generator, independent of those of all other keys.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, iteration, task)))


def restored(state: Mapping[str, Any]) -> np.random.Generator:
    """Make a generator that continues from `generator.bit_generator.state`."""
    bit_generator = getattr(np.random, state["bit_generator"])()
    bit_generator.state = state
    return np.random.Generator(bit_generator)
