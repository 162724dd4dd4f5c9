"""What policies with a network share: the network, the scale of what it reads, and the exact state of its optimiser."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from permenv.config import Range
from permenv.schema import COUNT, FINITE, Array, Either, Fields, Schema, Where

AFTER_AN_UPDATE = "have a state of Adam after its first update and none before"
EPSILON = 1e-8  # added to divisors (Adam's default), so that advantages that are only rounding errors stay small
LARGEST_INPUT = 5.0  # in deviations, beyond which a standardised observation is clipped


def policy_network(inputs: int, hidden: int, outputs: int, seed: int) -> nn.Sequential:
    """Return a network in float64 whose outputs are all 0 at first.

    Args:
        inputs: Numbers it reads.
        hidden: Units of its hidden layer, with tanh; 0 for a linear policy.
        outputs: Numbers it returns.
        seed: Seeds the hidden layer, which is uniform in ±1/√inputs (PyTorch's default).

    Returns:
        The layers "first", "tanh" and "last", or only "last".
    """
    generator = torch.Generator().manual_seed(seed)
    # The default initialisation of a layer would draw from the global generator.
    last = nn.utils.skip_init(nn.Linear, hidden or inputs, outputs, dtype=torch.float64)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    if not hidden:
        return nn.Sequential(OrderedDict(last=last))
    first = nn.utils.skip_init(nn.Linear, inputs, hidden, dtype=torch.float64)
    bound = 1 / math.sqrt(inputs)
    for parameter in first.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return nn.Sequential(OrderedDict(first=first, tanh=nn.Tanh(), last=last))


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU that no optimiser changes."""
    return {name: tensor.detach().clone().cpu() for name, tensor in tensors.items()}


def adam_state(adam: torch.optim.Adam, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return copies of what Adam has stored for each parameter; nothing before its first step."""
    return {name: copies(adam.state.get(parameter, {})) for name, parameter in parameters.items()}


def tensors_schema(tensors: Mapping[str, Tensor]) -> Schema:
    """Return what `copies` returns: finite tensors of these names, types and shapes."""
    return Fields({name: Array.like(tensor, FINITE) for name, tensor in tensors.items()})


def adam_schema(parameters: Mapping[str, Tensor]) -> Schema:
    """Return what `adam_state` returns: nothing for any parameter, or for all of them the state after as many steps."""
    before = Fields(dict.fromkeys(parameters, Fields({})))
    moments = {
        name: Fields(
            {
                "step": Array(torch.float32, (), Range(1)),
                "exp_avg": Array.like(parameter, FINITE),
                "exp_avg_sq": Array.like(parameter, Range(0)),
            }
        )
        for name, parameter in parameters.items()
    }
    return Either(before, Where(Fields(moments), {"have taken as many steps with every parameter": _are_in_step}))


def has_stepped(adam: Mapping[str, Any]) -> bool:
    """Whether Adam had taken a step when `adam_state` was called."""
    return any(adam.values())


def _are_in_step(state: Mapping[str, Any]) -> bool:
    steps = {moment["step"].item() for moment in state.values()}
    return len(steps) == 1 and steps.pop().is_integer()


def load_adam_state(adam: torch.optim.Adam, parameters: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Continue where `adam_state` was taken, for the same parameters in the same order."""
    # Copies, because Adam updates the given tensors in place; before the first step there are none.
    moments = [copies(state[name]) for name in parameters]
    adam.load_state_dict(
        {
            "state": {index: moment for index, moment in enumerate(moments) if moment},
            "param_groups": adam.state_dict()["param_groups"],
        }
    )


class RunningScale:
    """The mean and the deviation of each entry of all observations so far, by which observations are standardised.

    Args:
        size: Number of entries.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._origin = np.zeros(size)  # the first observation
        self._sum = np.zeros(size)  # of the differences from it, which are exactly 0 for an entry that never varies
        self._square_sum = np.zeros(size)

    def add(self, observations: np.ndarray) -> None:
        """Take in more observations, (steps, entries)."""
        if not self._count:
            self._origin = observations[0].copy()
        differences = observations - self._origin
        self._count += len(differences)
        self._sum += differences.sum(axis=0)
        self._square_sum += (differences**2).sum(axis=0)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Return standardised observations, (steps, entries), in [-5, 5]."""
        count = max(self._count, 1)
        mean = self._sum / count
        deviation = np.sqrt(np.maximum(self._square_sum / count - mean**2, 0))
        varied = deviation > 0
        standardised = (observations - self._origin - mean) / np.where(varied, deviation, 1)
        return np.where(varied, standardised.clip(-LARGEST_INPUT, LARGEST_INPUT), 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, as copies."""
        arrays = {"origin": self._origin, "sum": self._sum, "square_sum": self._square_sum}
        return {"count": self._count, **{name: array.copy() for name, array in arrays.items()}}

    def state_schema(self) -> Schema:
        """Return what `state_dict` returns."""
        sums = {"origin": FINITE, "sum": FINITE, "square_sum": Range(0)}
        return Fields({"count": COUNT, **{name: Array.like(self._sum, values) for name, values in sums.items()}})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        self._count = state["count"]
        self._origin, self._sum, self._square_sum = (state[key].copy() for key in ("origin", "sum", "square_sum"))
