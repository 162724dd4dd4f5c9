"""All |Ψ| × |X_val| predictions, exactly and without permuting a pixel: the matrix s and the error E (section 3.2).

In evaluation mode a tile's fc6 output does not depend on where the tile lies, and fc7 is linear in the stacked
tiles. So the trunk and fc6 see every tile of X_val once, and each permutation's fc7 output is a sum of n rows of a
small table (DESIGN section 5). What remains is one product with the classifier a pair, which no exact method avoids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from permenv.networks import OrderingNetwork, SpatialHead, evaluating

_CHUNK_BYTES = {
    "cpu": 2**26,
    "cuda": 2**30,
}  # of one chunk's activations: about the last-level cache, or a GPU's fill
_CHUNK_SAMPLES = 32  # of X_val in the trunk at once


@dataclass(frozen=True)
class Validation:
    """What the network makes of every permutation of every validation sample.

    Attributes:
        ratios: (|Ψ|, |X_val|) float32 in [0.5, 2], the matrix s (Eq. 3 and 4): (y_l + 1) / (y_p + 1), with y_l the
            probability of the true permutation l and y_p the largest of the others.
        correct: (|Ψ|, |X_val|) bool, whether l was the most probable; then its ratio is above 1.
        error: E in [0, 1] (Eq. 6).
    """

    ratios: np.ndarray
    correct: np.ndarray
    error: float

    @property
    def permutation_errors(self) -> np.ndarray:
        """(|Ψ|,) float64 in [0, 1]: the share of X_val on which each permutation was not recognised."""
        return 1 - self.correct.mean(axis=1)

    @property
    def finite(self) -> bool:
        """Whether every ratio is a number."""
        return bool(np.isfinite(self.ratios).all())


@torch.no_grad()
def validate(network: OrderingNetwork, task: str, pieces: Tensor, permutations: np.ndarray) -> Validation:
    """Score every permutation on every validation sample, in float32.

    The network is put into evaluation mode for the time of the call.

    Args:
        network: Φ.
        task: Whose head.
        pieces: (V, n, 3, h, w) float32 on the network's device: X_val, normalised, pieces in their true order.
        permutations: (|Ψ|, n) int, Ψ.

    Returns:
        s and E; numbers that are not finite where the weights are not.
    """
    # TF32 would keep ten bits of each factor: not enough to call this exact
    with evaluating(network), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        scores = [_score(*block) for block in _logits(network, task, pieces, permutations)]
    shape = (len(pieces), len(permutations))
    truth, other = (torch.cat(parts).view(shape).T.cpu().numpy() for parts in zip(*scores, strict=True))
    correct = truth > other
    return Validation((truth + 1) / (other + 1), correct, 1 - float(correct.mean()))


def _logits(
    network: OrderingNetwork, task: str, pieces: Tensor, permutations: np.ndarray
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (rows, |Ψ|) with their true labels (rows,), sample by sample, in the order of Ψ."""
    head = network.heads[task]
    assert isinstance(head, SpatialHead)
    count, num_pieces = permutations.shape
    order = torch.tensor(permutations, device=pieces.device)
    # a row of `places` marks the n rows (tile, position) of the table that a permutation adds up: a matrix product
    # with these ones and zeros reads the table once, where a gather reads n rows a permutation
    rows = order * num_pieces + torch.arange(num_pieces, device=pieces.device)
    places = torch.zeros(count, num_pieces**2, device=pieces.device).scatter_(1, rows, 1.0)  # [|Ψ|, n²]
    labels = torch.arange(count, device=pieces.device)
    row_bytes = 4 * (head.fc7.out_features + 3 * head.classifier.out_features)
    chunk = max(1, _CHUNK_BYTES["cpu" if pieces.device.type == "cpu" else "cuda"] // row_bytes)
    for samples in pieces.split(_CHUNK_SAMPLES):
        tables = head.place_table(network.features(samples)).flatten(1, 2)  # [v, n², fc7]
        for block in tables.split(max(1, chunk // count)):
            for part, truth in zip(places.split(chunk), labels.split(chunk), strict=True):
                # [v, l, fc7], the bias added within the product
                stacked = torch.baddbmm(head.fc7.bias, part.expand(len(block), *part.shape), block)
                yield _linear(stacked.relu_().flatten(0, 1), head.classifier), truth.repeat(len(block))


def _linear(inputs: Tensor, layer: nn.Linear) -> Tensor:
    """Apply a linear layer to (rows, features).

    On a CPU as a convolution of one pixel: the same product in the same precision, but torch gives it to oneDNN, and
    `nn.Linear` to MKL, which took two to three times as long on the AMD processor of the benchmark.
    """
    if inputs.device.type != "cpu":
        return layer(inputs)
    pixels = inputs.view(1, len(inputs), 1, -1).permute(0, 3, 1, 2)  # channels last, as the rows lie
    outputs = nn.functional.conv2d(pixels, layer.weight[:, :, None, None], layer.bias)
    return outputs.permute(0, 2, 3, 1).reshape(len(inputs), -1)


def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (rows,) of the true class and of the best other class (Eq. 2)."""
    truth = logits.gather(1, labels[:, None])
    other = logits.scatter_(1, labels[:, None], -torch.inf).amax(dim=1, keepdim=True)
    largest = torch.maximum(truth, other)
    # in place: a million logits are written once, and no memory is asked for
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True) + (truth - largest).exp()
    return ((truth - largest).exp() / total).squeeze(1), ((other - largest).exp() / total).squeeze(1)
