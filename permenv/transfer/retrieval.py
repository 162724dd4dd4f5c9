"""Nearest-neighbour search with pool5 features (section 4.1, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from permenv.augment import normalise
from permenv.data import StillImages, VideoClips
from permenv.networks import OrderingNetwork, eval_mode

_MAP_SIDE = 6
_CHUNK = 64  # images in the trunk at once


def retrieval(
    network: OrderingNetwork,
    queries: StillImages | VideoClips,
    database: StillImages | VideoClips,
    *,
    query_indices: np.ndarray | None = None,
    database_indices: np.ndarray | None = None,
    top: Sequence[int] = (1,),
    frames: int = 10,
    most: int = 10_000,
) -> dict[int, float] | None:
    """Search the nearest neighbours of labelled images or frames among others.

    Unlabelled images are left out. Classes are compared by name, so queries and database may number them differently.

    Args:
        network: Φ; its trunk is used.
        queries: Images or clips whose class is to be found. Each of the `frames` of a clip is a query of its own.
        database: Images or clips that are searched; likewise.
        query_indices: (Q,) int, which images or clips are queries; by default all.
        database_indices: (D,) int, which are searched; by default all.
        top: The k's.
        frames: Evenly spaced frames of a clip.
        most: At most so many queries, and as many entries of the database; evenly spaced, if there are more.

    Returns:
        By k, the share of queries with their own class among the k nearest neighbours, in [0, 1]. None if queries or
        database have no labels, or if features are not finite.
    """
    query_images, query_rows = _labelled(queries, query_indices, frames, most)
    images, rows = _labelled(database, database_indices, frames, most)
    if not len(query_rows) or not len(rows):
        return None
    query_features, features = pool_features(network, query_images, query_rows), pool_features(network, images, rows)
    if not (np.isfinite(query_features).all() and np.isfinite(features).all()):
        return None
    return nearest_neighbour_accuracy(
        query_features, _class_names(query_images, query_rows), features, _class_names(images, rows), top
    )


@torch.no_grad()
def pool_features(network: OrderingNetwork, data: StillImages, indices: np.ndarray) -> np.ndarray:
    """Compute pool5 features of whole images, or of whole frames.

    An image goes through the trunk in one piece, normalised as a piece is, at the scale of training. A pool5 map of
    more than 6 × 6, the size that the paper evaluates (227 × 227 pixels at stride 4), is averaged down to it.

    Args:
        network: Φ; its trunk is used.
        data: The images; of clips, their `frames`.
        indices: (N,) int, which of them.

    Returns:
        (N, features) float32.
    """
    device = next(network.parameters()).device
    with eval_mode(network):
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
    """Return the share of queries with their own class among their k nearest neighbours, by cosine distance.

    Args:
        queries: (Q, features).
        query_labels: (Q,) any values that can be compared.
        database: (D, features), D at least the largest k.
        database_labels: (D,) likewise.
        top: The k's.

    Returns:
        By k, the accuracy in [0, 1].
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import

    search = NearestNeighbors(n_neighbors=max(top), metric="cosine", algorithm="brute").fit(database)
    neighbours = database_labels[search.kneighbors(queries, return_distance=False)]  # [Q, max k]
    hits = neighbours == query_labels[:, None]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in top}


def _labelled(
    data: StillImages | VideoClips, among: np.ndarray | None, frames: int, most: int
) -> tuple[StillImages, np.ndarray]:
    """Return images, and the indices of at most `most` labelled ones, evenly spaced."""
    indices = np.arange(len(data)) if among is None else among
    if isinstance(data, VideoClips):
        images, indices = data.frames, spread_frames(data, indices, frames)
    else:
        images = data
    if images.labels is None:
        return images, np.empty(0, dtype=np.int64)
    indices = indices[images.labels[indices] >= 0]
    count = min(len(indices), most)
    return images, indices[np.arange(count) * len(indices) // max(1, count)]


def _class_names(images: StillImages, indices: np.ndarray) -> np.ndarray:
    assert images.labels is not None
    return np.array([images.classes[label] for label in images.labels[indices]])
