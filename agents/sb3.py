"""PPO, A2C, DQN and SAC of Stable-Baselines3, with hyperparameters that suit `PermShuffle-v0`.

```python
env = gym.make("PermShuffle-v0")
model = make_model("ppo", env, seed=0)
model.learn(96_000)  # one training run of the tiny preset: 30 updates of 3200 actions
```

`agents` does not import this module, so that only those who use it import Stable-Baselines3.
"""

import inspect
from collections.abc import Callable, Mapping
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
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.base import Tree
from agents.sb3_state import Algorithm
from permenv import CheckpointError, ConfigurationError, PermShuffleEnv, checkpoint
from permenv.wrappers import PHASE_WRAPPERS, NormalizedReward
from permenv.wrappers.base import wrappers_of

Numbers = Callable[[int, int], dict[str, Any]]  # from steps per update and updates per run to keywords of SB3

_MOST_AHEAD = 256  # actions drawn at once
_LARGEST_BUFFER = 1_000_000  # transitions, the default of Stable-Baselines3


class PPO(Algorithm, stable_baselines3.PPO):
    """PPO of Stable-Baselines3 with its own random states."""


class A2C(Algorithm, stable_baselines3.A2C):
    """A2C of Stable-Baselines3 with its own random states."""


class DQN(Algorithm, stable_baselines3.DQN):
    """DQN of Stable-Baselines3 with its own random states."""


class SAC(Algorithm, stable_baselines3.SAC):
    """SAC of Stable-Baselines3 with its own random states."""


class PolicyAhead(ActorCriticPolicy):
    """Draws many actions at once and returns them one by one while the observation stays the same.

    ŝ stays the same for thousands of steps and the policy for a rollout, so all these actions have the same
    distribution. A forward pass for every single action would lengthen a training run by more than a tenth.

    Args:
        *arguments: See Stable-Baselines3.
        ahead: Number of actions drawn at once, >= 1.
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
        """Discard the drawn actions: this method is called before and after the policy learns."""
        self._drawn = []
        super().set_training_mode(mode)


class _InfoOfValidations(gym.Wrapper[Any, Any, Any, Any]):
    """Empties the info of steps without a validation, because Stable-Baselines3 deep-copies it at every step."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not (info["validated"] or terminated or truncated):
            info = {}
        return observation, reward, terminated, truncated, info


# The hyperparameters of each algorithm where the defaults of Stable-Baselines3 do not suit. The discount is set in
# `make_model`.


def _on_policy(steps: int) -> dict[str, Any]:
    return {
        "policy": PolicyAhead,
        # A rollout is one update, so the model learns after every update of the run and no steps are left over.
        "n_steps": steps,
        # Only the last step is rewarded: with λ = 0.95 only about the last twenty actions would be credited.
        "gae_lambda": 1.0,
        # The actions of an update share ŝ and reward, so their advantages differ only by their time. Normalising them
        # to mean 0 would leave only that difference: on a bandit, nothing was learned.
        "normalize_advantage": False,
    }


def _ppo(steps: int, updates: int) -> dict[str, Any]:
    # A mini-batch is the whole rollout. There are few updates, so each has ten gradient steps.
    return {**_on_policy(steps), "batch_size": steps, "n_epochs": 10, "learning_rate": 3e-3}


def _a2c(steps: int, updates: int) -> dict[str, Any]:
    # One gradient step per update, with the optimiser and the learning rate of `Reinforce`.
    return {**_on_policy(steps), "use_rms_prop": False, "learning_rate": 1e-2}


def _dqn(steps: int, updates: int) -> dict[str, Any]:
    return {
        "policy": "MlpPolicy",
        # n-step returns over a whole update; one-step returns would credit only its last action.
        "n_steps": steps,
        # a run; of one of millions of steps, what fits into memory, and two updates at least
        "buffer_size": min(steps * updates, max(_LARGEST_BUFFER, 2 * steps)),
        "learning_starts": 0,  # the exploration schedule begins with random actions anyway
        "train_freq": steps,  # there is no reward in between
        "gradient_steps": 32,
        "learning_rate": 3e-3,
        "target_update_interval": steps,
        # Half of the actions stay random: from the few permutations of the best group alone the network learns little
        # (`experiments/studies/defaults.py`).
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
        "learning_rate": 3e-3,  # ten times the default: a run has only some hundred gradient steps
        "ent_coef": "auto_0.1",  # for the same reason it starts near its final value
    }


