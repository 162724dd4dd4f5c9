"""Views of `PermShuffle-v0`: other actions, observations and rewards of the same run.

| Wrapper              | Changes     | To                                                                     | For   |
|----------------------|-------------|------------------------------------------------------------------------|-------|
| `MixtureAction`      | action      | `Box(-1, 1, (C,))`: how a whole phase's samples are spread over groups | all   |
| `ActionBlock`        | action      | `MultiDiscrete([C] * (K * T))`: all K actions of an update at once     | all   |
| `FlatJointAction`    | action      | `Discrete(C**2)`: a pair of groups as one number                       | joint |
| `StateHistory`       | observation | the last states, one a validation                                      | all   |
| `RatioMatrix`        | observation | the matrix s, which ŝ summarises                                       | all   |
| `ErrorAndProgress`   | observation | what is below it as a vector, and the errors and the run's progress    | all   |
| `CrossEntropyReward` | reward      | the gain of the cross-entropy instead of that of the error             | all   |
| `NormalizedReward`   | reward      | the reward below it over the root mean square of the run's rewards     | all   |

C is the number of groups, T that of tasks: 1, or 2 for "spatiotemporal", here called joint. A *phase* is what lies
between two validations: the iterations of an update, or the free iterations before it.

A view holds no state of its own: what it shows is read from the run (`env.unwrapped.records`, `.rewards`,
`.validation`, `.np_random`). So `fork`, `save`, `reset(options={"checkpoint": path})` and pickling work through any
stack of them, and a run saved under one stack goes on under another. `fork(env)` copies a run with its stack.

What stacks; a view that would hide another one is refused when it is made:

- at most one view of the actions;
- of the observation `StateHistory` or `RatioMatrix`, each over ŝ itself, and `ErrorAndProgress` over either or neither;
- of the reward `NormalizedReward` over `CrossEntropyReward`, or one of them.

Views of different things go in any order, with the same result. Put the actions' innermost: then observations are made
once a phase, not at every one of thousands of steps within.

Example:
    >>> env = MixtureAction(gym.make("PermShuffle-v0"))
    >>> env = NormalizedReward(ErrorAndProgress(StateHistory(env, length=3)))
"""

from __future__ import annotations

import copy
import itertools
import math
import numbers
from collections.abc import Iterable, Iterator
from typing import Any, SupportsFloat, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from permenv.config import ConfigurationError
from permenv.env import PermShuffleEnv, Record
from permenv.reward import extrapolated_error, reward
from permenv.state import HIGHEST_RATIO, LOWEST_RATIO

Step: TypeAlias = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


def fork(env: gym.Env) -> gym.Env:
    """Copy a run with all wrappers around it, Gymnasium's too; neither copy touches the other.

    What a wrapper of somebody else keeps for itself (the clock of `TimeLimit`, the frames of `FrameStackObservation`)
    is copied with `copy.deepcopy`.

    Example:
        >>> twin = fork(env)

    Args:
        env: `PermShuffle-v0` under any wrappers; a run has begun.

    Returns:
        The same stack around `env.unwrapped.fork()`.

    Raises:
        ConfigurationError: If it is another environment.
        gymnasium.error.ResetNeeded: If no run has begun.
    """
    world = _world(env)
    return copy.deepcopy(env, {id(world): world.fork()})  # the copy of the innermost is already there


# Actions


class _ActionView(gym.Wrapper, RecordConstructorArgs):
    """What the views of the actions share: they choose groups, so they need the environment's own actions below."""

    def __init__(self, env: gym.Env, **arguments: Any):
        RecordConstructorArgs.__init__(self, **arguments)
        gym.Wrapper.__init__(self, env)
        world, name = _world(env), type(self).__name__
        if env.action_space != world.action_space:
            raise ConfigurationError(
                f"{name} over the actions {env.action_space}: it chooses groups, {world.action_space}; "
                f"leave out one of the wrappers that change the actions"
            )
        self._num_groups, self._num_tasks = world.config.num_groups, len(world.tasks)

    def _play(self, groups: Iterable[np.ndarray]) -> Step:
        """Take actions, each (T,) int64, until a validation or the end; what the last one returned."""
        for action in groups:
            result = self.env.step(action if self._num_tasks > 1 else int(action[0]))
            _, _, terminated, truncated, info = result
            if info["validated"] or terminated or truncated:
                return result
        raise AssertionError("a phase does not outlast its actions")  # which never end


