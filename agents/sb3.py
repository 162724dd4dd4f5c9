"""Stable-Baselines3's PPO, A2C, DQN and SAC, for those who know them: an alternative to `agents.Reinforce`.

```python
env = gym.make("PermShuffle-v0")
model = make_model("ppo", env, seed=0)
model.learn(96_000)  # one training run of the tiny preset: 30 updates of 3200 actions
```

`agents` itself does not import this module, so that nothing else waits for Stable-Baselines3.
"""

import contextlib
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from permenv import CheckpointError, ConfigurationError, PermShuffleEnv
from permenv.wrappers import ActionBlock, MixtureAction, NormalizedReward

Numbers = Callable[[int, int], dict[str, Any]]  # from steps of an update and updates of a run to SB3's keywords

_MOST_AHEAD = 256  # actions drawn at once


class OwnRandomness:
    """States of the global random generators (random, numpy, torch) that belong to somebody.

    Stable-Baselines3 seeds the global generators and draws from them. Lent states of its own for as long as it works,
    it moves nobody else's, nor does it hear of what others draw meanwhile. They pickle.
    """

    def __init__(self) -> None:
        self._states: tuple[Any, ...] | None = None  # until the first loan: it begins with the caller's
        self._is_lent = False

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Put the states in, and give the caller's back afterwards; a loan within a loan changes nothing."""
        if self._is_lent:
            yield
            return
        callers = _global_states()
        if self._states is not None:
            _set_global_states(self._states)
        self._is_lent = True
        try:
            yield
        finally:
            self._states, self._is_lent = _global_states(), False
            _set_global_states(callers)

    def __getstate__(self) -> dict[str, Any]:
        return {"_states": _global_states() if self._is_lent else self._states, "_is_lent": False}


def _global_states() -> tuple[Any, ...]:
    # whoever seeds torch seeds the GPUs as well, wherever the policy lives
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _set_global_states(states: tuple[Any, ...]) -> None:
    ours, numpys, torchs, cuda = states
    random.setstate(ours)
    np.random.set_state(numpys)  # noqa: NPY002
    torch.set_rng_state(torchs)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


class _OnItsOwn(BaseAlgorithm):
    """What all four algorithms have in common: they draw from random states of their own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.randomness = OwnRandomness()
        self.algorithm = type(self).__name__.lower()  # goes into the zip
        super().__init__(*arguments, **options)
        self.set_logger(Logger(None, []))  # the default one would leave a new folder in /tmp for each learn()

    def _setup_model(self) -> None:
        with self.randomness.lent():
            super()._setup_model()  # type: ignore[safe-super] # the algorithm's, which comes next

    def learn(self, *arguments: Any, **options: Any) -> Any:
        """Learn, see Stable-Baselines3."""
        with self.randomness.lent():
            return super().learn(*arguments, **options)  # type: ignore[safe-super]

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Choose actions, see Stable-Baselines3."""
        with self.randomness.lent():
            return super().predict(*arguments, **options)

    def _excluded_save_params(self) -> list[str]:
        # The buffer is all that DQN and SAC learn from: it is saved. Its class follows from `n_steps`; given again on
        # loading it would be taken for one of the user's own.
        excluded = set(super()._excluded_save_params())
        return [*(excluded - {"replay_buffer"}), "replay_buffer_class"]


class PPO(_OnItsOwn, stable_baselines3.PPO):
    """Stable-Baselines3's PPO with random states of its own."""


class A2C(_OnItsOwn, stable_baselines3.A2C):
    """Stable-Baselines3's A2C with random states of its own."""


class DQN(_OnItsOwn, stable_baselines3.DQN):
    """Stable-Baselines3's DQN with random states of its own."""


class SAC(_OnItsOwn, stable_baselines3.SAC):
    """Stable-Baselines3's SAC with random states of its own."""


