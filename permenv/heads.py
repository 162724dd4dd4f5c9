"""Ordering heads: from the pool5 features of a sample's pieces to one logit φ_l per permutation (Fig. 1C, appendix B).

In training, `forward` receives shuffled pieces. Validation needs the logits of *all* permutations of every sample:
`all_permutation_logits` returns exactly what `forward` would return for the features in each order, but computes what
several permutations have in common only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

# bytes of one chunk's activations: about the last-level cache of a CPU, or enough to keep a GPU busy
_CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**30}

_SMALLEST_VARIANCE = 1e-3  # of a feature over a sample's frames: constant features are not amplified


class OrderingHead(nn.Module):
    """A classifier of the permutation that was applied to its input.

    A head of your own defines `forward` and its last layer, `classifier`. The inherited `all_permutation_logits` calls
    `forward` for every permutation; override it where permutations share work.
    """

    classifier: nn.Linear

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pool5 features (B, n, features) in their shuffled order."""
        raise NotImplementedError

    def all_permutation_logits(self, features: Tensor, permutations: np.ndarray) -> Iterator[Tensor]:
        """Yield the logits of every permutation of every sample.

        Args:
            features: (V, n, features) pool5 features of pieces in their true order.
            permutations: (|Ψ|, n) int, Ψ.

        Yields:
            (rows, |Ψ|) each: all pairs, sample by sample, in the order of Ψ, in chunks of any length. Each
            has memory of its own, since the caller overwrites it.
        """
        order = torch.tensor(permutations, device=features.device)
        for sample in features:
            yield self(sample[order])


HeadFactory = Callable[[int], OrderingHead]  # takes the number of features of a piece


