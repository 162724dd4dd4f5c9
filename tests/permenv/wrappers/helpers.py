"""A fast configuration, and the stacks of wrappers that their tests run through."""

import copy
from typing import Any

import gymnasium as gym
import pytest
import torch

from permenv.wrappers import (
    ActionBlock,
    CrossEntropyReward,
    ErrorAndProgress,
    ErrorReduction,
    FiniteHorizon,
    FlatJointAction,
    MixtureAction,
    NormalizedReward,
    PoolAction,
    RatioMatrix,
    RunSummary,
    StateHistory,
)


def small_backbone() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))


FAST = {"num_scenes": 24, "piece_size": 16, "cell_size": 18, "backbone": small_backbone}
FAST |= {"batch_size": 4, "samples_per_action": 1, "num_validation": 5, "total_updates": 20}
FAST |= {"learning_rate": 0.1, "ema_decay": 0.5}
"""A cycle has a free iteration of 4 actions and an update of 2 iterations, 8 actions; it takes a few hundredths of a
second."""

PARTS = {"spatial": ["spatial"], "temporal": ["temporal"], "spatiotemporal": ["spatial", "temporal"]}
"""By task, its ordering tasks."""

STACKS = {
    "mixture": MixtureAction,
    "pool": PoolAction,
    "block": ActionBlock,
    "flat joint": FlatJointAction,
    "history": lambda env: StateHistory(env, 3),
    "ratios": RatioMatrix,
    "error and progress": ErrorAndProgress,
    "summary": RunSummary,
    "error reduction": ErrorReduction,
    "cross-entropy": CrossEntropyReward,
    "normalized": NormalizedReward,
    "normalized cross-entropy": lambda env: NormalizedReward(CrossEntropyReward(env)),
    "finite horizon": FiniteHorizon,
    "normalized error reduction of a block": lambda env: NormalizedReward(ErrorReduction(ActionBlock(env))),
    "ratios with error of a block": lambda env: ErrorAndProgress(RatioMatrix(ActionBlock(env))),
    "history with error reduction of a pool": lambda env: ErrorAndProgress(
        StateHistory(PoolAction(ErrorReduction(env), smallest=0.1, hardest_first=True), 2)
    ),
    "history of pairs": lambda env: NormalizedReward(StateHistory(FlatJointAction(env), 2)),
    "all": lambda env: NormalizedReward(
        CrossEntropyReward(ErrorAndProgress(StateHistory(MixtureAction(env, strength=2.0), 3)))
    ),
    "all upside down": lambda env: MixtureAction(
        ErrorAndProgress(StateHistory(NormalizedReward(CrossEntropyReward(env)), 3)), strength=2.0
    ),
}
JOINT_ONLY = {"flat joint", "history of pairs"}
IN_CI = {"temporal": [pytest.mark.ci]}
"""Marks by task: for the wrappers, the temporal task differs little from the spatial one."""

QUICK_JOINT = {"mixture", "pool", "block", "ratios", "normalized error reduction of a block", "all", *JOINT_ONLY}
CASES = [
    pytest.param(stack, task, marks=[] if task == "spatial" or stack in QUICK_JOINT else pytest.mark.ci)
    for stack in STACKS
    for task in ("spatial", "spatiotemporal")
    if task == "spatiotemporal" or stack not in JOINT_ONLY
]
CASES += [pytest.param(stack, "temporal", marks=pytest.mark.ci) for stack in STACKS if stack not in JOINT_ONLY]

every_task = pytest.mark.parametrize("task", [pytest.param(task, marks=IN_CI.get(task, [])) for task in PARTS])
every_stack = pytest.mark.parametrize(("stack", "task"), CASES)


def actions_of(env: gym.Env, seed: int = 0, cycles: float = 1.5) -> list[Any]:
    """Return random actions for that many cycles of free iterations and an update."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    steps_in_cycle = 2 if any(name in str(env) for name in ("Mixture", "Pool", "Block")) else 12
    return [space.sample() for _ in range(round(cycles * steps_in_cycle))]


def is_rewarded(env: gym.Env, info: dict[str, Any]) -> bool:
    """Return whether a step, which did not diverge, has a reward under the wrappers of `env`."""
    return info["validated"] and (info["phase"] == "update" or "ErrorReduction" in str(env))


def state_of(env: gym.Env) -> tuple[list[Any], dict[str, Any]]:
    """Return the weights of a run and the state of the environment's generator."""
    base_env = env.unwrapped
    return [p.tolist() for p in base_env.run.trainer.network.parameters()], base_env.np_random.bit_generator.state


def break_network(env: gym.Env) -> None:
    """Make the next iteration diverge."""
    for parameter in env.unwrapped.run.trainer.network.parameters():
        parameter.data.fill_(torch.nan)


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
