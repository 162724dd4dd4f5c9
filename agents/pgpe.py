"""PGPE, a policy learned across runs by perturbing its parameters once an episode."""

import copy
import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.base import Tree, require
from agents.episodic import EpisodicAgent, Step, Trajectory
from agents.networks import EPSILON
from permenv.schema import FINITE, Array, Schema


class Pgpe(EpisodicAgent):
    """REINFORCE in the space of parameters, for continuous actions: a policy that is learned across runs, then frozen.

    Sehnke, Osendorfer, Rückstieß, Graves, Peters, Schmidhuber, "Parameter-exploring policy gradients", Neural Networks,
    2010, with its symmetric sampling.

    `GaussianReinforce` draws noise at every step: what an episode deviates from the policy averages out over its steps,
    and the return says little of any of them. Here the noise is added to the parameters θ of the policy and stays the
    same for a whole episode, so an episode is played by another policy, and its return is that policy's. Episodes come
    in pairs with opposite noise, +ε and -ε, and in the same run (the same network, data and validation set), so how
    much a run learns whatever the policy cancels out.

    It is meant for wrappers that leave few numbers in the observation and in the action, such as
    `permenv.wrappers.RunSummary` and `permenv.wrappers.PoolAction`, with a reward whose return is what was learned
    (`permenv.wrappers.ErrorReduction`). It learns by `update` alone, from what `collect` returns: `learn` does nothing.

    ## Update
    From P pairs with noise ±ε_p, ε_p ~ N(0, deviation² I), the direction of ascent passed to Adam is

        mean of A_p ε_p / deviation over all pairs,

    with A_p = (G_p⁺ - G_p⁻) / 2 divided by the root mean square of all P differences, and G = Σ_t γ^t r_t. It is the
    estimate of ∇ E[G] up to a positive factor. The deviation stays as it is, so what is found is best for the perturbed
    policies: where actions are clipped, too large a deviation draws the policy to the bounds. A linear policy of n
    standardised numbers acts with noise of deviation · √(n + 1).

    ## In parallel
    The episodes of the seeds 2k and 2k + 1 are a pair; the environment is reset with 2k for both. An episode depends on
    the policy and on its seed alone, so copies of the agent in any number of processes collect the same trajectories:

        >>> agent = Pgpe(env.observation_space, env.action_space, seed=0)
        >>> agent.update([collect(env, agent, seed) for seed in range(16)])
        >>> agent.deterministic = True
        >>> evaluation = collect(env, agent, seed=1000)

    Args:
        observation_space: Box, of any shape.
        action_space: Box of floats, of any shape. Its bounds are not used.
        seed: Seeds the weights of the first layer, >= 0.
        hidden: Units of the hidden layer, with tanh; 0 for actions that are linear in the standardised observation.
        deviation: Of each parameter's noise, > 0.
        learning_rate: Adam's, > 0.
        discount: γ per step, in [0, 1].

    Raises:
        ValueError: If a space is not supported or an option is out of its range.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        seed: int,
        hidden: int = 0,
        deviation: float = 0.2,
        learning_rate: float = 0.1,
        discount: float = 0.97,
    ) -> None:
        require("deviation", deviation, 0 < deviation < math.inf, "above 0")
        super().__init__(
            observation_space,
            action_space,
            seed=seed,
            hidden=hidden,
            learning_rate=learning_rate,
            discount=discount,
        )
        self.deviation = deviation
        self._perturbation = np.zeros(sum(parameter.numel() for parameter in self.network.parameters()))

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the action of the perturbed policy, or of the policy itself if `deterministic`.

        Args:
            observation: Of the shape of the observation space.

        Returns:
            float32, of the shape of the action space; it may be outside its bounds.

        Raises:
            ValueError: If the observation has another shape or is not finite.
        """
        if self.deterministic:
            return self.mean(observation).astype(np.float32)
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for parameter, noise in zip(network.parameters(), self._as_parameters(self._perturbation), strict=True):
                parameter.add_(noise)
        return self._mean_of(network, observation).astype(np.float32)

    def reseed(self, seed: int) -> int:
        """Perturb the parameters as the episode of this seed does, see `EpisodicAgent.reseed`.

        Args:
            seed: >= 0; 2k and 2k + 1 have opposite noise.

        Returns:
            2k, the seed with which the environment is to be reset; `seed` itself if `deterministic`, since without
            noise the second of a pair would repeat the first.
        """
        if self.deterministic:
            self._perturbation[:] = 0
            return seed
        pair, second = seed - seed % 2, seed % 2
        generator = np.random.default_rng(np.random.SeedSequence(pair, spawn_key=(1,)))
        noise = self.deviation * generator.standard_normal(len(self._perturbation))
        self._perturbation = -noise if second else noise
        return pair

    def trajectory(self, steps: Sequence[Step]) -> Trajectory:
        """Return the episode that this agent has just played, with its noise: 0 if `deterministic`."""
        return Trajectory.of(steps, self._perturbation)

    def update(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Improve the policy by one step of Adam.

        Args:
            episodes: At least two, played by this policy, each pair one after the other.

        Returns:
            "return" (the mean of the episodes' undiscounted returns) and "gradient" (the norm of what is ascended).

        Raises:
            ValueError: If there is no episode, two do not make a pair, or their observations or actions have another
                shape.
        """
        observations, _ = self._check(episodes)
        if len(episodes) % 2:
            raise ValueError(f"{len(episodes)} episodes are no pairs. Collect those of the seeds 2k and 2k + 1.")
        noise = np.stack([self._noise_of(*pair) for pair in zip(episodes[::2], episodes[1::2], strict=True)])
        returns = np.array([self._return(episode) for episode in episodes])
        differences = (returns[::2] - returns[1::2]) / 2
        advantages = differences / (math.sqrt(np.mean(differences**2)) + EPSILON)
        ascent = advantages @ noise / (len(noise) * self.deviation)
        self._scale.add(observations)
        self._adam.zero_grad()
        for parameter, own in zip(self.network.parameters(), self._as_parameters(ascent), strict=True):
            parameter.grad = -own
        self._adam.step()
        self._version += 1
        return {
            "return": float(np.mean([episode.rewards.sum() for episode in episodes])),
            "gradient": float(np.linalg.norm(ascent)),
        }

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        return {**super().state_dict(), "perturbation": self._perturbation.copy()}

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {**super().state_schema(), "perturbation": Array.like(self._perturbation, FINITE)}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._perturbation = state["perturbation"].copy()

    def _as_parameters(self, numbers: np.ndarray) -> list[Tensor]:
        """Split (n,) numbers into tensors of the shapes of the parameters."""
        parameters = list(self.network.parameters())
        parts = torch.as_tensor(numbers).split([parameter.numel() for parameter in parameters])
        return [part.reshape(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]

    def _noise_of(self, first: Trajectory, second: Trajectory) -> np.ndarray:
        """Return +ε of a pair, (n,)."""
        noise = first.perturbation
        same_shape = noise.shape == self._perturbation.shape
        if not (same_shape and np.array_equal(second.perturbation, -noise) and noise.any()):
            raise ValueError(
                f"The perturbations {first.perturbation.tolist()} and {second.perturbation.tolist()} are not opposite "
                f"noise of {len(self._perturbation)} parameters. Collect the episodes of the seeds 2k and 2k + 1, "
                f"with `deterministic` off."
            )
        return noise

    def _return(self, episode: Trajectory) -> float:
        return float(episode.rewards @ self.discount ** np.arange(len(episode.rewards)))