@dataclass(frozen=True)
class _Entry:
    kind: type[Algorithm]
    numbers: Numbers
    actions: tuple[type[spaces.Space], ...]
    remedy: str = ""


ALGORITHMS: Mapping[str, _Entry] = MappingProxyType(
    {
        "ppo": _Entry(PPO, _ppo, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)),
        "a2c": _Entry(A2C, _a2c, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)),
        "dqn": _Entry(
            DQN,
            _dqn,
            (spaces.Discrete,),
            "give it the actions of a single task, or permenv.wrappers.FlatJointAction(env) for the joint task "
            "(--actions pairs)",
        ),
        "sac": _Entry(SAC, _sac, (spaces.Box,), "give it permenv.wrappers.MixtureAction(env) (--actions mixture)"),
    }
)
"""By name, the algorithms that `make_model` can make."""


def make_model(
    algorithm: str,
    env: gym.Env[Any, Any],
    *,
    seed: int,
    hidden: int = 16,
    steps: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Algorithm:
    r"""Make a Stable-Baselines3 model for the environment, with hyperparameters that suit its rewards.

    The environment is wrapped inside: in `NormalizedReward`, unless it is already (its rewards are of the order of
    0.01), and with a flattened observation. A wrapper of yours that changes the reward goes over a `NormalizedReward`
    that you put into the stack. The model learns after each update, in the middle of the Gymnasium episode.
    Where an episode is truncated, the value of the last observation is bootstrapped; `permenv.wrappers.FiniteHorizon`
    makes its end a termination.

    With K steps per update (`steps_of_an_update`) the discount is γ = 1 - 1 / K: an action is credited with at least
    1/e of the reward of its own update, and the weight decreases by a factor 1/e for each later one. γ = 1 does not
    work with the rewards of Eq. 7, because they telescope (see `Reinforce`). If a step is a whole update, K = 1 and
    γ = 0: an update is credited with its own reward only, as in `Reinforce`. With `permenv.wrappers.ErrorReduction` a
    larger `gamma` makes sense. The actions of free iterations are ordinary steps here and are credited with the update
    that follows.

    A model draws from its own random states, seeded from `seed`: the global ones are left unchanged, and the same seed
    gives the same model bit for bit on a CPU.

    `model.save(path)` writes its whole state, with the replay buffer of DQN and SAC, as safetensors; see `load_model`.

    Args:
        algorithm: "ppo", "a2c", "dqn" or "sac". DQN needs Discrete actions: those of a single task, or
            `permenv.wrappers.FlatJointAction`. SAC needs a Box: `permenv.wrappers.MixtureAction`.
        env: `PermShuffle-v0` under any wrappers, or another environment that has its `config` and info["validated"].
        seed: Determines what the model draws, and the run that its first `learn` starts: `env.reset(seed=seed)`.
        hidden: Units of the hidden layer of each network, >= 1. Its activation is tanh: successive ŝ differ little, so
            a ReLU that is off for one may be off for all.
        steps: K, >= 1; by default `steps_of_an_update`, which knows the wrappers of permenv. Pass it under one of
            your own whose step is an update or the like.
        device: Device of the networks.
        **options: Further keywords of the algorithm's class; they override those chosen here. The replay buffer of
            `optimize_memory_usage` cannot be saved.

    Returns:
        The model, with `learn(steps)` and `predict(observation)` for flat observations.

    Raises:
        ConfigurationError: If there is no such algorithm, it does not support these actions, `hidden` or `steps` is
            below 1, or `optimize_memory_usage` is set.
    """
    chosen = _algorithm(algorithm, env)
    if hidden < 1:
        raise ConfigurationError(f"hidden={hidden}: must be at least 1")
    if steps is not None and steps < 1:
        raise ConfigurationError(f"steps={steps}: must be at least 1")
    if options.get("optimize_memory_usage"):
        raise ConfigurationError("optimize_memory_usage=True: such a replay buffer cannot be saved; leave it out")
    steps = steps_of_an_update(env) if steps is None else steps
    base_env: Any = env.unwrapped
    numbers = {"gamma": 1 - 1 / steps, **chosen.numbers(steps, base_env.config.total_updates), **options}
    policy = numbers["policy"]
    draws_ahead = isinstance(policy, type) and issubclass(policy, PolicyAhead)
    numbers["policy_kwargs"] = {
        "net_arch": [hidden],
        "activation_fn": torch.nn.Tanh,
        **({"ahead": min(steps, _MOST_AHEAD)} if draws_ahead else {}),
        **numbers.get("policy_kwargs", {}),
    }
    # The model gets another seed than the run: two generators with the same seed may draw the same numbers.
    model = chosen.kind(
        env=_wrapped(env), seed=int(np.random.SeedSequence(seed).generate_state(1)[0]), device=device, **numbers
    )
    assert model.env is not None
    model.env.seed(seed)
    return model


def options_of(algorithm: str) -> dict[str, Any]:
    """Return the keyword arguments of `make_model` that are an algorithm's, with their annotations.

    Raises:
        ConfigurationError: If there is no such algorithm.
    """
    *_, theirs = _entry(algorithm).kind.__bases__  # the class of Stable-Baselines3
    parameters = inspect.signature(theirs).parameters
    ours = ("env", "seed", "device", "optimize_memory_usage", "_init_setup_model")
    return {"hidden": int, **{name: each.annotation for name, each in parameters.items() if name not in ours}}


def load_model(
    algorithm: str, path: str | Path, env: gym.Env[Any, Any], *, device: str = "cpu", **options: Any
) -> Algorithm:
    """Make a model that continues where `model.save` was called.

    Nothing is unpickled. The steps since the last training step of PPO and A2C are not in the file.

    Args:
        algorithm: The algorithm of the saved model.
        path: What `model.save` wrote, or a checkpoint of `experiments/sb3.py`.
        env: An environment like that of the saved model; it is reset before the first step.
        device: Device of the networks.
        **options: Those that the saved model was made with, see `make_model`.

    Raises:
        CheckpointError: If there is no such file, it is damaged, or the model has another algorithm or other spaces.
        ConfigurationError: If there is no such algorithm, or it does not support these actions.
    """
    model = make_model(algorithm, env, seed=0, device=device, **options)  # the file has the random states
    assert model.env is not None
    model.env._reset_seeds()  # the run that begins is not that of seed 0
    agent = _agent_in(path)
    with checkpoint.naming(path):
        model.load_state_dict(agent)
    return model


def start_from(model: Algorithm, path: str | Path) -> None:
    """Load the networks and optimisers of a saved model, and nothing else, into a new model.

    Args:
        model: What `make_model` returned.
        path: See `load_model`.

    Raises:
        CheckpointError: If there is no such file, it is damaged, or the model has another algorithm or other sizes.
    """
    agent = _agent_in(path)
    with checkpoint.naming(path):
        model.load_networks(agent)


def _agent_in(path: str | Path) -> Tree:
    agent = checkpoint.read(path).get("agent")
    if not isinstance(agent, dict) or "networks" not in agent:
        raise CheckpointError(
            f"{path}: it holds no model: name a file that model.save() or a run of experiments/sb3.py wrote"
        )
    return agent


def steps_of_an_update(env: gym.Env[Any, Any]) -> int:
    """Return K, the number of steps per update, including those of the free iterations.

    Args:
        env: `PermShuffle-v0` under any wrappers, or another environment that has its `config`.
    """
    base_env: Any = env.unwrapped
    config = base_env.config
    if any(isinstance(wrapper, tuple(PHASE_WRAPPERS.values())) for wrapper in wrappers_of(env)):
        return config.phases_per_update
    return config.iterations_per_cycle * config.actions_per_iteration


def _algorithm(name: str, env: gym.Env[Any, Any]) -> _Entry:
    """Return the algorithm of that name, if it supports the actions of the environment."""
    chosen = _entry(name)
    if not isinstance(env.action_space, chosen.actions):
        kinds = " or ".join(kind.__name__ for kind in chosen.actions)
        raise ConfigurationError(
            f"{name} chooses from {kinds}, the actions here are {env.action_space}: {chosen.remedy}"
        )
    return chosen


def _entry(name: str) -> _Entry:
    if name not in ALGORITHMS:
        raise ConfigurationError(f"there is no algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def _wrapped(env: gym.Env[Any, Any]) -> VecEnv:
    """Return the environment as it is passed to Stable-Baselines3."""
    normalised = any(isinstance(wrapper, NormalizedReward) for wrapper in wrappers_of(env))
    if isinstance(env.unwrapped, PermShuffleEnv) and not normalised:
        env = NormalizedReward(env)
    flat = _InfoOfValidations(FlattenObservation(env))
    return DummyVecEnv([lambda: flat])