class PolicyAhead(ActorCriticPolicy):
    """Draws many actions at once, and hands them out while the observation stays the same.

    ŝ does for thousands of steps, and the policy for a rollout, so all these actions have one distribution. Asked one
    by one, the network would add a tenth to the time of a training run, and more.

    Args:
        *arguments: See Stable-Baselines3.
        ahead: Actions drawn at once, >= 1.
        **options: See Stable-Baselines3.
    """

    def __init__(self, *arguments: Any, ahead: int = 1, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ahead = ahead
        self._observation = torch.empty(0)
        self._drawn: list[tuple[torch.Tensor, ...]] = []  # (action, value, log-probability)

    def forward(self, obs: torch.Tensor, deterministic: bool = False) -> Any:
        """Draw an action for each observation: (actions, values, log-probabilities)."""
        if self.ahead == 1 or len(obs) > 1 or deterministic:
            return super().forward(obs, deterministic)
        if not self._drawn or not torch.equal(obs, self._observation):
            self._observation = obs.clone()
            drawn = super().forward(obs.expand(self.ahead, *obs.shape[1:]))
            self._drawn = list(zip(*(part.split(1) for part in drawn), strict=True))
        return self._drawn.pop()

    def set_training_mode(self, mode: bool) -> None:
        """Forget what was drawn: this is called before and after the policy learns."""
        self._drawn = []
        super().set_training_mode(mode)


class _InfoOfValidations(gym.Wrapper[Any, Any, Any, Any]):
    """Leaves out the info of steps on which nothing happened: Stable-Baselines3 copies it deeply at every one."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not (info["validated"] or terminated or truncated):
            info = {}
        return observation, reward, terminated, truncated, info


# The numbers of each algorithm, where Stable-Baselines3's own would not do here. The discount is in `make_model`.


def _on_policy(steps: int) -> dict[str, Any]:
    return {
        "policy": PolicyAhead,
        "policy_kwargs": {"ahead": min(steps, _MOST_AHEAD)},
        # A rollout is an update: it learns in the middle of the run and where the run ends, and nothing is left over.
        "n_steps": steps,
        # Nothing but the last step is rewarded: with λ = 0.95 all but its last twenty actions would hear of it no more.
        "gae_lambda": 1.0,
        # Among the actions of one update, which share ŝ and reward, advantages differ by their time alone. Scaled to
        # mean 0, only that would be left: on a bandit, nothing was learned.
        "normalize_advantage": False,
    }


def _ppo(steps: int, updates: int) -> dict[str, Any]:
    # A mini-batch is the whole rollout: ten steps an update, as there are few updates.
    return {**_on_policy(steps), "batch_size": steps, "n_epochs": 10, "learning_rate": 3e-3}


def _a2c(steps: int, updates: int) -> dict[str, Any]:
    # One step an update, with the optimiser and the learning rate of `Reinforce`.
    return {**_on_policy(steps), "use_rms_prop": False, "learning_rate": 1e-2}


def _dqn(steps: int, updates: int) -> dict[str, Any]:
    return {
        "policy": "MlpPolicy",
        # Returns reach over a whole update. By single steps only an update's last action would hear of the reward.
        "n_steps": steps,
        "buffer_size": steps * updates,  # a run
        "learning_starts": 0,  # the schedule begins with random actions all the same
        "train_freq": steps,  # in between there is no reward to learn from
        "gradient_steps": 32,
        "learning_rate": 3e-3,
        "target_update_interval": steps,
        # The best group alone would drill its few permutations and nothing else, and the network learns little from
        # that (README): half of the actions stay random.
        "exploration_fraction": 0.5,
        "exploration_final_eps": 0.5,
    }


def _sac(steps: int, updates: int) -> dict[str, Any]:
    return {
        "policy": "MlpPolicy",
        "buffer_size": steps * updates,  # a run
        "learning_starts": 5 * steps,  # random until then
        "train_freq": steps,
        "gradient_steps": 20,
        "batch_size": 32,
        "learning_rate": 3e-3,  # ten times the usual: a run has some hundred gradient steps
        "ent_coef": "auto_0.1",  # for the same reason it begins near where it is to end
    }


@dataclass(frozen=True)
class _Algorithm:
    kind: type[_OnItsOwn]
    numbers: Numbers
    actions: tuple[type[spaces.Space], ...]
    remedy: str = ""


ALGORITHMS: Mapping[str, _Algorithm] = MappingProxyType(
    {
        "ppo": _Algorithm(PPO, _ppo, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)),
        "a2c": _Algorithm(A2C, _a2c, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)),
        "dqn": _Algorithm(
            DQN,
            _dqn,
            (spaces.Discrete,),
            "give it the bare actions of a single task, or permenv.wrappers.FlatJointAction(env) of the joint one "
            "(--actions pairs)",
        ),
        "sac": _Algorithm(SAC, _sac, (spaces.Box,), "give it permenv.wrappers.MixtureAction(env) (--actions mixture)"),
    }
)
"""By name, what `make_model` makes."""


def make_model(
    algorithm: str, env: gym.Env[Any, Any], *, seed: int, hidden: int = 16, device: str = "cpu", **options: Any
) -> BaseAlgorithm:
    r"""Make a Stable-Baselines3 model for the environment, with numbers that fit its rewards.

    The environment is wrapped inside: rewards in `NormalizedReward`, unless they are already (they are of order 0.01),
    and the observation flattened. Learning happens after each update, in the middle of the Gymnasium episode; where it
    is truncated, the value of the last observation enters.

    With K steps from reward to reward (`steps_of_an_update`) the discount is γ = 1 - 1 / K: an action is credited with
    at least 1/e of its own update's reward, and with each later one at 1/e of the one before. γ = 1 would not do: the
    rewards of Eq. 7 are second differences and telescope away (see `Reinforce`). Where a step is a whole update, K = 1
    and γ = 0: each update answers for itself, as `Reinforce` has it. The actions of free iterations are steps like any
    other here, and credited with the update that follows.

    What an algorithm draws comes from random states of its own, seeded from `seed`: the global ones stay as they are,
    and the same seed gives the same model bit for bit on a CPU.

    `model.save(path)` writes Stable-Baselines3's zip, with the replay buffer of DQN and SAC; see `load_model`.

    Args:
        algorithm: "ppo", "a2c", "dqn" or "sac". DQN needs Discrete actions: bare ones of a single task, or
            `permenv.wrappers.FlatJointAction`. SAC needs a Box: `permenv.wrappers.MixtureAction`.
        env: `PermShuffle-v0` under any wrappers, or another environment that has its `config` and info["validated"].
        seed: Decides what the model draws, and the run that its first `learn` begins: that of `env.reset(seed=seed)`.
        hidden: Units of the one hidden layer of each network, >= 1. It is a tanh: successive ŝ differ little, so a ReLU
            that is off once may be off for all of them.
        device: Where the networks live.
        **options: Further keywords of the algorithm's class, instead of the ones chosen here.

    Returns:
        The model: `learn(steps)`, `predict(observation)`, with flat observations.

    Raises:
        ConfigurationError: If there is no such algorithm, it cannot choose from these actions, or `hidden` is below 1.
    """
    chosen = _algorithm(algorithm, env)
    if hidden < 1:
        raise ConfigurationError(f"hidden={hidden}: must be at least 1")
    steps = steps_of_an_update(env)
    world: Any = env.unwrapped
    numbers = {"gamma": 1 - 1 / steps, **chosen.numbers(steps, world.config.total_updates), **options}
    numbers["policy_kwargs"] = {
        "net_arch": [hidden],
        "activation_fn": torch.nn.Tanh,
        **numbers.get("policy_kwargs", {}),
    }
    # the model's own seed is another one: two generators of one seed may draw the same numbers
    model = chosen.kind(
        env=_served(env), seed=int(np.random.SeedSequence(seed).generate_state(1)[0]), device=device, **numbers
    )
    assert model.env is not None
    model.env.seed(seed)
    return model


def load_model(algorithm: str, path: str | Path, env: gym.Env[Any, Any], *, device: str = "cpu") -> BaseAlgorithm:
    """Load what `model.save` wrote, to go on learning.

    What was collected since the last training step is not in it, so learning does not go on bit for bit.

    Loading unpickles parts of the zip, which can execute code: load only what you trust. (The project's own checkpoints
    never do.) `start_from` takes the networks alone, and executes nothing.

    Args:
        algorithm: Of the model that was saved.
        path: The zip.
        env: An environment like that of the model that was saved; it is reset before the first step.
        device: Where the networks live.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another algorithm or other spaces.
        ConfigurationError: If there is no such algorithm, or it cannot choose from these actions.
    """
    chosen = _algorithm(algorithm, env)
    _check_zip(path, algorithm)
    try:
        # without a seed: it would begin the saved random states anew
        return chosen.kind.load(path, env=_served(env), device=device, seed=None)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a model of another environment or version: {_line(error)}") from error


def start_from(model: BaseAlgorithm, path: str | Path) -> None:
    """Give a new model the networks and optimisers of a saved one, and nothing else.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another algorithm or other sizes.
    """
    _check_zip(path, type(model).__name__.lower())
    try:
        model.set_parameters(str(path), device=model.device)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is a model of other sizes: make this one as that one was ({_line(error)})"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_zip(path: str | Path, algorithm: str) -> None:
    if not Path(path).is_file():
        raise CheckpointError(f"no model at {path}: name the zip that a model's save() or a run wrote")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
            theirs = json.loads(file.read("data")).get("algorithm")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no model ({error}): use an earlier one") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged ({damaged}): use an earlier one")
    if theirs != algorithm:
        raise CheckpointError(f"{path} is a model of {theirs}, not of {algorithm}: name the algorithm that it is of")


def steps_of_an_update(env: gym.Env[Any, Any]) -> int:
    """K, how many steps of this environment lead to one reward; those of the free iterations count.

    Args:
        env: `PermShuffle-v0`, or another that has its `config`, under any wrappers.
    """
    world: Any = env.unwrapped
    config = world.config
    if any(isinstance(layer, MixtureAction | ActionBlock) for layer in _layers(env)):  # a step is a phase
        return 2 if config.free_iterations else 1
    return (config.free_iterations + config.iterations_per_update) * config.actions_per_iteration


def _algorithm(name: str, env: gym.Env[Any, Any]) -> _Algorithm:
    """The algorithm of that name, if it can act in the environment."""
    if name not in ALGORITHMS:
        raise ConfigurationError(f"there is no algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}")
    chosen = ALGORITHMS[name]
    if not isinstance(env.action_space, chosen.actions):
        kinds = " or ".join(kind.__name__ for kind in chosen.actions)
        raise ConfigurationError(
            f"{name} chooses from {kinds}, the actions here are {env.action_space}: {chosen.remedy}"
        )
    return chosen


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def _served(env: gym.Env[Any, Any]) -> VecEnv:
    """The environment as Stable-Baselines3 is given it."""
    if isinstance(env.unwrapped, PermShuffleEnv) and not any(isinstance(e, NormalizedReward) for e in _layers(env)):
        env = NormalizedReward(env)
    flat = _InfoOfValidations(FlattenObservation(env))
    return DummyVecEnv([lambda: flat])