class MixtureAction(_ActionView):
    """Spread the samples of a whole phase over the groups: a continuous action with an immediate reward.

    ## Action Space
    `Box(-1, 1, (C,), float32)`, joint `(T, C)`: group j is drawn with probability proportional to
    f_j · exp(strength · a_j), f_j = |c_j| / |Ψ| its share of the permutations. So action 0 draws all permutations
    alike, as no policy does that chooses groups without a look at their sizes, a constant added to an action changes
    nothing, and an empty group is never drawn. Finite values outside [-1, 1] are clipped.

    A step is a phase: it ends with the next validation, or where the network diverges. All `samples_per_action` samples
    of an action of the environment share a group, each action's is drawn anew, with the run's own generator. The step
    of an update returns its reward; the step of free iterations, if there are any, returns 0 and `info["phase"]`
    "free". An episode has `total_updates` steps, twice as many with free iterations.

    Example:
        >>> env = MixtureAction(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0`, its actions unchanged.
        strength: How far an action may lean, > 0: the odds of two permutations differ at most by e^(2 · strength).
            At 1 that is e², with which a constant lean to the hard groups already cost most of what was learned.

    Raises:
        ConfigurationError: If `strength` is not a positive number, or the actions below are not the environment's.
    """

    def __init__(self, env: gym.Env, strength: float = 1.0):
        if not _is_number(strength, numbers.Real) or not 0 < strength < math.inf:
            raise ConfigurationError(f"MixtureAction(strength={strength!r}): must be a positive number")
        super().__init__(env, strength=strength)
        self.strength = float(strength)
        shape = (self._num_groups,) if self._num_tasks == 1 else (self._num_tasks, self._num_groups)
        self.action_space = spaces.Box(-1.0, 1.0, shape, np.float32)

    def step(self, action: Any) -> Step:
        """Train until the next validation.

        Args:
            action: (C,) numbers, joint (T, C); clipped to [-1, 1].

        Returns:
            Observation, reward, terminated, truncated, info of the phase's last step.

        Raises:
            gymnasium.error.InvalidAction: If it is of another shape, or not finite; nothing has changed then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        return self._play(self._draws(self.probabilities(action)))

    def probabilities(self, action: Any) -> np.ndarray:
        """Return how likely each group is to be drawn under an action in the present state.

        Args:
            action: (C,) numbers, joint (T, C); clipped to [-1, 1].

        Returns:
            (T, C) float64, each row sums to 1.

        Raises:
            gymnasium.error.InvalidAction: If it is of another shape, or not finite.
            gymnasium.error.ResetNeeded: If no run has begun.
        """
        values = _as_array(action)
        if values.shape != self.action_space.shape or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise gym.error.InvalidAction(
                f"action {action!r} is not a mixture: pass an array {self.action_space.shape} of finite numbers, "
                f"in [-1, 1] or clipped to it"
            )
        leaning = self.strength * values.astype(np.float64).clip(-1, 1).reshape(self._num_tasks, -1)
        state = _world(self).records[-1].observation  # ŝ, whatever observation lies below
        sizes = state.reshape(self._num_tasks, self._num_groups, 2)[..., 0].astype(np.float64)
        leaning[sizes == 0] = -math.inf  # or the largest of them might be an empty group's
        weights = sizes * np.exp(leaning - leaning.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def _draws(self, probabilities: np.ndarray) -> Iterator[np.ndarray]:
        """Groups (T,) without end, drawn for a whole iteration at once: one by one would take longer than the steps."""
        world = _world(self)
        size, generator = world.config.actions_per_iteration, world.np_random
        while True:
            yield from np.stack([generator.choice(len(row), size, p=row) for row in probabilities], axis=1)


class ActionBlock(_ActionView):
    """Choose all K actions of an update at once: the paper's a_{t,k} with an immediate reward.

    ## Action Space
    `MultiDiscrete([C] * (K * T))`, K = `iterations_per_update` · B / m: entry k · T + i is the group of action k for
    task i, the spatial one first. It is flat because Stable-Baselines3 takes no other shape. K is 3200 in the tiny
    preset; with `samples_per_action` = `batch_size` it is `iterations_per_update`, as in Algorithm 1.

    A step is a phase: it ends with the next validation, or where the network diverges. The step of an update plays
    the block once and returns the update's reward. The free iterations, if there are any, may take more actions or
    fewer: their step plays the block from its start, and from its start again as often as it ends, and returns 0 and
    `info["phase"]` "free".

    Example:
        >>> env = ActionBlock(gym.make("PermShuffle-v0", samples_per_action=64))

    Args:
        env: `PermShuffle-v0`, its actions unchanged.

    Raises:
        ConfigurationError: If the actions below are not the environment's.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        config = _world(env).config
        self.length = config.iterations_per_update * config.actions_per_iteration
        self.action_space = spaces.MultiDiscrete([self._num_groups] * (self.length * self._num_tasks))

    def step(self, action: Any) -> Step:
        """Train until the next validation.

        Args:
            action: (K · T,) int, groups from 0 to C - 1.

        Returns:
            Observation, reward, terminated, truncated, info of the phase's last step.

        Raises:
            gymnasium.error.InvalidAction: If it is no such block; nothing has changed then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        block = _as_array(action)
        if block.shape != self.action_space.shape or not _all_below(block, self._num_groups):
            raise gym.error.InvalidAction(
                f"action {action!r} is not a block of groups: pass an array {self.action_space.shape} of integers "
                f"from 0 to {self._num_groups - 1}"
            )
        return self._play(itertools.cycle(block.astype(np.int64).reshape(self.length, self._num_tasks)))


class FlatJointAction(_ActionView):
    """Choose a pair of groups by one number, for algorithms that know `Discrete` alone, such as DQN.

    ## Action Space
    `Discrete(C**2)`: C · (group of spatial permutations) + group of temporal permutations.

    Example:
        >>> env = FlatJointAction(gym.make("PermShuffle-v0", task="spatiotemporal"))

    Args:
        env: `PermShuffle-v0` of the task "spatiotemporal", its actions unchanged.

    Raises:
        ConfigurationError: If the task is a single one, or the actions below are not the environment's.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        if self._num_tasks == 1:
            raise ConfigurationError(
                f"FlatJointAction over task={_world(env).task!r}: its actions are {env.action_space} already; "
                f"leave the wrapper out, or make the environment with task='spatiotemporal'"
            )
        self.action_space = spaces.Discrete(self._num_groups**2)

    def step(self, action: Any) -> Step:
        """Take one step of the environment.

        Args:
            action: int from 0 to C² - 1.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            gymnasium.error.InvalidAction: If there is no such pair; nothing has changed then.
            gymnasium.error.ResetNeeded: If the run has not begun or is over.
        """
        pair = _as_array(action)
        if pair.shape != () or not _all_below(pair, self._num_groups**2):
            raise gym.error.InvalidAction(
                f"action {action!r} is not a pair of groups: pass an integer from 0 to {self._num_groups**2 - 1}"
            )
        return self.env.step(np.array(divmod(int(pair), self._num_groups)))


