"""The embedded datasets: rendered scenes as still images and as video clips, kept in the cache."""

from __future__ import annotations

import functools

import numpy as np

from permenv.data.cache import Append, cached_or_in_memory
from permenv.data.rows import CachedRows
from permenv.data.scenes import CLASSES, RECIPE, check, deal_labels, render_clip
from permenv.data.sets import StillImages, VideoClips
from permenv.progress import progress_bar


@functools.lru_cache(maxsize=4)
def embedded_scenes(count: int, size: int, seed: int = 0) -> StillImages:
    """Labelled procedural scenes as still images: no files and no downloads.

    They are rendered once and kept in the cache. If the cache cannot be used, they are rendered in memory, with a
    warning.

    Args:
        count: N, number of images.
        size: S, side in pixels, at least 16.
        seed: Non-negative; another seed gives other scenes of the same kind.

    Returns:
        The images, read from the cache when they are needed.

    Raises:
        ValueError: If an argument is too small.
    """
    fingerprint = f"scenes-{RECIPE}-{count}-{size}-{seed}"
    pixels, labels = _rendered(fingerprint, count, 1, size, seed)
    return StillImages(pixels, labels, CLASSES, "embedded scenes", fingerprint)


@functools.lru_cache(maxsize=4)
def embedded_clips(count: int, frames: int, size: int, seed: int = 0) -> VideoClips:
    """The embedded scenes as short clips, see `embedded_scenes`.

    Args:
        count: V, number of clips.
        frames: Frames of each.
        size: S, side of a frame in pixels, at least 16.
        seed: Non-negative; another seed gives other scenes of the same kind.

    Returns:
        The clips, read from the cache when they are needed.

    Raises:
        ValueError: If an argument is too small.
    """
    fingerprint = f"clips-{RECIPE}-{count}-{frames}-{size}-{seed}"
    pixels, labels = _rendered(fingerprint, count, frames, size, seed)
    return VideoClips(
        frames=StillImages(pixels, labels.repeat(frames), CLASSES, "embedded clips", fingerprint),
        starts=np.arange(count + 1) * frames,
        names=tuple(f"scene {index}" for index in range(count)),
    )


def _rendered(key: str, count: int, frames: int, size: int, seed: int) -> tuple[CachedRows | np.ndarray, np.ndarray]:
    """Pixels (count * frames, size, size, 3) from the cache, and labels (count,)."""
    check(count, frames, size, seed)
    labels = deal_labels(count, seed)

    def build(append: Append) -> None:
        for index in progress_bar(range(count), label="rendering scenes", unit="scene"):
            append(render_clip(index, int(labels[index]), frames, size, seed))

    return cached_or_in_memory(key, (count * frames, size, size, 3), build), labels
