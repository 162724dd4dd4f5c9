"""Nearest-neighbour search with pool5 features (section 4.1, Table 1).

"Images of the test set are used as queries and the images of the training set as the retrieval targets." These are
whole images of a folder by class, objects of VOC (`permenv.transfer.voc_sets.object_crops`), or 10 frames a video. A
protocol passes the module of a `permenv.transfer.trunks.Trunk` and images of its size, a run the trunk of its network
and the images that it is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from permenv.data import StillImages, VideoClips
from permenv.data.clip_files import evenly_spaced
from permenv.networks import eval_mode
from permenv.progress import progress_bar
from permenv.transfer.batches import CHUNK, chunks
from permenv.transfer.plain import network_input

TABLE_1 = (1, 5, 10, 20, 50)
"""The k's of Table 1."""

_MAP_SIDE = 6
_PART = 16_384
"""Entries of a database whose features are in memory at a time: 0.6 GB of a CaffeNet's."""


def retrieval(
    trunk: nn.Module,
    queries: StillImages | VideoClips,
    database: StillImages | VideoClips,
    *,
    query_indices: np.ndarray | None = None,
    database_indices: np.ndarray | None = None,
    top: Sequence[int] = (1,),
    frames: int = 10,
    most: int | None = None,
    progress: bool = False,
) -> dict[int, float] | None:
    """Search the nearest neighbours of labelled images or frames among others.

    Unlabelled images are left out. Classes are compared by name, so queries and database may number them differently.

    Args:
        trunk: Takes images (N, 3, h, w) to the map pool5.
        queries: Images or clips whose class is to be found. Each of the `frames` of a clip is a query of its own.
        database: Images or clips that are searched; likewise.
        query_indices: (Q,) int, which images or clips are queries; by default all.
        database_indices: (D,) int, which are searched; by default all.
        top: The k's.
        frames: Evenly spaced frames of a clip.
        most: At most so many queries, and as many entries of the database; evenly spaced, if there are more. By
            default all.
        progress: Show progress bars, see `permenv.progress`.

    Returns:
        By k, the share of queries with their own class among the k nearest neighbours, in [0, 1]. None if queries or
        database have no labels, or if features are not finite.

    Raises:
        ValueError: If the database has fewer entries than the largest k.
    """
    query_images, query_rows = _labelled(queries, query_indices, frames, most)
    images, rows = _labelled(database, database_indices, frames, most)
    if not len(query_rows) or not len(rows):
        return None
    if max(top) > len(rows):
        raise ValueError(f"the {max(top)} nearest of {len(rows)} entries: pass k's of at most their number")
    query_features = pool_features(trunk, query_images, query_rows, progress=progress)
    if not np.isfinite(query_features).all():
        return None
    neighbours = np.empty((len(query_rows), 0), dtype=np.int64)
    distances = np.empty(neighbours.shape)
    for start in range(0, len(rows), _PART):
        features = pool_features(trunk, images, rows[start : start + _PART], progress=progress)
        if not np.isfinite(features).all():
            return None
        found, how_far = nearest(query_features, features, min(max(top), len(features)))
        neighbours = np.concatenate([neighbours, start + found], axis=1)
        distances = np.concatenate([distances, how_far], axis=1)
        order = distances.argsort(axis=1, kind="stable")[:, : max(top)]
        neighbours = np.take_along_axis(neighbours, order, axis=1)
        distances = np.take_along_axis(distances, order, axis=1)
    return _accuracies(class_names(query_images, query_rows), class_names(images, rows)[neighbours], top)


@torch.no_grad()
def pool_features(trunk: nn.Module, data: StillImages, indices: np.ndarray, *, progress: bool = False) -> np.ndarray:
    """Compute pool5 features of whole images, or of whole frames.

    An image goes through the trunk in one piece, normalised as a piece is, at the scale of training. A pool5 map of
    more than 6 × 6, the size that the paper evaluates (227 × 227 pixels at stride 4), is averaged down to it.

    Args:
        trunk: Takes images (N, 3, h, w) to the map pool5.
        data: The images; of clips, their `frames`.
        indices: (N,) int, which of them.
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        (N, features) float32.
    """
    device = next(trunk.parameters()).device
    with eval_mode(trunk):
        parts = []
        for chunk in progress_bar(chunks(indices, CHUNK), label="features", unit="batch", show=progress):
            pool5 = trunk(network_input(data.take(chunk, device), device))
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
        rows.append(start + np.array(evenly_spaced(length, count)))
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def nearest(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest neighbours of features among others, by cosine distance.

    The distance is 1 - cos, in [0, 2]; of features that are all zero it is 1.

    Args:
        queries: (Q, features).
        database: (D, features).
        k: How many neighbours, at least 1.

    Returns:
        (Q, k) int64, rows of the database in ascending distance, and (Q, k) these distances.

    Raises:
        ValueError: If the database has fewer than k entries.
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import

    if not 1 <= k <= len(database):
        raise ValueError(f"the {k} nearest of {len(database)} entries: pass a k from 1 to their number")
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(database)
    distances, indices = search.kneighbors(queries)
    return indices, distances


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
    indices, _ = nearest(queries, database, max(top))
    return _accuracies(query_labels, database_labels[indices], top)


def _accuracies(labels: np.ndarray, of_neighbours: np.ndarray, top: Sequence[int]) -> dict[int, float]:
    """Return by k how many of the labels, (Q,), are among the first k of their neighbours', (Q, max k)."""
    hits = of_neighbours == labels[:, None]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in top}


def class_names(images: StillImages, indices: np.ndarray) -> np.ndarray:
    """Names of the classes (N,) of labelled images (N,)."""
    assert images.labels is not None
    return np.array([images.classes[label] for label in images.labels[indices]])


def _labelled(
    data: StillImages | VideoClips, among: np.ndarray | None, frames: int, most: int | None
) -> tuple[StillImages, np.ndarray]:
    """Return images, and the indices of the labelled ones, of more than `most` evenly spaced ones."""
    indices = np.arange(len(data)) if among is None else among
    if isinstance(data, VideoClips):
        images, indices = data.frames, spread_frames(data, indices, frames)
    else:
        images = data
    if images.labels is None:
        return images, np.empty(0, dtype=np.int64)
    indices = indices[images.labels[indices] >= 0]
    count = len(indices) if most is None else min(len(indices), most)
    # not `evenly_spaced`: the last one is left out; reported figures are of these
    return images, indices[np.arange(count) * len(indices) // max(1, count)]
