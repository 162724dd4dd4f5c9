"""What the features are worth without labels in training: nearest-neighbour search on pool5 (section 4.1, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from permenv.augment import normalise
from permenv.data import StillImages, VideoClips
from permenv.networks import OrderingNetwork, evaluating

_MAP_SIDE = 6
_CHUNK = 64  # images in the trunk at once


@torch.no_grad()
def pool_features(network: OrderingNetwork, data: StillImages, indices: np.ndarray, device: torch.device) -> np.ndarray:
    """Compute pool5 features of whole images, or of whole frames.

    An image goes through the trunk in one piece, normalised as a piece is, at the scale of training. A pool5 map of
    more than 6 × 6, the size that the paper evaluates (227 × 227 pixels at stride 4), is averaged down to it.

    Args:
        network: Φ; its trunk is used.
        data: The images; of clips, their `frames`.
        indices: (N,) int, which of them.
        device: The network's device.

    Returns:
        (N, features) float32.
    """
    with evaluating(network):
        parts = []
        for chunk in np.array_split(indices, max(1, -(-len(indices) // _CHUNK))):
            image = normalise(data.take(chunk, device)[:, None])[:, 0]  # [b, 3, S, S]
            pool5 = network.trunk(image.contiguous(memory_format=torch.channels_last))
            pool5 = nn.functional.adaptive_avg_pool2d(
                pool5, (min(pool5.shape[2], _MAP_SIDE), min(pool5.shape[3], _MAP_SIDE))
            )
            parts.append(pool5.flatten(1).cpu().numpy())
    return np.concatenate(parts)


def spread_frames(clips: VideoClips, among: np.ndarray, count: int) -> np.ndarray:
    """Choose evenly spaced frames of clips, from the first to the last ("10 frames per video", section 4.1).

    Args:
        clips: The clips.
        among: (N,) int, which of them.
        count: How many frames of each; a shorter clip gives all it has.

    Returns:
        (at most N · count,) int64, rows of `clips.frames`, clip by clip.
    """
    rows = []
    for start, length in zip(clips.starts[among], clips.lengths[among], strict=True):
        number = min(count, length)
        rows.append(start + np.arange(number) * (length - 1) // max(1, number - 1))
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def nearest_neighbour_accuracy(
    queries: np.ndarray,
    query_labels: np.ndarray,
    database: np.ndarray,
    database_labels: np.ndarray,
    top: Sequence[int] = (1,),
) -> dict[int, float]:
    """Share of queries with their own class among their k nearest neighbours, by cosine distance (section 4.1).

    Args:
        queries: (Q, features).
        query_labels: (Q,) int.
        database: (D, features), D at least the largest k.
        database_labels: (D,) int.
        top: The k's.

    Returns:
        By k, the accuracy in [0, 1].
    """
    search = NearestNeighbors(n_neighbors=max(top), metric="cosine", algorithm="brute").fit(database)
    neighbours = database_labels[search.kneighbors(queries, return_distance=False)]  # [Q, max k]
    hits = neighbours == query_labels[:, None]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in top}