# Observations


class StateHistory(gym.ObservationWrapper, RecordConstructorArgs):
    """Show the states of the last validations, for what one state does not tell: where the network comes from.

    ## Observation Space
    `Box(float32, (length, C, 2))`, joint `(length, T, C, 2)`: ŝ after each of the last `length` validations, oldest
    first, with the bounds of ŝ. Before there are so many the first is repeated. A validation that ends free iterations
    counts too.

    `gymnasium.wrappers.FrameStackObservation` stacks the last steps instead: between validations, thousands of steps,
    the state is the same, so it shows copies of one state. And its stack is lost where a run is saved and restored.

    Example:
        >>> env = StateHistory(gym.make("PermShuffle-v0"), length=3)

    Args:
        env: `PermShuffle-v0`, its observation unchanged.
        length: Number of states, >= 1.

    Raises:
        ConfigurationError: If `length` is not a positive integer, or the observation below is not ŝ.
    """

    def __init__(self, env: gym.Env, length: int):
        if not _is_number(length, numbers.Integral) or length < 1:
            raise ConfigurationError(f"StateHistory(length={length!r}): must be an integer of at least 1")
        RecordConstructorArgs.__init__(self, length=length)
        gym.ObservationWrapper.__init__(self, env)
        _require_states(self)
        self.length = int(length)
        space = _world(env).observation_space
        assert isinstance(space, spaces.Box)
        low, high = (np.stack([bound] * self.length) for bound in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Read the last states from the run; the observation below is the last of them."""
        states = [record.observation for record in _world(self).records[-self.length :]]
        return np.stack([states[0]] * (self.length - len(states)) + states)


class RatioMatrix(gym.ObservationWrapper, RecordConstructorArgs):
    """Show the whole matrix s, of which ŝ tells a size and a median a group.

    ## Observation Space
    `Box(0.5, 2, (|Ψ|, |X_val|), float32)`, joint `(T, |Ψ|, |X_val|)`: (y_l + 1) / (y_p + 1) of each permutation l, in
    the order of Ψ, and each sample of X_val (Eq. 3); above 1: recognised. Which permutations form a group it does not
    tell: `env.unwrapped.groups` does.

    Example:
        >>> env = RatioMatrix(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0`, its observation unchanged.

    Raises:
        ConfigurationError: If the observation below is not ŝ.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        _require_states(self)
        world = _world(env)
        matrix = (world.config.num_permutations, world.config.num_validation)
        shape = matrix if len(world.tasks) == 1 else (len(world.tasks), *matrix)
        self.observation_space = spaces.Box(LOWEST_RATIO, HIGHEST_RATIO, shape, np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Read s of the last validation from the run."""
        matrices = np.stack([validation.ratios for validation in _world(self).validation.values()])
        return matrices.clip(LOWEST_RATIO, HIGHEST_RATIO).reshape(self.observation_space.shape)


class ErrorAndProgress(gym.ObservationWrapper, RecordConstructorArgs):
    """Append to the observation how well the network does and how much of the run is over.

    The medians of ŝ tell an error only roughly, and without the time left no policy can be one for the beginning and
    another one for the end of a run; nor can a value function tell an episode's last state from its first.

    ## Observation Space
    `Box(float32, (n + T + 1,))`: the n numbers of the observation below, flattened, with their bounds; then in [0, 1]
    the error E of each task, the spatial one first; then the progress in [0, 1], SGD iterations over all of the run.
    All are those of the last validation, as ŝ is, and change only there.

    Example:
        >>> env = ErrorAndProgress(StateHistory(gym.make("PermShuffle-v0"), length=3))

    Args:
        env: `PermShuffle-v0` with a Box observation: its own, `StateHistory`, `RatioMatrix`, or one of yours.

    Raises:
        ConfigurationError: If the observation below is not a Box.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        below, num_more = env.observation_space, len(_world(env).tasks) + 1
        if not isinstance(below, spaces.Box):
            raise ConfigurationError(
                f"ErrorAndProgress over the observation {below}: it appends to a Box; put it below what changes that"
            )
        low, high = (np.append(bound, np.full(num_more, end)) for bound, end in ((below.low, 0.0), (below.high, 1.0)))
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Append to the observation below what the run's last record tells."""
        world = _world(self)
        config, last = world.config, world.records[-1]
        iterations = config.total_updates * (config.free_iterations + config.iterations_per_update)
        progress = min(1.0, last.iteration / iterations)  # a longer run's checkpoint may be past the end of this one
        return np.concatenate([np.ravel(observation), [*last.errors.values(), progress]], dtype=np.float32)


# Rewards


class CrossEntropyReward(gym.Wrapper, RecordConstructorArgs):
    """Reward what an update did to the cross-entropy of the validation, instead of to its error.

    The error counts pairs (permutation, sample) and asks only which permutation was the most probable; the
    cross-entropy also sees how sure the network is, before the first pair is recognised and after the last.

    The step that ends an update returns H^BL - H, the formula of Eq. 7 and appendix E with H, the mean of -log y_l over
    all (permutation, sample) pairs in nats, in the error's place: H^BL is the straight line through the last two
    validations read at this iteration, flat before there are two. All other steps return 0. Joint: the mean of the
    tasks' gains. `info["task_rewards"]` holds these, by task; `info["error"]` and the like stay as they are.

    A run that diverged counts as the cross-entropy of a uniform guess, log |Ψ|, as `info["task_cross_entropies"]` says,
    with the line read at the last iteration that was taken; but it is never rewarded. Unlike E, H has no upper bound: a
    network about to diverge is sure and wrong, with an H of 10 to any power, after which a guess would be a great gain.

    Example:
        >>> env = CrossEntropyReward(gym.make("PermShuffle-v0"))

    Args:
        env: `PermShuffle-v0`.

    Attributes:
        rewards: This view's rewards of every update since the run began, like the environment's.

    Raises:
        ConfigurationError: If another view of the reward lies below: it would be lost.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        _world(env)
        while isinstance(env, gym.Wrapper):
            if isinstance(env, CrossEntropyReward | NormalizedReward):
                raise ConfigurationError(
                    f"CrossEntropyReward over {type(env).__name__}: it replaces that reward; put NormalizedReward over "
                    f"it, or leave one of the two out"
                )
            env = env.env

    @property
    def rewards(self) -> list[float]:
        """This view's rewards of every update since the run began."""
        return [_mean(gains) for gains in self._gains()]

    def step(self, action: Any) -> Step:
        """Take a step of the environment below, with this view's reward."""
        observation, value, terminated, truncated, info = self.env.step(action)
        if _is_rewarded(info):
            gains = self._gains()[-1]
            value, info = _mean(gains), {**info, "task_rewards": gains}
        return observation, value, terminated, truncated, info

    def _gains(self) -> list[dict[str, float]]:
        """By update, each task's gain."""
        world, gains = _world(self), []
        records = world.records
        for place, record in enumerate(records):
            if record.phase == "update":
                lines = _lines(records[:place], record.iteration)
                gains.append({task: reward(lines[task], reached) for task, reached in record.cross_entropies.items()})
        if len(world.rewards) > len(gains):  # the last reward has no validation: the network diverged
            guess = math.log(world.config.num_permutations)
            lines = _lines(records, world.trainer.iteration)
            gains.append({task: reward(line, max(guess, line)) for task, line in lines.items()})
        return gains


def _lines(records: list[Record], iteration: int) -> dict[str, float]:
    """By task, the straight line through the cross-entropies of the last two records, read at an iteration."""
    lines = {}
    for task in records[-1].cross_entropies:
        history = [(record.iteration, record.cross_entropies[task]) for record in records[-2:]]
        lines[task] = extrapolated_error(history, iteration)
    return lines


class NormalizedReward(gym.Wrapper, RecordConstructorArgs):
    """Divide an update's reward by the root mean square of all rewards of the run so far, this one included.

    So rewards are of the order of 1 whatever the task and the configuration, and a learning rate that suits one of them
    suits another. The first reward of a run becomes 1 or -1, the t-th lies in [-√t, √t]; signs stay, 0 stays 0. The
    rewards are those that the environment below has in its `rewards`: the bare one's or `CrossEntropyReward`'s.
    `info["task_rewards"]` are divided by the same number.

    `gymnasium.wrappers.NormalizeReward` does not do: it takes the spread over all steps, of which all but one in
    thousands have reward 0, and of a discounted sum that has forgotten the last reward when the next one comes. And
    what it gathered is in no checkpoint and goes on through the next run.

    Example:
        >>> env = NormalizedReward(CrossEntropyReward(gym.make("PermShuffle-v0")))

    Args:
        env: `PermShuffle-v0`, or `CrossEntropyReward` over it.

    Attributes:
        rewards: This view's rewards of every update since the run began, like the environment's.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        _world(env)

    @property
    def rewards(self) -> list[float]:
        """This view's rewards of every update since the run began."""
        below = self.env.get_wrapper_attr("rewards")
        return [value / _scale(below[: count + 1]) for count, value in enumerate(below)]

    def step(self, action: Any) -> Step:
        """Take a step of the environment below, with this view's reward."""
        observation, value, terminated, truncated, info = self.env.step(action)
        if _is_rewarded(info):
            scale = _scale(self.env.get_wrapper_attr("rewards"))
            value = float(value) / scale
            info = {**info, "task_rewards": {task: gain / scale for task, gain in info["task_rewards"].items()}}
        return observation, value, terminated, truncated, info


def _world(env: gym.Env) -> PermShuffleEnv:
    world = env.unwrapped
    if not isinstance(world, PermShuffleEnv):
        raise ConfigurationError(f"{env} is another environment: pass PermShuffle-v0, gym.make('PermShuffle-v0')")
    return world


def _require_states(view: gym.ObservationWrapper) -> None:
    """Refuse to hide what another wrapper made of the observation."""
    name, below, states = type(view).__name__, view.env.observation_space, _world(view).observation_space
    if below != states:
        raise ConfigurationError(
            f"{name} over the observation {below}: it replaces ŝ, {states}, and what was made of it would be lost; put "
            f"{name} below the wrapper that changes the observation, or leave out one of StateHistory and RatioMatrix"
        )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _as_array(action: Any) -> np.ndarray:
    try:
        return np.asarray(action)
    except ValueError:  # lists of different lengths
        return np.empty(0)


def _all_below(values: np.ndarray, bound: int) -> bool:
    return values.dtype.kind in "iu" and bool(((values >= 0) & (values < bound)).all())


def _is_rewarded(info: dict[str, Any]) -> bool:
    """Whether the step ended an update, or the run by divergence."""
    return info["diverged"] or (info["validated"] and info["phase"] == "update")


def _scale(rewards: list[float]) -> float:
    """Root mean square; 1 where all are 0. `hypot` squares nothing that could underflow."""
    return math.hypot(*rewards) / math.sqrt(len(rewards)) or 1.0


def _mean(by_task: dict[str, float]) -> float:
    return sum(by_task.values()) / len(by_task)
