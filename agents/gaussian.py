"""A Gaussian policy learned across runs: REINFORCE on whole episodes, for continuous actions."""

import copy
import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

from agents.base import Transition, Tree, require
from agents.episodic import EpisodicAgent, Step, Trajectory, step_of
from agents.networks import EPSILON
from permenv.schema import FINITE, FLOAT64, Array, Fields, ListOf, Number, Row, Schema, Where

INITIAL_DEVIATION = 0.5  # of an action; spaces go from -1 to 1
LARGEST_GRADIENT = 1.0  # norm, above which a gradient is scaled down


class GaussianReinforce(EpisodicAgent):
    """REINFORCE on whole episodes, for continuous actions: a policy that is learned across runs and then frozen.

    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.

    Where `Reinforce` learns within one run, this agent learns from many short ones. It is meant for a wrapper whose
    step is a phase, such as `permenv.wrappers.PoolAction`, with a reward whose return is what was learned
    (`permenv.wrappers.ErrorReduction`) and an observation that tells the time (`permenv.wrappers.ErrorAndProgress`).

    ## Policy
    Every entry of the action is drawn from a normal distribution of its own. Their means are the network of
    `EpisodicAgent`, which standardises observations; their deviations are parameters that do not depend on the
    observation. The first policy is centred at 0, with the deviation 0.5. Actions are not clipped here, because the
    likelihood is that of the action as drawn; the wrappers clip.

    ## Update
    From n episodes, each a step-by-step record of (s_t, a_t, r_t), the direction of ascent passed to Adam is

        mean of A_t ∇ log π(a_t | s_t) over all steps of all episodes + entropy_weight ∇H,

    with A_t = G_t - b_t divided by the root mean square of all these differences, G_t = Σ_k γ^k r_{t+k}, and b_t the
    mean of G_t over the other episodes at the same t. The baseline leaves the own episode out, so it is independent of
    its actions and the estimate stays unbiased. It uses the episodes that are long enough (a run that diverges ends
    early), and is 0 if there are none. Gradients are scaled down to norm 1.

    ## In parallel
    `collect` plays an episode that depends on the policy and on the episode's seed alone. So copies of the agent in any
    number of processes collect the same trajectories:

        >>> agent = GaussianReinforce(env.observation_space, env.action_space, seed=0)
        >>> agent.update([collect(env, agent, seed) for seed in range(16)])
        >>> agent.deterministic = True
        >>> evaluation = collect(env, agent, seed=1000)

    Args:
        observation_space: Box, of any shape.
        action_space: Box of floats, of any shape. Its bounds are not used.
        seed: Seeds the weights of the first layer and the actions, >= 0.
        hidden: Units of the hidden layer, with tanh; 0 for means that are linear in the standardised observation.
        learning_rate: Adam's, > 0.
        discount: γ per step, in [0, 1].
        entropy_weight: Weight of the entropy H of an action in nats, >= 0, against advantages of unit scale. The
            default is about a fifth of the noise that the advantages leave in the gradient of a log-deviation,
            √(2 / steps), at a thousand steps per update: a weak pull against deviations that shrink by chance.
        episodes_per_update: Episodes from which `learn` calls `update`, >= 1.

    Attributes:
        deterministic: Whether `act` leaves the noise out, for evaluation. False at first; it may be changed at any time
            and is not part of the state.

    Raises:
        ValueError: If a space is not supported or an option is out of its range.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        seed: int,
        hidden: int = 16,
        learning_rate: float = 0.02,
        discount: float = 0.97,
        entropy_weight: float = 0.01,
        episodes_per_update: int = 16,
    ) -> None:
        require("entropy_weight", entropy_weight, entropy_weight >= 0, "at least 0")
        require("episodes_per_update", episodes_per_update, episodes_per_update >= 1, "at least 1")
        super().__init__(
            observation_space,
            action_space,
            seed=seed,
            hidden=hidden,
            learning_rate=learning_rate,
            discount=discount,
        )
        self.entropy_weight = entropy_weight
        self.episodes_per_update = episodes_per_update
        self._steps: list[Step] = []  # of the episode that `learn` is collecting
        self._episodes: list[Trajectory] = []  # that it has collected for the next update

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Draw an action, or return the mean if `deterministic`.

        Args:
            observation: Of the shape of the observation space.

        Returns:
            float32, of the shape of the action space; it may be outside its bounds.

        Raises:
            ValueError: If the observation has another shape or is not finite.
        """
        action = self.mean(observation)
        if not self.deterministic:
            action = action + self.deviation * self._generator.standard_normal(action.shape)
        return action.astype(np.float32)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the action: float64, of the shape of the action space."""
        return self._log_deviation.detach().exp().numpy().reshape(self._action_box.shape)

    def reseed(self, seed: int) -> int:
        """Draw from now on what the episode of this seed draws, see `EpisodicAgent.reseed`.

        Args:
            seed: >= 0; the environment is to be reset with it as well.
        """
        self._generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        return seed

    def learn(self, transition: Transition) -> dict[str, float]:
        """Collect a step, of whatever phase; after the last of `episodes_per_update` episodes, learn from them.

        Returns:
            What `update` returns; an empty dict if there was none.

        Raises:
            ValueError: If an observation, an action or a reward of the episode has another shape or is not finite.
        """
        self._steps.append(step_of(transition))
        if not transition.done:
            return {}
        self._episodes.append(Trajectory.of(self._steps))
        self._steps = []
        if len(self._episodes) < self.episodes_per_update:
            return {}
        episodes, self._episodes = self._episodes, []
        return self.update(episodes)

    def update(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Improve the policy by one step of Adam.

        Args:
            episodes: At least one, played by this policy. With one there is no baseline.

        Returns:
            "return" (the mean of the episodes' undiscounted returns), "loss" (the negative of what is ascended),
            "deviation" (the mean of the action's) and "gradient" (its norm before it is scaled down), all before the
            step.

        Raises:
            ValueError: If there is no episode, or its observations or actions have another shape.
        """
        observations, actions = self._check(episodes)
        advantages = _advantages([episode.rewards for episode in episodes], self.discount)
        advantages /= math.sqrt(np.mean(advantages**2)) + EPSILON
        self._scale.add(observations)
        deviation = self._log_deviation.exp()
        policy = Normal(self.network(torch.as_tensor(self._scale(observations))), deviation)  # [steps, entries]
        log_likelihoods = policy.log_prob(torch.as_tensor(actions)).sum(dim=1)  # [steps]
        entropies = policy.entropy().sum(dim=1)
        loss = -(torch.as_tensor(advantages) * log_likelihoods + self.entropy_weight * entropies).mean()
        self._adam.zero_grad()
        loss.backward()
        gradient = nn.utils.clip_grad_norm_(self._parameters.values(), LARGEST_GRADIENT)
        self._adam.step()
        self._version += 1
        return {
            "return": float(np.mean([episode.rewards.sum() for episode in episodes])),
            "loss": loss.item(),
            "deviation": deviation.mean().item(),
            "gradient": gradient.item(),
        }

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        return {
            **super().state_dict(),
            "steps": [list(step) for step in copy.deepcopy(self._steps)],
            "episodes": [_as_tree(episode) for episode in self._episodes],
        }

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        observation, action = self._observation_box.shape, self._action_box.shape
        step = Row((Array(FLOAT64, observation, FINITE), Array(FLOAT64, action, FINITE), Number(float)))
        episode = Where(
            Fields(
                {
                    "observations": Array(FLOAT64, (None, *observation), FINITE),
                    "actions": Array(FLOAT64, (None, *action), FINITE),
                    "rewards": Array(FLOAT64, (None,), FINITE),
                }
            ),
            {"have one of each for every step, of one step at least": _are_of_one_length},
        )
        return {**super().state_schema(), "steps": ListOf(step), "episodes": ListOf(episode)}

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self._steps = [(step[0], step[1], step[2]) for step in copy.deepcopy(state["steps"])]
        self._episodes = [Trajectory(**episode) for episode in copy.deepcopy(state["episodes"])]

    def _more_parameters(self, outputs: int) -> dict[str, nn.Parameter]:
        deviations = torch.full((outputs,), math.log(INITIAL_DEVIATION), dtype=torch.float64)
        self._log_deviation = nn.Parameter(deviations)
        return {"log_deviation": self._log_deviation}


def _are_of_one_length(arrays: Tree) -> bool:
    lengths = {len(array) for array in arrays.values()}
    return len(lengths) == 1 and 0 not in lengths


def _as_tree(episode: Trajectory) -> Tree:
    names = ("observations", "actions", "rewards")  # it has no perturbation
    return {name: getattr(episode, name).copy() for name in names}


def _advantages(rewards: Sequence[np.ndarray], discount: float) -> np.ndarray:
    """Return how far each return-to-go exceeds the mean of the other episodes' at the same step, [steps].

    Args:
        rewards: Of each episode, (S,); the lengths may differ.
        discount: γ.
    """
    longest = max(map(len, rewards))
    returns = np.stack([np.pad(own, (0, longest - len(own))) for own in rewards])  # [episodes, longest]
    for step in reversed(range(longest - 1)):
        returns[:, step] += discount * returns[:, step + 1]
    reached = np.arange(longest) < np.array([[len(own)] for own in rewards])
    others = np.maximum(reached.sum(axis=0) - 1, 1)  # where there are none, the sum of their returns is 0
    baselines = (returns.sum(axis=0) - returns) / others  # a return past an episode's end is 0
    return (returns - baselines)[reached]  # episode by episode
