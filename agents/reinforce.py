"""The paper's policy gradient: REINFORCE as described in section 4.1."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.base import Tree, require
from agents.groups import Learner
from agents.networks import (
    AFTER_AN_UPDATE,
    EPSILON,
    adam_schema,
    adam_state,
    copies,
    has_stepped,
    load_adam_state,
    policy_network,
    tensors_schema,
)
from permenv.config import Range
from permenv.schema import FINITE, Fields, ListOf, Number, Schema, Where

Credit = Literal["own", "sum"]  # the rewards that a head of a joint task is credited with


class Reinforce(Learner):
    """REINFORCE on groups of permutations, Eq. 9 and section 4.1.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018; the algorithm is Williams, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", 1992, the entropy term that of Mnih et al., "Asynchronous methods for deep
    reinforcement learning", 2016.

    ## Policy
    Two fully connected layers on the flattened ŝ, then a softmax over the groups. The last layer starts at zero, so
    the initial policy equals its prior: |c_j| / |Ψ|, uniform over permutations, the random policy of appendix F. The
    logits of the network then describe the policy's tilt away from its prior: log π_j = log prior_j + tilt_j. An empty
    group has prior 0 and keeps probability 0. The activation of the hidden layer is tanh: successive ŝ differ little,
    so a ReLU that an update switches off for all of them would never get a gradient again, and there are only 16 units.
    All computation is in float64, at no noticeable cost.

    ## Update
    The K actions of an "update" phase share one ŝ and one reward. Let A_t be r_t minus the moving average of the
    earlier rewards, divided by the root of the moving average of the squares of these differences, this one included.
    The rewards of PermShuffle are of the order of 0.01; without the division an entropy weight of 0.01 outweighs them.
    An outlier (a run that diverges) counts at most 1 / sqrt(1 - baseline_decay). The direction of ascent passed to Adam
    is

        A_t z_t + entropy_weight ∇H(π(. | ŝ_t)),    z_t = γ z_{t-1} + 1/√K ∇ Σ_k log π(a_k | ŝ_t).

    z is the online form of Eq. 9: r_t' contributes to every earlier update t with weight γ^(t' - t), through the
    gradient computed at t. z is reset at the end of an episode; the averages are kept.

    Adam is invariant to the factor 1/√K, but the balance with the entropy is not. The sum over K independent draws has
    a standard deviation proportional to √K, so with this factor an advantage of unit scale has the same weight against
    H for every K. With the plain sum or the mean, the useful entropy weight would depend on the batch size.

    H is the entropy over permutations (a = (x, ψ), with π(ψ) = π_j / |c_j|). It is a constant minus KL(π || prior), so
    the entropy term keeps the policy near its prior. The entropy over groups would instead pull it towards the small
    groups and over-sample their few permutations.

    ## Several tasks
    The policy of a joint task is one network: the hidden layer reads the ŝ of all T tasks, and each task has a head,
    |C| rows of the last layer with its own softmax and prior. The groups are drawn independently, so log π is the sum
    over the tasks τ, and so are entropies and divergences. The direction of ascent becomes

        Σ_τ A_τ z_τ + entropy_weight ∇ Σ_τ H_τ,

    with averages and a trace for each task. A single task is the case T = 1. `credit` selects the reward that A_τ is
    computed from:

    - "own": that of the task itself. It has less variance, because it is free of the noise of the other tasks' rewards.
    - "sum": the sum over all tasks, T times the reward. A head is then also credited with what its permutations do to
      the other tasks through the shared trunk, which "own" ignores.

    `experiments/studies/credit.py` compares the two.

    ## What the discount means here
    With equally spaced validations the reward of Eq. 7 is a second difference, r_t = g_t - g_{t-1}, where
    g_t = E_t - E_{t+1} is the reduction of the error in interval t. Hence the return from t is

        Σ_{k>=0} γ^k r_{t+k} = -g_{t-1} + (1 - γ) Σ_{k>=0} γ^k g_{t+k}.

    g_{t-1} is known before the actions of t, so γ < 1 ranks actions by their discounted future reduction of the error,
    and γ = 0 by that of their own interval. At γ = 1 the sum telescopes: the return of a run is its last reduction
    minus g_{t-1}, whatever error was reached. With the reward of `permenv.wrappers.ErrorReduction`, whose return is the
    reduction of the error itself, a γ near 1 makes sense.

    Args:
        observation_space: Box of shape (|C|, 2), see `GroupAgent`; joint task (T, |C|, 2).
        action_space: Discrete(|C|); joint task MultiDiscrete([|C|] * T).
        seed: Seeds the weights of the first layer and the actions.
        hidden: Units of the hidden layer, >= 1 (section 4.1).
        learning_rate: Adam's, > 0 (appendix B).
        discount: γ of Eq. 9 in [0, 1]. By default an update is credited with its own interval only: each later
            interval adds the noise of its reward to the estimate.
        baseline_decay: Decay of the moving average per reward, in [0, 1); 0.9 averages about ten updates. The average
            is bias-corrected like Adam's moments, so the first rewards have no extra weight. The very first reward has
            no average before it and is its own baseline, A = 0. (The first reward of a PermShuffle run is an outlier: a
            reduction, not a difference of two.)
        entropy_weight: Weight of H in nats, >= 0, against advantages of unit scale. On a contextual bandit 0.1 worked
            well at K = 8 and 64; 0.3 kept the policy near its prior, 0.03 let it become deterministic.
        credit: "own" or "sum", see above; for a single task they are the same.
        device: Device of the policy network; the actions are drawn on the CPU.

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
        learning_rate: float = 0.01,
        discount: float = 0.0,
        baseline_decay: float = 0.9,
        entropy_weight: float = 0.1,
        credit: Credit = "own",
        device: str = "cpu",
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        require("hidden", hidden, hidden >= 1, "at least 1")
        require("learning_rate", learning_rate, learning_rate > 0, "above 0")
        require("discount", discount, 0 <= discount <= 1, "in [0, 1]")
        require("baseline_decay", baseline_decay, 0 <= baseline_decay < 1, "in [0, 1)")
        require("entropy_weight", entropy_weight, entropy_weight >= 0, "at least 0")
        require("credit", credit, credit in get_args(Credit), " or ".join(get_args(Credit)))
        self.hidden = hidden
        self.discount = discount
        self.entropy_weight = entropy_weight
        self.credit = credit
        self.device = torch.device(device)
        logits = self.num_tasks * self.num_groups
        self.network = policy_network(2 * logits, hidden, logits, seed).to(self.device)
        self._parameters = dict(self.network.named_parameters())
        self._adam = torch.optim.Adam(self._parameters.values(), lr=learning_rate, eps=EPSILON)
        self._trace = {  # z_t, [tasks, *parameter]
            name: value.new_zeros(self.num_tasks, *value.shape) for name, value in self._parameters.items()
        }
        self._reward_averages = [_MovingAverage(baseline_decay) for _ in range(self.num_tasks)]
        self._square_averages = [_MovingAverage(baseline_decay) for _ in range(self.num_tasks)]  # of the advantages

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return π(. | ŝ), see `GroupAgent.probabilities`."""
        with torch.no_grad():
            log_prior, tilt = self._log_policy(observation)
            return (log_prior + tilt).exp().cpu().numpy()

    def _update(
        self, observation: np.ndarray, counts: np.ndarray, gains: dict[str, float], behaviour: np.ndarray | None
    ) -> dict[str, float]:
        """Update the policy with the reward of one update's actions (Eq. 9), see `Learner.update`.

        Actions drawn from other probabilities q are weighted individually with π(a) / q(a). A weighted score has mean
        0 as well, so if the reward is a sum over the actions, the expected direction is the on-policy one. The product
        of all K weights would be unbiased for any reward, but its variance makes it useless.

        Returns:
            "loss" (the negative of what this update alone ascends), "entropy" (over groups, nats) and "divergence"
            (KL(π || prior), nats), both before the step, "baseline" and "advantage" (as used). Joint task: the same for
            each task, "spatial/loss".
        """
        rewards = gains if self.credit == "own" else dict.fromkeys(gains, sum(gains.values()))
        log_prior, tilt = self._log_policy(observation)  # [*tasks, groups] each
        policy = (log_prior + tilt).exp()  # [*tasks, groups]
        weights = self._action_weights(counts, policy.detach(), behaviour)  # [*tasks, groups]
        log_likelihoods = (weights * tilt).sum(dim=-1).flatten()  # [tasks]: from here on a single task has an axis too
        divergences = (policy * tilt).sum(dim=-1).flatten()  # [tasks]
        entropies = torch.special.entr(policy.detach()).sum(dim=-1).flatten()  # [tasks]
        scores = [self._gradient(log_likelihood) for log_likelihood in log_likelihoods]
        divergence_gradient = self._gradient(divergences.sum())
        baselines, advantages = zip(*map(self._advantage, range(self.num_tasks), rewards.values()), strict=True)
        for name, parameter in self._parameters.items():
            trace = self._trace[name].mul_(self.discount).add_(torch.stack([score[name] for score in scores]))
            ascent = sum(advantage * z for advantage, z in zip(advantages, trace, strict=True))
            parameter.grad = self.entropy_weight * divergence_gradient[name] - ascent
        self._adam.step()
        self._adam.zero_grad()
        metrics = {}
        for task, prefix in enumerate(rewards):
            divergence, log_likelihood = divergences[task].item(), log_likelihoods[task].item()
            metrics[f"{prefix}loss"] = self.entropy_weight * divergence - advantages[task] * log_likelihood
            metrics[f"{prefix}entropy"] = entropies[task].item()
            metrics[f"{prefix}divergence"] = divergence
            metrics[f"{prefix}baseline"] = baselines[task]
            metrics[f"{prefix}advantage"] = advantages[task]
        return metrics

    def state_dict(self) -> Tree:
        """Return everything that changes, see `Agent.state_dict`."""
        return {
            **super().state_dict(),
            "network": copies(self._parameters),
            "adam": adam_state(self._adam, self._parameters),
            "trace": copies(self._trace),
            "reward_averages": [average.state_dict() for average in self._reward_averages],
            "square_averages": [average.state_dict() for average in self._square_averages],
        }

    def state_schema(self) -> dict[str, Schema]:
        """Return what the state holds, see `Agent.state_schema`."""
        return {
            **super().state_schema(),
            "network": tensors_schema(self._parameters),
            "adam": adam_schema(self._parameters),
            "trace": tensors_schema(self._trace),
            "reward_averages": ListOf(_MovingAverage.state_schema(), self.num_tasks),
            "square_averages": ListOf(_MovingAverage.state_schema(Range(0)), self.num_tasks),
        }

    def state_conditions(self) -> dict[str, Callable[[Tree], bool]]:
        """Return what the parts of the state do together, see `Agent.state_conditions`."""
        return {
            **super().state_conditions(),
            AFTER_AN_UPDATE: lambda state: all(
                has_stepped(state["adam"]) == (average["weight"] > 0) for average in state["reward_averages"]
            ),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        load_adam_state(self._adam, self._parameters, state["adam"])
        for name, trace in self._trace.items():
            trace.copy_(state["trace"][name])
        for task in range(self.num_tasks):
            self._reward_averages[task].load_state_dict(state["reward_averages"][task])
            self._square_averages[task].load_state_dict(state["square_averages"][task])

    def start_from(self, state: Tree) -> None:
        """Begin another run with what an agent has learned: its network, its optimiser and its averages.

        What belongs to the run of that agent is left out: its trace, the actions of its current update, and its
        generator. The own ones stay as they are.

        Args:
            state: What `state_dict` of the other agent returned.

        Raises:
            CheckpointError: See `Agent.load_state_dict`.
        """
        self._whole_schema().check(state, "agent")
        own = self.state_dict()
        self.load_state_dict({**state, **{name: own[name] for name in ("generator", "counts", "trace")}})

    def _signature(self) -> Tree:
        return {**super()._signature(), "hidden": self.hidden}

    def _log_policy(self, observation: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return log prior and tilt, (|C|,) or (T, |C|) each, whose sum is log π.

        The tilt is finite for empty groups too, whose log prior is -inf, so products with it contain no NaN.
        """
        log_prior = torch.as_tensor(self._fractions(observation), device=self.device).log()  # [*tasks, groups]
        flat = torch.as_tensor(observation, dtype=torch.float64, device=self.device).flatten()  # [2 * tasks * groups]
        logits = self.network(flat).view_as(log_prior)  # [*tasks, groups]
        return log_prior, logits - torch.logsumexp(log_prior + logits, dim=-1, keepdim=True)

    def _action_weights(self, counts: np.ndarray, policy: Tensor, behaviour: np.ndarray | None) -> Tensor:
        """Return the weight of each group in 1/√K Σ_k [π(a_k) / q(a_k)] log π(a_k), (|C|,) or (T, |C|)."""
        num_actions = np.sum(counts, axis=-1, keepdims=True)  # K, [*tasks, 1]
        weights = torch.as_tensor(counts / np.sqrt(num_actions), device=self.device)  # [*tasks, groups]
        if behaviour is None:
            return weights
        return torch.where(weights > 0, weights * policy / torch.as_tensor(behaviour, device=self.device), 0.0)

    def _gradient(self, value: Tensor) -> dict[str, Tensor]:
        """Return ∇ value by parameter; the graph is kept, because an update computes several gradients."""
        gradients = torch.autograd.grad(value, list(self._parameters.values()), retain_graph=True)
        return dict(zip(self._parameters, gradients, strict=True))

    def _advantage(self, task: int, reward: float) -> tuple[float, float]:
        """Return a task's baseline, from its earlier rewards, and its advantage; update the averages."""
        baseline = self._reward_averages[task].value
        self._reward_averages[task].add(reward)
        if baseline is None:
            return reward, 0.0
        advantage = reward - baseline
        mean_square = self._square_averages[task].add(advantage**2)
        return baseline, advantage / (math.sqrt(mean_square) + EPSILON)

    def _end_episode(self) -> None:
        """Reset the trace, so that no reward of the next episode is credited to this one."""
        super()._end_episode()
        for trace in self._trace.values():
            trace.zero_()


class _MovingAverage:
    """A bias-corrected exponential average: n values have the weights decay^(n-1), ..., decay, 1."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._total = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float | None:
        """The average, or None before the first value."""
        return self._total / self._weight if self._weight else None

    def add(self, value: float) -> float:
        """Add a value and return the new average."""
        self._total = self._decay * self._total + value
        self._weight = self._decay * self._weight + 1
        return self._total / self._weight

    def state_dict(self) -> Tree:
        return {"total": self._total, "weight": self._weight}

    @staticmethod
    def state_schema(values: Range = FINITE) -> Schema:
        return Where(
            Fields({"total": Number(float, values), "weight": Number(float, Range(0))}),
            {"have no total without a weight": lambda state: state["weight"] > 0 or state["total"] == 0},
        )

    def load_state_dict(self, state: Tree) -> None:
        self._total, self._weight = state["total"], state["weight"]
