"""From the matrix s to the observation: groups of permutations and their summary ŝ (section 3.2, Eq. 10)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

LOWEST_RATIO, HIGHEST_RATIO = 0.5, 2.0  # of Eq. 3


def preload() -> None:
    """Import K-means, so that the first clustering does not have to: it takes most of a second."""
    import sklearn.cluster  # noqa: F401


def group_permutations(ratios: np.ndarray, num_groups: int, seed: int) -> np.ndarray:
    """Group the permutations by K-means on the rows of s, hardest group first.

    Groups are numbered in ascending order of their median ratio, so that an action means the same after every
    clustering. Where s has fewer different rows than groups, the last groups are empty.

    Args:
        ratios: (|Ψ|, |X_val|), the matrix s.
        num_groups: |C|, at most |Ψ|.
        seed: Of the K-means initialisation.

    Returns:
        (|Ψ|,) int64, the group of each permutation, 0 to |C| - 1.
    """
    from sklearn.cluster import KMeans  # see `preload`
    from sklearn.exceptions import ConvergenceWarning

    # one thread: with more, the scheduler decides the order of summation, and so the last bit
    with _thread_pools().limit(limits=1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer groups than asked for: see above
        found = KMeans(num_groups, n_init=1, random_state=seed).fit_predict(ratios)
    names = np.unique(found)
    medians = [np.median(ratios[found == name]) for name in names]
    hardest_first = names[np.argsort(medians, kind="stable")]
    rank = np.empty(found.max() + 1, dtype=np.int64)
    rank[hardest_first] = np.arange(len(names))
    return rank[found]


def summarise(ratios: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Describe each group by its size and its median ratio: ŝ (Eq. 10).

    An empty group has fraction 0 and repeats the median of the easiest group, so that medians ascend over all rows.

    Args:
        ratios: (|Ψ|, |X_val|), the matrix s.
        groups: (|Ψ|,) int, from `group_permutations`.
        num_groups: |C|.

    Returns:
        (|C|, 2) float32: column 0 the fraction |c_j| / |Ψ| in [0, 1], column 1 the median in [0.5, 2].
    """
    summary = np.zeros((num_groups, 2), dtype=np.float32)
    for group in range(num_groups):
        members = groups == group
        if members.any():
            summary[group] = members.mean(), np.median(ratios[members])
        else:
            summary[group, 1] = summary[group - 1, 1]
    summary[:, 1] = summary[:, 1].clip(LOWEST_RATIO, HIGHEST_RATIO)  # rounding must not leave the observation space
    return summary


def observe(ratios: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray], num_groups: int) -> np.ndarray:
    """Describe the groups of all tasks, as the environment's observation does.

    Args:
        ratios: By task, (|Ψ|, |X_val|), the matrix s.
        groups: By task, (|Ψ|,) int, from `group_permutations`.
        num_groups: |C|.

    Returns:
        ŝ of `summarise`, (|C|, 2) float32; of several tasks (tasks, |C|, 2), in the order of `ratios`.
    """
    states = [summarise(each, groups[task], num_groups) for task, each in ratios.items()]
    return states[0] if len(states) == 1 else np.stack(states)


def group_members(groups: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """List the permutations that each action draws from; an empty group stands for the easiest one that is not.

    Args:
        groups: (|Ψ|,) int, from `group_permutations`: empty groups come last.
        num_groups: |C|.

    Returns:
        |C| arrays of int64 indices into Ψ, none of them empty.
    """
    return [np.flatnonzero(groups == min(group, groups.max())) for group in range(num_groups)]


def draw_members(members: list[np.ndarray], chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a permutation uniformly from the group chosen for each sample (Algorithm 1, line 7).

    Args:
        members: From `group_members`.
        chosen: (B,) int, a group a sample.
        rng: Source of the draws.

    Returns:
        (B,) int64 indices into Ψ.
    """
    sizes = np.array([len(group) for group in members])
    first = np.cumsum(sizes) - sizes  # where each group begins in the list of all
    return np.concatenate(members)[first[chosen] + rng.integers(sizes[chosen])]


def pool_probabilities(fractions: np.ndarray, share: float | np.ndarray, *, hardest_first: bool = False) -> np.ndarray:
    """Give each group its part of a pool: the easiest `share` of Ψ, drawn from uniformly.

    A group that is only partly inside the pool counts with that part. It is not determined which of its permutations
    are inside, so all of them have the same, smaller probability.

    Args:
        fractions: (..., |C|), the sizes |c_j| / |Ψ| of the groups, hardest first; rows sum to 1.
        share: Share of Ψ in the pool, in (0, 1]: a number, or (...) with one for each row.
        hardest_first: Whether the pool is the hardest `share` of Ψ instead.

    Returns:
        (..., |C|) float64, rows sum to 1: `fractions` at share 1; 0 for a group that is empty or outside the pool.
    """
    order = slice(None, None, 1 if hardest_first else -1)  # in which groups enter the pool; its own inverse
    entering = fractions[..., order]
    before = np.cumsum(entering, axis=-1) - entering
    inside = np.clip(np.asarray(share)[..., None] - before, 0, entering)[..., order]
    return inside / inside.sum(axis=-1, keepdims=True)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # finding the loaded libraries takes longer than clustering
