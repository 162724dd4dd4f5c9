"""Own states of the global random generators, for code that seeds them and draws from them.

Stable-Baselines3 does. The project's own code draws from generators of its own.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from agents.base import Tree


class OwnRandomness:
    """States of the global random generators (random, numpy, torch) that belong to one piece of code.

    While it runs, they are swapped in. So it leaves the global states unchanged, and what it draws does not depend on
    them.
    """

    def __init__(self) -> None:
        self._states: _States | None = None  # before the first use, which begins with the caller's
        self._in_use = False

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Swap these states in and restore the caller's afterwards; nested uses have no effect."""
        if self._in_use:
            yield
            return
        callers = _global_states()
        if self._states is not None:
            _set_global_states(self._states)
        self._in_use = True
        try:
            yield
        finally:
            self._states, self._in_use = _global_states(), False
            _set_global_states(callers)

    def state_dict(self) -> Tree:
        """Return the states after at least one use: a tree that `permenv.checkpoint` writes."""
        states = _global_states() if self._in_use else self._states
        assert states is not None, "they have been used"
        (version, words, gauss), (_, keys, position, has_gauss, cached), torchs, cuda = states
        return {
            "python": [version, np.array(words, dtype=np.int64), gauss],
            "numpy": [keys.astype(np.int64), position, has_gauss, cached],
            "torch": torchs,
            "cuda": cuda,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue with what `state_dict` returned; not while they are in use.

        Raises:
            ValueError, TypeError, KeyError, RuntimeError: If it is something else.
        """
        version, words, gauss = state["python"]
        python = (version, tuple(words.tolist()), gauss)
        numpys = ("MT19937", state["numpy"][0].astype(np.uint32), *state["numpy"][1:])
        cuda = state["cuda"] if torch.cuda.is_available() else []  # of the machine that saved, which may have more
        random.Random().setstate(python)  # each raises if it is no state
        np.random.RandomState().set_state(numpys)
        torch.Generator().set_state(state["torch"])
        self._states = (python, numpys, state["torch"], cuda)


_States = tuple[Any, Any, torch.Tensor, list[torch.Tensor]]  # of random, numpy, torch and its GPUs


def _global_states() -> _States:
    # Seeding torch seeds the GPUs too, whatever the device of the policy is.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _set_global_states(states: _States) -> None:
    ours, numpys, torchs, cuda = states
    random.setstate(ours)
    np.random.set_state(numpys)  # noqa: NPY002
    torch.set_rng_state(torchs)
    for device, each in zip(range(torch.cuda.device_count()), cuda, strict=False):
        torch.cuda.set_rng_state(each, device)
