"""The one-step oracle: it tries every lean on a fork of the environment, and plays the best.

Every other agent knows the Gymnasium API and nothing else of the environment. This one asks one thing more, which only
a world that can be copied has: `env.unwrapped.fork()`, a copy of the run that continues identically, given the same
actions, and that neither touches nor is touched by the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.base import Action, Agent, Transition, Tree, in_update, leaning, require

Lean = tuple[int, int] | None  # (task, group); a single task's task is 0. None leans to nothing: the random policy


@dataclass
class _Stretch:
    """What a plan plays between two validations.

    Attributes:
        observation: The ŝ that it follows, as lists.
        actions: Those still to be played.
    """

    observation: list[Any]
    actions: list[Action]


class Lookahead(Agent):
    """The upper reference of one step: of all the ways to lean it plays the one that leaves the lowest error.

    At the beginning of every cycle (the free iterations and the update that follows) it forks the environment once for
    each candidate, plays each fork to the end of the update, and keeps the actions of the one with the lowest error
    there, `info["error"]`; between equals the first. Then it plays exactly these actions in the environment itself, so
    what it was promised comes true to the bit. A fork that diverges has the error 1.

    The candidates are the random policy (all permutations alike, f) and, for every group that is not empty, the policy
    that leans to it, (1 - share) f + share e_j. Of a joint task one candidate leans in one task, so there are T |C| + 1
    at most. Each draws its actions from a generator of its own.

    A cycle costs as many cycles more as there are candidates: it is a reference, not a method. It is greedy, and it
    selects by the error on the X_val that it is then judged by, so part of its lead is the luck of the draw: of the
    candidates' actions, and of how they fall on X_val. An agent that is none of its candidates may gain more in an
    update, as `EasiestFirst` does at first, which draws from the easier groups alone (`experiments/horizon.py`).

    Where it is asked in the middle of a cycle without a plan that fits, as after a restored checkpoint of the
    environment alone, it plans from there to the end of the update.

    Args:
        env: The environment that it acts in; its `unwrapped` can `fork()` once a run has begun.
        seed: Seeds everything the agent draws, >= 0.
        share: Chance of the group leant to, beside its chance as any other, in (0, 1].

    Attributes:
        env: As given.
        errors: By candidate, the error at the end of its fork when the plan was last made, the random policy's first;
            not part of the state.

    Raises:
        ValueError: If the environment cannot fork, a space is not supported or the share is out of its range.
    """

    def __init__(self, env: gym.Env[Any, Any], *, seed: int, share: float = 0.5) -> None:
        super().__init__(env.observation_space, env.action_space, seed=seed)
        if not callable(getattr(env.unwrapped, "fork", None)):
            raise ValueError(
                f"{env.unwrapped} has no fork(), Lookahead tries its plans on copies of the run. "
                "Give it an environment that can be copied, such as PermShuffle-v0 itself."
            )
        require("share", share, 0 < share <= 1, "above 0 and at most 1")
        self.env = env
        self.share = share
        self.errors: Mapping[Lean, float] = {}
        self._lean: Lean = None  # of the plan in play
        self._plan: list[_Stretch] = []

    @property
    def gains(self) -> dict[Lean, float]:
        """By candidate, how far its error fell below the random policy's when the plan was last made."""
        return {lean: self.errors[None] - error for lean, error in self.errors.items()}

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return the distribution that the plan in play was drawn from, see `Agent.probabilities`.

        Makes a plan where none goes on with this observation, which must be the environment's present one.
        """
        self._fractions(observation)  # an observation of another space has no plan
        if not self._goes_on(observation):
            self._make_plan(observation)
        return self._candidate(self._lean).probabilities(observation)

    def act(self, observation: np.ndarray) -> Action:
        """Return the plan's next action, see `Agent.act`; nothing is drawn."""
        if not self._goes_on(observation):
            self.probabilities(observation)
        return self._plan[0].actions.pop(0)

    def learn(self, transition: Transition) -> dict[str, float]:
        """Drop the plan where the run is over, see `Agent.learn`."""
        if transition.terminated or transition.truncated:
            self._plan = []
        return {}

    def state_dict(self) -> Tree:
        """Return everything that moves, see `Agent.state_dict`."""
        plan = [
            {"observation": stretch.observation, "actions": np.asarray(stretch.actions, dtype=np.int64).tolist()}
            for stretch in self._plan
        ]
        return {**super().state_dict(), "lean": None if self._lean is None else list(self._lean), "plan": plan}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._lean = None if state["lean"] is None else (state["lean"][0], state["lean"][1])
        self._plan = [_Stretch(stretch["observation"], self._actions(stretch["actions"])) for stretch in state["plan"]]

    def _actions(self, saved: list[Any]) -> list[Action]:
        return [np.array(action, dtype=np.int64) for action in saved] if self._tasks else list(saved)

    def _goes_on(self, observation: np.ndarray) -> bool:
        """Return whether the plan has an action for this ŝ.

        It has none for another ŝ than it met on the fork: then the environment was reset, or others acted in it.
        """
        while self._plan and not self._plan[0].actions:
            del self._plan[0]
        return bool(self._plan) and self._plan[0].observation == np.asarray(observation).tolist()

    def _make_plan(self, observation: np.ndarray) -> None:
        """Play every candidate on a fork to the end of the update, and keep the best."""
        fractions = self._fractions(observation).reshape(self.num_tasks, self.num_groups)
        leans: list[Lean] = [None, *((int(task), int(group)) for task, group in np.argwhere(fractions > 0))]
        errors: dict[Lean, float] = {}
        lowest = np.inf
        for lean in leans:
            errors[lean], plan = self._play(self._candidate(lean, int(self._generator.integers(2**63))), observation)
            if errors[lean] < lowest:
                lowest, self._lean, self._plan = errors[lean], lean, plan
        self.errors = errors
        self._version += 1

    def _play(self, candidate: "_Candidate", observation: np.ndarray) -> tuple[float, list[_Stretch]]:
        """Return the error a candidate leaves at the end of the update, and what it did."""
        world: Any = self.env.unwrapped
        fork = world.fork()
        plan = [_Stretch(np.asarray(observation).tolist(), [])]
        while True:
            action = candidate.act(observation)
            plan[-1].actions.append(action)
            observation, _, terminated, truncated, info = fork.step(action)
            if terminated:
                return 1.0, plan
            if truncated or (info["validated"] and in_update(info)):
                return float(info["error"]), plan
            if info["validated"]:
                plan.append(_Stretch(observation.tolist(), []))

    def _candidate(self, lean: Lean, seed: int = 0) -> "_Candidate":
        return _Candidate(self.observation_space, self.action_space, seed=seed, lean=lean, share=self.share)


class _Candidate(Agent):
    """Leans to one group of one task, or to none."""

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, *, seed: int, lean: Lean, share: float
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        self._lean = lean
        self._share = share

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        fractions = self._fractions(observation)  # [*tasks, groups]
        if self._lean is None:
            return fractions
        task, group = self._lean
        rows = fractions.reshape(self.num_tasks, self.num_groups).copy()
        rows[task] = leaning(rows[task], group, self._share)
        return rows.reshape(fractions.shape)
