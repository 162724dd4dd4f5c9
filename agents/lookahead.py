"""One-step lookahead: tries every tilted policy on a fork of the environment and plays the best one.

Besides what all agents use of an environment (see `agents`), it needs `env.unwrapped.fork()`, an independent copy of
the run that continues identically given the same actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.base import Action, Transition, Tree, in_update, require
from agents.groups import GroupAgent, tilt
from agents.rollout import rollout
from permenv.config import Range
from permenv.schema import Either, Fields, ListOf, Number, OneOf, Schema, Where, below, lists

Tilt = tuple[int, int] | None
"""A candidate: (task, group), where the task of a single task is 0, or None for the random policy."""


@dataclass
class _Stretch:
    """The part of a plan between two validations.

    Attributes:
        observation: The ŝ during it, as lists.
        actions: Those still to be played.
    """

    observation: list[Any]
    actions: list[Action]


class Lookahead(GroupAgent):
    """Plays, of all tilted policies, the one that leaves the lowest error after one update.

    At the beginning of every cycle (the free iterations and the update that follows) it forks the environment once for
    each candidate, plays each fork to the end of the update, and keeps the actions of the candidate with the lowest
    error there, `info["error"]`; among equals, the first. It then plays exactly these actions in the environment, which
    therefore reaches exactly the same error. A fork that diverges counts as error 1.

    The candidates are the random policy f (all permutations equally likely) and, for every group that is not empty, the
    policy tilted towards it, (1 - share) f + share e_j. In a joint task a candidate is tilted in one task only, so
    there are at most T |C| + 1. Each candidate draws its actions from a generator of its own.

    A cycle costs as many additional cycles as there are candidates: this is a reference, not a practical method. It is
    greedy, and it selects by the error on the X_val on which it is then evaluated, so part of its lead is chance: in
    the actions of the candidates, and in their effect on X_val. An agent that is not one of the candidates may gain
    more in an update, as `EasiestFirst` does at first, which draws only from the easier groups.

    If it has to act in the middle of a cycle without a matching plan, for example after only the environment was
    restored from a checkpoint, it plans from there to the end of the update.

    Args:
        env: The environment it acts in; its `unwrapped` can `fork()` once a run has begun.
        seed: Seeds everything the agent draws, >= 0.
        share: Probability given to the group in addition to its share of the rest, in (0, 1].

    Attributes:
        env: As given.
        errors: By candidate, the error at the end of its fork when the last plan was made, the random policy first;
            not part of the state.

    Raises:
        ValueError: If the environment cannot fork, a space is not supported or the share is out of its range.
    """

    def __init__(self, env: gym.Env[Any, Any], *, seed: int, share: float = 0.5) -> None:
        super().__init__(env.observation_space, env.action_space, seed=seed)
        if not callable(getattr(env.unwrapped, "fork", None)):
            raise ValueError(
                f"{env.unwrapped} has no fork(), but Lookahead tries its plans on copies of the run. "
                "Give it an environment that can be copied, such as PermShuffle-v0."
            )
        require("share", share, 0 < share <= 1, "above 0 and at most 1")
        self.env = env
        self.share = share
        self.errors: Mapping[Tilt, float] = {}
        self._tilt: Tilt = None  # of the current plan
        self._plan: list[_Stretch] = []

    @property
    def gains(self) -> dict[Tilt, float]:
        """By candidate, the error of the random policy minus its own when the last plan was made."""
        return {candidate: self.errors[None] - error for candidate, error in self.errors.items()}

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the distribution that the current plan was drawn from, see `GroupAgent.probabilities`.

        Makes a new plan if the current one does not continue from this observation, which must be the environment's
        current one.
        """
        self._fractions(observation)  # refuses observations of another space
        if not self._continues_from(observation):
            self._make_plan(observation)
        return self._candidate(self._tilt).probabilities(observation)

    def act(self, observation: np.ndarray) -> Action:
        """Return the next action of the plan, see `GroupAgent.act`; nothing is drawn."""
        if not self._continues_from(observation):
            self.probabilities(observation)
        return self._plan[0].actions.pop(0)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Drop the plan when the run is over, see `Agent.learn`."""
        if transition.done:
            self._plan = []
        return {}

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        plan = [
            {"observation": stretch.observation, "actions": np.asarray(stretch.actions, dtype=np.int64).tolist()}
            for stretch in self._plan
        ]
        return {**super().state_dict(), "tilt": None if self._tilt is None else list(self._tilt), "plan": plan}

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        group = Number(int, below(self.num_groups))
        tilted = Where(
            ListOf(Number(int, Range(0)), 2),
            {"be a task and a group": lambda tilt: tilt[0] < self.num_tasks and tilt[1] < self.num_groups},
        )
        stretch = Fields(
            {
                "observation": lists(Number(float), (*self._tasks, self.num_groups, 2)),
                "actions": ListOf(lists(group, self._tasks)),
            }
        )
        return {**super().state_schema(), "tilt": Either(OneOf((None,)), tilted), "plan": ListOf(stretch)}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._tilt = None if state["tilt"] is None else (state["tilt"][0], state["tilt"][1])
        self._plan = [_Stretch(stretch["observation"], self._actions(stretch["actions"])) for stretch in state["plan"]]

    def _actions(self, saved: list[Any]) -> list[Action]:
        return [np.array(action, dtype=np.int64) for action in saved] if self._tasks else list(saved)

    def _continues_from(self, observation: np.ndarray) -> bool:
        """Return whether the plan has an action for this ŝ.

        If ŝ differs from the one on the fork, the environment was reset or others have acted in it.
        """
        while self._plan and not self._plan[0].actions:
            del self._plan[0]
        return bool(self._plan) and self._plan[0].observation == np.asarray(observation).tolist()

    def _make_plan(self, observation: np.ndarray) -> None:
        """Play every candidate on a fork to the end of the update, and keep the best."""
        fractions = self._fractions(observation).reshape(self.num_tasks, self.num_groups)
        candidates: list[Tilt] = [None, *((int(task), int(group)) for task, group in np.argwhere(fractions > 0))]
        errors: dict[Tilt, float] = {}
        lowest = np.inf
        for each in candidates:
            errors[each], plan = self._play(self._candidate(each, int(self._generator.integers(2**63))), observation)
            if errors[each] < lowest:
                lowest, self._tilt, self._plan = errors[each], each, plan
        self.errors = errors
        self._version += 1

    def _play(self, candidate: "_Candidate", observation: np.ndarray) -> tuple[float, list[_Stretch]]:
        """Return the error of a candidate at the end of the update, and its actions."""
        plan = [_Stretch(np.asarray(observation).tolist(), [])]

        def note(transition: Transition) -> None:
            plan[-1].actions.append(transition.action)
            if transition.info["validated"] and not in_update(transition.info):
                plan.append(_Stretch(transition.next_observation.tolist(), []))

        base_env: Any = self.env.unwrapped
        last = rollout(base_env.fork(), candidate, observation=observation, updates=1, on_step=note)
        return 1.0 if last.terminated else float(last.info["error"]), plan

    def _candidate(self, tilt: Tilt, seed: int = 0) -> "_Candidate":
        return _Candidate(self.observation_space, self.action_space, seed=seed, tilt=tilt, share=self.share)


class _Candidate(GroupAgent):
    """The random policy, tilted towards one group of one task, or not at all."""

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, *, seed: int, tilt: Tilt, share: float
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        self._tilt = tilt
        self._share = share

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        fractions = self._fractions(observation)  # [*tasks, groups]
        if self._tilt is None:
            return fractions
        task, group = self._tilt
        rows = fractions.reshape(self.num_tasks, self.num_groups).copy()
        rows[task] = tilt(rows[task], group, self._share)
        return rows.reshape(fractions.shape)