class SpatialHead(OrderingHead):
    """fc6 for every tile, stacked in order, fc7, classifier (Fig. 1C).

    Args:
        features: Length of a tile's flat pool5 features.
        num_pieces: n, tiles a sample.
        num_permutations: |Ψ|, number of logits.
        fc6: Width of the layer that is applied to each tile.
        fc7: Width of the layer that sees all tiles.
    """

    def __init__(self, features: int, num_pieces: int, num_permutations: int, fc6: int, fc7: int):
        super().__init__()
        self.fc6 = nn.Sequential(nn.Linear(features, fc6), nn.ReLU())
        self.fc7 = nn.Linear(num_pieces * fc6, fc7)
        self.classifier = nn.Linear(fc7, num_permutations)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pool5 features (B, n, features) in their shuffled order."""
        return self.classifier(self.fc7(self.fc6(features).flatten(1)).relu_())

    def all_permutation_logits(self, features: Tensor, permutations: np.ndarray) -> Iterator[Tensor]:
        """Yield the logits of every permutation of every sample, see `OrderingHead.all_permutation_logits`.

        A tile's fc6 output does not depend on where the tile lies, and fc7 is linear in the stacked tiles: fc7's
        output is its bias plus n rows of a table of n² rows a sample.
        """
        count, num_pieces = permutations.shape
        order = torch.tensor(permutations, device=features.device)
        # a row of `places` marks the n rows (tile, position) of the table that a permutation adds up: a matrix product
        # with these ones and zeros reads the table once, where a gather reads n rows a permutation
        rows = order * num_pieces + torch.arange(num_pieces, device=features.device)
        places = features.new_zeros(count, num_pieces**2).scatter_(1, rows, 1.0)  # [|Ψ|, n²]
        chunk = _rows_of(4 * (self.fc7.out_features + 3 * self.classifier.out_features), features.device)
        tables = self._place_table(features).flatten(1, 2)  # [V, n², fc7]
        for block in tables.split(max(1, chunk // count)):
            for part in places.split(chunk):
                # [v, l, fc7], the bias added within the product
                stacked = torch.baddbmm(self.fc7.bias, part.expand(len(block), *part.shape), block)
                yield _linear(stacked.relu_().flatten(0, 1), self.classifier.weight, self.classifier.bias)

    def _place_table(self, features: Tensor) -> Tensor:
        """(V, n, n, fc7): entry [v, i, k] is what tile i adds to fc7 when it lies at position k."""
        tiles = self.fc6(features)  # [V, n, fc6]
        positions = self.fc7.weight.split(tiles.shape[2], dim=1)  # n × [fc7, fc6], views: no copy of 151 MB
        return torch.stack([tiles @ weight.T for weight in positions], dim=2)


class TemporalHead(OrderingHead):
    """fc6 for every frame, an LSTM over the frames in their shuffled order, classifier on its last output (Fig. 1C).

    Args:
        features: Length of a frame's flat pool5 features.
        num_permutations: |Ψ|, number of logits.
        fc6: Width of the layer that is applied to each frame.
        lstm: Hidden units of the recurrent layer.
        relative: Whether fc6 sees each feature relative to its mean over the sample's frames, in units of its
            deviation. Neither depends on the frames' order.
    """

    def __init__(self, features: int, num_permutations: int, fc6: int, lstm: int, relative: bool = False):
        super().__init__()
        self.relative = relative
        self.fc6 = nn.Sequential(nn.Linear(features, fc6), nn.ReLU())
        self.lstm = nn.LSTM(fc6, lstm, batch_first=True)
        self.classifier = nn.Linear(lstm, num_permutations)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pool5 features (B, n, features) in their shuffled order."""
        frames = self._frames(features)
        if frames.is_cuda:  # cuDNN has no LSTM in bf16, and torch's own is many times slower
            with torch.autocast("cuda", enabled=False):
                outputs, _ = self.lstm(at_least_float32(frames))
        else:
            outputs, _ = self.lstm(frames)  # [B, n, lstm]
        return self.classifier(outputs[:, -1])

    def all_permutation_logits(self, features: Tensor, permutations: np.ndarray) -> Iterator[Tensor]:
        """Yield the logits of every permutation of every sample, see `OrderingHead.all_permutation_logits`.

        fc6 and the LSTM's input projection are computed once per frame. The rest of the recurrence is computed
        once for all permutations that begin with the same frames.
        """
        levels, leaves = _prefixes(permutations, features.device)
        from_input, _, bias, second_bias = self.lstm.all_weights[0]
        projected = _linear(self._frames(features).flatten(0, 1), from_input, bias + second_bias)
        projected = projected.view(*features.shape[:2], -1)  # [V, n, 4 · lstm]
        rows = _rows_of(4 * (12 * self.lstm.hidden_size + 3 * len(permutations)), features.device)
        for block in projected.split(max(1, rows // len(permutations))):
            hidden = self._recur(block, levels)[:, leaves]  # [v, |Ψ|, lstm]
            yield _linear(hidden.flatten(0, 1), self.classifier.weight, self.classifier.bias)

    def _frames(self, features: Tensor) -> Tensor:
        """fc6 (B, n, fc6) of pool5 features (B, n, features)."""
        return self.fc6(_relative(features) if self.relative else features)

    def _recur(self, projected: Tensor, levels: list[_Level]) -> Tensor:
        """The hidden states (v, leaves, lstm) at the end of every permutation, of projected inputs (v, n, 4 · lstm)."""
        _, from_state, _, _ = self.lstm.all_weights[0]
        hidden = cell = None
        for level in levels:
            gates = projected[:, level.pieces]  # [v, nodes, 4 · lstm], in torch's order: input, forget, cell, output
            if hidden is not None:
                states = _linear(hidden.flatten(0, 1), from_state, None).unflatten(0, hidden.shape[:2])
                gates += states if level.parents is None else states[:, level.parents]
            enter, keep, new, leave = gates.chunk(4, dim=2)
            entering = enter.sigmoid() * new.tanh()
            if cell is None:
                cell = entering
            else:
                before = cell if level.parents is None else cell[:, level.parents]
                cell = torch.addcmul(entering, keep.sigmoid(), before)
            hidden = leave.sigmoid() * cell.tanh()
        assert hidden is not None, "a permutation has at least one piece"
        return hidden


class PairwiseHead(OrderingHead):
    """fc6 for every piece, fc7 for every pair of positions, classifier of all pairs.

    The head of order prediction networks: Lee, Huang, Singh, Yang, "Unsupervised Representation Learning by Sorting
    Sequences", ICCV 2017, which the paper compares with. One fc7 sees all pairs; the classifier knows where they lie.

    Args:
        features: Length of a piece's flat pool5 features.
        num_pieces: n, pieces a sample, at least 2.
        num_permutations: |Ψ|, number of logits.
        fc6: Width of the layer that is applied to each piece.
        fc7: Width of the layer that is applied to each pair.
        relative: See `TemporalHead`.
    """

    def __init__(
        self, features: int, num_pieces: int, num_permutations: int, fc6: int, fc7: int, relative: bool = False
    ):
        super().__init__()
        self.relative = relative
        self.fc6 = nn.Sequential(nn.Linear(features, fc6), nn.ReLU())
        self.fc7 = nn.Linear(2 * fc6, fc7)
        self._num_pieces = num_pieces
        self.classifier = nn.Linear(math.comb(num_pieces, 2) * fc7, num_permutations)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pool5 features (B, n, features) in their shuffled order."""
        pieces = self.fc6(_relative(features) if self.relative else features)
        earlier, later = self._pairs(features.device)
        pairs = torch.cat([pieces[:, earlier], pieces[:, later]], dim=2)  # [B, pairs, 2 · fc6]
        return self.classifier(self.fc7(pairs).relu_().flatten(1))

    def all_permutation_logits(self, features: Tensor, permutations: np.ndarray) -> Iterator[Tensor]:
        """Yield the logits of every permutation of every sample, see `OrderingHead.all_permutation_logits`.

        fc7 is computed once for every ordered pair of pieces.
        """
        pieces = self.fc6(_relative(features) if self.relative else features)
        first, second = self.fc7.weight.chunk(2, dim=1)
        # [V, n, n, fc7]: of piece i before piece j
        table = ((pieces @ first.T)[:, :, None] + (pieces @ second.T)[:, None] + self.fc7.bias).relu_()
        order = torch.tensor(permutations, device=features.device)
        earlier, later = self._pairs(features.device)
        before, after = order[:, earlier], order[:, later]  # [|Ψ|, pairs]
        rows = _rows_of(4 * (self.classifier.in_features + self.classifier.out_features), features.device)
        for block in table.split(max(1, rows // len(order))):
            for some, others in zip(before.split(rows), after.split(rows), strict=True):
                stacked = block[:, some, others].flatten(2)  # [v, l, pairs · fc7]
                yield _linear(stacked.flatten(0, 1), self.classifier.weight, self.classifier.bias)

    def _pairs(self, device: torch.device) -> Tensor:
        """(2, pairs) int64, two different positions each, the earlier first; made on the device, without a copy."""
        return torch.triu_indices(self._num_pieces, self._num_pieces, 1, device=device)


@dataclass(frozen=True)
class _Level:
    """The different beginnings of one length that permutations have.

    Attributes:
        pieces: (nodes,) int64, the last piece of each.
        parents: (nodes,) int64, which beginning of the level before each continues; None where the k-th continues the
            k-th, so that nothing needs to be gathered.
    """

    pieces: Tensor
    parents: Tensor | None


def _prefixes(permutations: np.ndarray, device: torch.device) -> tuple[list[_Level], Tensor]:
    """The tree of all beginnings of Ψ (|Ψ|, n): n levels, and (|Ψ|,) where on the last each permutation is."""
    levels: list[_Level] = []
    found = np.zeros(len(permutations), dtype=np.int64)  # which node of the level each permutation goes through
    nodes = 1
    for length in range(1, permutations.shape[1] + 1):
        _, first, inverse = np.unique(permutations[:, :length], axis=0, return_index=True, return_inverse=True)
        above = found[first]  # unique sorts, so a node's number orders it as its parent's does
        parents = None if len(first) == nodes else torch.from_numpy(above).to(device)
        levels.append(_Level(torch.from_numpy(permutations[first, length - 1]).to(device), parents))
        found, nodes = inverse.reshape(-1), len(first)
    return levels, torch.from_numpy(found).to(device)


def _relative(features: Tensor) -> Tensor:
    """Features (B, n, features) relative to their mean over a sample's pieces, in units of their deviation."""
    features = at_least_float32(features)  # bf16 is too coarse for a variance
    variance, mean = torch.var_mean(features, dim=1, keepdim=True, correction=0)
    return (features - mean) * (variance + _SMALLEST_VARIANCE).rsqrt()


def at_least_float32(numbers: Tensor) -> Tensor:
    """The same numbers, in float32 if they are in bf16."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _rows_of(row_bytes: int, device: torch.device) -> int:
    """How many rows of activations of that many bytes make a chunk."""
    return max(1, _CHUNK_BYTES["cpu" if device.type == "cpu" else "cuda"] // row_bytes)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer to (rows, features).

    On a CPU it runs as a 1 × 1 convolution: the same product in the same precision, but computed by oneDNN instead of
    MKL, which took two to three times as long on the AMD processor of the benchmark.
    """
    if inputs.device.type != "cpu":
        return nn.functional.linear(inputs, weight, bias)
    pixels = inputs.view(1, len(inputs), 1, -1).permute(0, 3, 1, 2)  # channels last, as the rows lie
    outputs = nn.functional.conv2d(pixels, weight[:, :, None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(len(inputs), -1)
