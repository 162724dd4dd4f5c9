"""What policies with a network share: the network, and the exact state of its optimiser."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from permenv.config import Range
from permenv.schema import FINITE, Array, Either, Fields, Schema, Where

AFTER_AN_UPDATE = "have a state of Adam after its first update and none before"
EPSILON = 1e-8  # added to divisors (Adam's default), so that advantages that are only rounding errors stay small


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
