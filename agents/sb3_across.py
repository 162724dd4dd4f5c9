"""PPO, A2C and SAC of Stable-Baselines3 for policies that are learned across runs.

`agents.sb3.make_model` learns within one run. Here a model learns from whole episodes of several environments at once,
in processes of their own, with observations and rewards standardised over all episodes.

`agents` does not import this module, so that only those who use it import Stable-Baselines3.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from agents.base import Agent, Tree
from agents.networks import LARGEST_INPUT
from agents.sb3 import ALGORITHMS, Algorithm
from permenv.config import Range
from permenv.schema import FINITE, FLOAT64, Array, Fields, Number, Schema

_BATCHES = 4  # of an epoch of PPO


def _ppo(steps: int, environments: int) -> dict[str, Any]:
    batch = max(2, steps // _BATCHES)
    return {"n_steps": steps // environments, "batch_size": batch, "n_epochs": 10, "learning_rate": 3e-3}


def _a2c(steps: int, environments: int) -> dict[str, Any]:
    return {"n_steps": steps // environments, "use_rms_prop": False, "learning_rate": 1e-2, "gae_lambda": 0.95}


def _sac(steps: int, environments: int) -> dict[str, Any]:
    return {
        "learning_starts": steps,  # random until then
        "train_freq": steps // environments,
        "gradient_steps": steps,
        "learning_rate": 1e-3,
        "ent_coef": "auto_0.1",
    }


NUMBERS: Mapping[str, Callable[[int, int], dict[str, Any]]] = MappingProxyType({"ppo": _ppo, "a2c": _a2c, "sac": _sac})
"""By algorithm, its hyperparameters, from the steps between two updates, over all environments, and their number."""


def make_vector_model(
    algorithm: str,
    environments: Sequence[Callable[[], gym.Env]],
    *,
    steps: int,
    seed: int,
    first_episode: int,
    hidden: int = 16,
    discount: float = 0.97,
    processes: bool = False,
    **options: Any,
) -> Algorithm:
    """Make a model that learns from several environments at once.

    Args:
        algorithm: One of `NUMBERS`.
        environments: Functions that make them; picklable if they run in processes. Observations and actions are boxes.
        steps: Steps between two updates of the policy, over all environments; a multiple of their number.
        seed: Decides the networks and what the model draws.
        first_episode: Seed of the first environment's first reset; those of the others follow. Later resets continue
            their generators.
        hidden: Units of the hidden layer of each network; 0 for linear ones.
        discount: γ of a step.
        processes: Whether each environment gets a process of its own.
        **options: Further keywords of the algorithm's class.

    Returns:
        The model. `model.get_env()` is to be closed.
    """
    vector: VecEnv = SubprocVecEnv(list(environments), "spawn") if processes else DummyVecEnv(list(environments))
    model = _make(algorithm, VecNormalize(vector, clip_obs=LARGEST_INPUT, gamma=discount), steps, seed, hidden, options)
    vector.seed(first_episode)
    return model


def scale_of(model: Algorithm) -> Tree:
    """Return what observations and rewards are standardised with, for `load_scale` and `FrozenModel`."""
    normalised = model.get_vec_normalize_env()
    assert normalised is not None
    scales = {"observation": normalised.obs_rms, "return": normalised.ret_rms}
    # the observations are no dict, whose scale would be one
    return {
        name: {"mean": np.array(each.mean), "var": np.array(each.var), "count": float(each.count)}
        for name, each in scales.items()
        if isinstance(each, RunningMeanStd)
    }


def load_scale(model: Algorithm, scale: Any) -> None:
    """Continue with what `scale_of` returned.

    Raises:
        CheckpointError: If it is something else, or of other observations.
    """
    normalised = model.get_vec_normalize_env()
    assert normalised is not None
    _scale_schema(normalised.observation_space).check(scale, "scale")
    normalised.obs_rms = _restored(scale["observation"])  # type: ignore[assignment]  # see `scale_of`
    normalised.ret_rms = _restored(scale["return"])


class FrozenModel(Agent):
    """A trained model that plays the means of its actions.

    Args:
        algorithm: One of `NUMBERS`.
        state: What `model.state_dict` returned; only its networks are used.
        scale: What `scale_of` returned.
        env: An environment with the spaces that the model was trained with; it is not stepped.
        hidden: As the model was made.

    Raises:
        CheckpointError: If it is the state of another model, or no such scale.
    """

    def __init__(self, algorithm: str, state: Tree, scale: Any, env: gym.Env, *, hidden: int) -> None:
        super().__init__(env.observation_space, env.action_space, seed=0)
        self._model = _make(algorithm, DummyVecEnv([lambda: env]), 2, 0, hidden, {})
        self._model.load_networks(state)
        _scale_schema(env.observation_space).check(scale, "scale")
        self._scale = _restored(scale["observation"])

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the mean action."""
        # as VecNormalize does
        standardised = (observation - self._scale.mean) / np.sqrt(self._scale.var + 1e-8)
        action, _ = self._model.predict(
            standardised.clip(-LARGEST_INPUT, LARGEST_INPUT).astype(np.float32), deterministic=True
        )
        return action


def _make(algorithm: str, env: VecEnv, steps: int, seed: int, hidden: int, options: Mapping[str, Any]) -> Algorithm:
    gamma = {"gamma": env.gamma} if isinstance(env, VecNormalize) else {}
    return ALGORITHMS[algorithm].kind(
        "MlpPolicy",
        env,
        # The model gets another seed than the runs: two generators with the same seed may draw the same numbers.
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        device="cpu",
        policy_kwargs={"net_arch": [hidden] if hidden else [], "activation_fn": torch.nn.Tanh},
        **{**NUMBERS[algorithm](steps, env.num_envs), **gamma, **options},
    )


def _scale_schema(observation_space: gym.Space) -> Schema:
    """What `scale_of` returns for such observations."""

    def of(shape: tuple[int, ...]) -> Schema:
        return Fields(
            {
                "mean": Array(FLOAT64, shape, FINITE),
                "var": Array(FLOAT64, shape, Range(0)),
                "count": Number(float, Range(0)),
            }
        )

    return Fields({"observation": of(observation_space.shape or ()), "return": of(())})


def _restored(scale: Tree) -> RunningMeanStd:
    found = RunningMeanStd(shape=np.shape(scale["mean"]))
    found.mean, found.var, found.count = np.array(scale["mean"]), np.array(scale["var"]), scale["count"]
    return found
