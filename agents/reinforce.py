"""The paper's policy gradient: REINFORCE with everything of section 4.1."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Learner, Tree, require

Credit = Literal["own", "sum"]  # which of a joint task's gains a head answers for
EPSILON = 1e-8  # added to what is divided by (Adam's default): advantages of rounding errors alone stay small


class Reinforce(Learner):
    """REINFORCE on groups of permutations, Eq. 9 and section 4.1.

    Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
    ECCV 2018; the algorithm is Williams, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", 1992, the entropy term that of Mnih et al., "Asynchronous methods for deep
    reinforcement learning", 2016.

    ## Policy
    Two fully connected layers on the flattened ŝ, softmax over the groups. The last layer starts at zero, so
    that the first policy is exactly its prior: with `size_prior` uniform over permutations, the random policy
    of appendix F; without, uniform over the groups that are not empty. The network's logits then say how the
    policy leans away from its prior: log π_j = log prior_j + lean_j. An empty group has prior 0 and keeps it.
    The hidden layer is a tanh: successive ŝ differ little, so a ReLU that an update once switches off for all
    of them gets no gradient again, and 16 units are few. Everything is float64, which costs nothing here.

    ## Update
    The K actions of an "update" phase share one ŝ and one reward. With A_t = r_t minus the moving average of
    the earlier rewards, the direction of ascent handed to Adam is

        A_t z_t + entropy_weight ∇H(π(. | ŝ_t)),    z_t = γ z_{t-1} + 1/√K ∇ Σ_k log π(a_k | ŝ_t).

    z is Eq. 9 read online: r_t' reaches every earlier update t with weight γ^(t' - t), by the gradient that
    was taken then. z does not outlive an episode; the averages do.

    Adam does not see the factor 1/√K, but the balance with the entropy does. K independent draws scatter by √K about
    their expectation, so with it an advantage of unit scale weighs the same against H whatever K is; with the plain
    sum, or the mean, the useful entropy weight would change with every batch size.

    H is the entropy of the distribution that the prior makes uniform: over permutations (a = (x, ψ), and
    π(ψ) = π_j / |c_j|) with `size_prior`, over groups without. Either way it is a constant minus
    KL(π || prior), so the entropy term holds the policy at its prior. The entropy over groups would pull a
    size-aware policy to the small groups instead, and drill their few permutations.

    ## Several tasks
    A joint task's policy is one network: the hidden layer reads the ŝ of all T tasks, and each task has a head, |C|
    rows of the last layer with a softmax and a prior of their own. The groups are drawn independently, so log π is the
    sum over the tasks τ, and so are entropies and divergences. The direction of ascent becomes

        Σ_τ A_τ z_τ + entropy_weight ∇ Σ_τ H_τ,

    with averages and a trace for each task. A single task is T = 1. `credit` says which gain A_τ is made of:

    - "own": the task's own. The noise of the other tasks' gains is not in it, so it has less variance.
    - "sum": the sum of all tasks', the reward times T. A head is also credited for what its permutations do to
      the other tasks through the trunk that they share, which "own" does not see.

    Which of the two is the default is measured by `experiments/credit.py`.

    ## What the discount means here
    With equally spaced validations the reward of Eq. 7 is a second difference, r_t = g_t - g_{t-1}, where
    g_t = E_t - E_{t+1} is how much interval t lowered the error. Hence the return from t is

        Σ_{k>=0} γ^k r_{t+k} = -g_{t-1} + (1 - γ) Σ_{k>=0} γ^k g_{t+k}.

    g_{t-1} is settled before the actions of t, so γ < 1 ranks actions by their discounted future reduction
    of the error: γ = 0 by that of their own interval. At γ = 1 the gains telescope away: a run of n updates
    returns its last gain minus g_{t-1}, which says nothing of the error reached.

    Args:
        observation_space: Box of shape (|C|, 2), see `Agent`; joint (T, |C|, 2).
        action_space: Discrete(|C|); joint MultiDiscrete([|C|] * T).
        seed: Seeds the first layer's weights and the actions.
        hidden: Units of the hidden layer, >= 1 (section 4.1).
        learning_rate: Adam's, > 0 (appendix B).
        discount: γ of Eq. 9 in [0, 1]. By default an update is credited with its own interval alone: each
            later interval adds the noise of its reward to what is known of the earlier actions.
        baseline_decay: Share of the moving average that one more reward leaves in place, in [0, 1); 0.9
            averages about ten updates. It is corrected for its start as Adam's moments are: the first rewards
            weigh no more than they would later. The very first has no average before it and is its own
            baseline, A = 0. (PermShuffle's first reward is a gain, not a second difference: an outlier.)
        entropy_weight: Of H in nats, >= 0, against advantages of unit scale (see `normalise`). On a contextual bandit
            0.1 served well at K = 8 and 64; 0.3 held the policy near its prior, 0.03 let it become deterministic.
        size_prior: Whether the prior is |c_j| / |Ψ| rather than uniform over the groups.
        normalise: Whether advantages are divided by the root of the moving average of their squares, this one
            included. PermShuffle's rewards are of the order 0.01; undivided, an entropy weight of 0.01
            outweighs them. An outlier (a run that diverges) counts at most 1 / sqrt(1 - baseline_decay).
        credit: "own" or "sum", see above; the same for a single task.
        device: Where the policy network lives; the actions are drawn on the CPU.

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
        size_prior: bool = True,
        normalise: bool = True,
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
        self.size_prior = size_prior
        self.normalise = normalise
        self.credit = credit
        self.device = torch.device(device)
        logits = self.num_tasks * self.num_groups
        self.network = _policy_network(2 * logits, hidden, logits, seed).to(self.device)
        self._parameters = dict(self.network.named_parameters())
        self._adam = torch.optim.Adam(self._parameters.values(), lr=learning_rate, eps=EPSILON)
        self._trace = {  # z_t, [tasks, *parameter]
            name: value.new_zeros(self.num_tasks, *value.shape) for name, value in self._parameters.items()
        }
        self._reward_averages = [_MovingAverage(baseline_decay) for _ in range(self.num_tasks)]
        self._square_averages = [_MovingAverage(baseline_decay) for _ in range(self.num_tasks)]  # of the advantages

    def probabilities(self, observation: np.ndarray) -> np.ndarray:
        """Return π(. | ŝ), see `Agent.probabilities`."""
        with torch.no_grad():
            log_prior, lean = self._log_policy(observation)
            return (log_prior + lean).exp().cpu().numpy()

    def _update(
        self, observation: np.ndarray, counts: np.ndarray, gains: dict[str, float], behaviour: np.ndarray | None
    ) -> dict[str, float]:
        """Step the policy by the reward of one update's actions (Eq. 9), see `Learner.update`.

        Actions that other probabilities q drew are weighted one by one with π(a) / q(a). A weighted score has
        mean 0 as well, so where the reward is a sum over the actions the expected direction is the on-policy
        one; the product of all K weights would be right for any reward, with a useless variance.

        Returns:
            "loss" (minus what this update alone ascends), "entropy" (over groups, nats), "divergence"
            (KL(π || prior), nats), both before the step, "baseline" and "advantage" (as used). Joint: the same of
            every task, "spatial/loss".
        """
        rewards = gains if self.credit == "own" else dict.fromkeys(gains, sum(gains.values()))
        log_prior, lean = self._log_policy(observation)  # [*tasks, groups] each
        policy = (log_prior + lean).exp()  # [*tasks, groups]
        weights = self._action_weights(counts, policy.detach(), behaviour)  # [*tasks, groups]
        log_likelihoods = (weights * lean).sum(dim=-1).flatten()  # [tasks], from here on one for a single task too
        divergences = (policy * lean).sum(dim=-1).flatten()  # [tasks]
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
        """Return everything that moves, see `Agent.state_dict`."""
        return {
            **super().state_dict(),
            "network": _copies(self._parameters),
            "adam": {name: _copies(self._adam.state.get(p, {})) for name, p in self._parameters.items()},
            "trace": _copies(self._trace),
            "reward_averages": [average.state_dict() for average in self._reward_averages],
            "square_averages": [average.state_dict() for average in self._square_averages],
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continue where the state was taken, see `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        # Copies, for Adam would go on in the given tensors themselves; there are none before the first step.
        moments = [_copies(state["adam"][name]) for name in self._parameters]
        self._adam.load_state_dict(
            {
                "state": {index: moment for index, moment in enumerate(moments) if moment},
                "param_groups": self._adam.state_dict()["param_groups"],
            }
        )
        for name, trace in self._trace.items():
            trace.copy_(state["trace"][name])
        for task in range(self.num_tasks):
            self._reward_averages[task].load_state_dict(state["reward_averages"][task])
            self._square_averages[task].load_state_dict(state["square_averages"][task])

    def _signature(self) -> Tree:
        return {**super()._signature(), "hidden": self.hidden}

    def _log_policy(self, observation: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return log prior and lean, (|C|,) or (T, |C|) each, whose sum is log π.

        The lean is finite for empty groups too, whose log prior is -inf, so products with it have no NaN.
        """
        log_prior = torch.as_tensor(self._prior(observation), device=self.device).log()  # [*tasks, groups]
        flat = torch.as_tensor(observation, dtype=torch.float64, device=self.device).flatten()  # [2 * tasks * groups]
        logits = self.network(flat).view_as(log_prior)  # [*tasks, groups]
        return log_prior, logits - torch.logsumexp(log_prior + logits, dim=-1, keepdim=True)

    def _prior(self, observation: np.ndarray) -> np.ndarray:
        """Return the policy that all logits equal stand for, (|C|,) or (T, |C|), 0 for empty groups."""
        fractions = self._fractions(observation)
        return fractions if self.size_prior else (fractions > 0) / np.count_nonzero(fractions, axis=-1, keepdims=True)

    def _action_weights(self, counts: np.ndarray, policy: Tensor, behaviour: np.ndarray | None) -> Tensor:
        """Return each group's weight in 1/√K Σ_k [π(a_k) / q(a_k)] log π(a_k), (|C|,) or (T, |C|)."""
        num_actions = np.sum(counts, axis=-1, keepdims=True)  # K, [*tasks, 1]
        weights = torch.as_tensor(counts / np.sqrt(num_actions), device=self.device)  # [*tasks, groups]
        if behaviour is None:
            return weights
        return torch.where(weights > 0, weights * policy / torch.as_tensor(behaviour, device=self.device), 0.0)

    def _gradient(self, value: Tensor) -> dict[str, Tensor]:
        """Return ∇ value by parameter; the graph stays, for an update asks for several."""
        gradients = torch.autograd.grad(value, list(self._parameters.values()), retain_graph=True)
        return dict(zip(self._parameters, gradients, strict=True))

    def _advantage(self, task: int, reward: float) -> tuple[float, float]:
        """Return a task's baseline, from the earlier rewards alone, and its advantage; take the reward in."""
        baseline = self._reward_averages[task].value
        self._reward_averages[task].add(reward)
        if baseline is None:
            return reward, 0.0
        advantage = reward - baseline
        if self.normalise:
            mean_square = self._square_averages[task].add(advantage**2)
            advantage /= math.sqrt(mean_square) + EPSILON
        return baseline, advantage

    def _end_episode(self) -> None:
        """Credit no later reward to what this episode did."""
        super()._end_episode()
        for trace in self._trace.values():
            trace.zero_()


class _MovingAverage:
    """An exponential average that is corrected for its start: n values weigh decay^(n-1), ..., decay, 1."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._total = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float | None:
        """The average, None before the first value."""
        return self._total / self._weight if self._weight else None

    def add(self, value: float) -> float:
        """Take a value in and return the average with it."""
        self._total = self._decay * self._total + value
        self._weight = self._decay * self._weight + 1
        return self._total / self._weight

    def state_dict(self) -> Tree:
        return {"total": self._total, "weight": self._weight}

    def load_state_dict(self, state: Tree) -> None:
        self._total, self._weight = state["total"], state["weight"]


def _policy_network(inputs: int, hidden: int, groups: int, seed: int) -> nn.Sequential:
    """Return two layers, the first uniform in ±1/sqrt(inputs) (torch's own choice), the second zero."""
    generator = torch.Generator().manual_seed(seed)
    # A layer that initialises itself would draw from the global generator.
    first = nn.utils.skip_init(nn.Linear, inputs, hidden, dtype=torch.float64)
    last = nn.utils.skip_init(nn.Linear, hidden, groups, dtype=torch.float64)
    bound = 1 / math.sqrt(inputs)
    for parameter in first.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(OrderedDict(first=first, tanh=nn.Tanh(), last=last))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().cpu() for name, tensor in tensors.items()}
