"""Exact predictions for all |Ψ| × |X_val| pairs without permuting pixels: the matrix s and the error E (section 3.2).

In evaluation mode a piece's features do not depend on its position: the trunk processes every piece of X_val once, and
each head computes the logits of all permutations from these features (`permenv.heads`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from permenv.distributed import ALONE, Ranks
from permenv.heads import OrderingHead
from permenv.networks import OrderingNetwork, eval_mode
from permenv.torch_state import default_torch_state

_CHUNK_SAMPLES = 32  # of X_val in the trunk at once


@dataclass(frozen=True)
class Validation:
    """The network's predictions for every permutation of every validation sample.

    Attributes:
        ratios: (|Ψ|, |X_val|) float32 in [0.5, 2], the matrix s (Eq. 3 and 4): (y_l + 1) / (y_p + 1), with y_l the
            probability of the true permutation l and y_p the largest of the others.
        correct: (|Ψ|, |X_val|) bool, whether l was the most probable; then its ratio is above 1, or 1 where
            float32 cannot tell the difference.
        error: E in [0, 1] (Eq. 6).
        cross_entropy: Mean of -log y_l over all pairs, in nats; log |Ψ| for a uniform guess.
    """

    ratios: np.ndarray
    correct: np.ndarray
    error: float
    cross_entropy: float

    @property
    def permutation_errors(self) -> np.ndarray:
        """(|Ψ|,) float64 in [0, 1]: the share of X_val on which each permutation was not recognised."""
        return 1 - self.correct.mean(axis=1)

    @property
    def finite(self) -> bool:
        """Whether every ratio is a number, and the cross-entropy too."""
        return bool(np.isfinite(self.ratios).all() and np.isfinite(self.cross_entropy))


@default_torch_state()
def validate(
    network: OrderingNetwork,
    task: str,
    pieces: Tensor,
    permutations: np.ndarray,
    ranks: Ranks = ALONE,
) -> Validation:
    """Score every permutation of every sample.

    Args:
        network: Φ; it is in evaluation mode during the call.
        task: Name of the task whose head is used.
        pieces: (V, n, *piece) float32 on the network's device: X_val, or of several ranks this one's shard of it,
            normalised, pieces in their true order.
        permutations: (|Ψ|, n) int, Ψ.
        ranks: The processes that share X_val.

    Returns:
        s and E, of all of X_val; not finite where the weights are not.
    """
    scores = [_score(*block) for block in all_permutation_logits(network, task, pieces, permutations)]
    shape = (len(pieces), len(permutations))
    truth, other, negative_log_likelihood = (
        ranks.gather(torch.cat(parts).view(shape)).T.cpu().numpy() for parts in zip(*scores, strict=True)
    )
    correct = truth > other
    return Validation(
        ratios=(truth + 1) / (other + 1),
        correct=correct,
        error=1 - float(correct.mean()),
        cross_entropy=float(negative_log_likelihood.mean(dtype=np.float64)),
    )


@torch.no_grad()
def all_permutation_logits(
    network: OrderingNetwork, task: str, pieces: Tensor, permutations: np.ndarray
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of every permutation of every sample, with the labels.

    Args:
        network: Φ; it is in evaluation mode during the call.
        task: Name of the task whose head is used.
        pieces: (V, n, *piece) float32 on the network's device, normalised, pieces in their true order.
        permutations: (|Ψ|, n) int, Ψ.

    Yields:
        Logits (rows, |Ψ|) and true labels (rows,), sample by sample, in the order of Ψ, in chunks of any length.
    """
    head, row = network.heads[task], 0
    assert isinstance(head, OrderingHead)
    with eval_mode(network):
        for samples in pieces.split(_CHUNK_SAMPLES):
            for logits in head.all_permutation_logits(network.features(samples), permutations):
                yield logits, torch.arange(row, row + len(logits), device=logits.device) % len(permutations)
                row += len(logits)


@torch.no_grad()
def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (rows,) of the true class and of the best other class (Eq. 2), and -log of the former."""
    truth = logits.gather(1, labels[:, None])
    other = logits.scatter_(1, labels[:, None], -torch.inf).amax(dim=1, keepdim=True)
    largest = torch.maximum(truth, other)
    # in place: a million logits are written once, and no memory is asked for
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True) + (truth - largest).exp()
    scores = (truth - largest).exp() / total, (other - largest).exp() / total, total.log() - (truth - largest)
    return tuple(score.squeeze(1) for score in scores)  # type: ignore[return-value]  # three of them
