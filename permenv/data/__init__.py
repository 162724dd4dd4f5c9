"""Sources of still images and of video clips: the embedded scenes, or any folder of files."""

import functools

import numpy as np
import torch
from tqdm import tqdm

from permenv.data.cache import Append, cached_rows
from permenv.data.folder import image_folder
from permenv.data.scenes import CLASSES, RECIPE, deal_labels, render_clip, render_stills
from permenv.data.source import DataError, StillImages, VideoClips
from permenv.data.videos import video_folder

__all__ = [
    "DataError",
    "StillImages",
    "VideoClips",
    "embedded_clips",
    "embedded_scenes",
    "image_folder",
    "video_folder",
]


@functools.lru_cache(maxsize=4)
def embedded_scenes(count: int, size: int, seed: int = 0) -> StillImages:
    """Render the embedded data set: labelled procedural scenes, no files and no downloads.

    Args:
        count: N, number of images.
        size: S, pixels of a side.
        seed: Other seeds give other scenes of the same kind.

    Returns:
        The images on the CPU; shared by all who ask for the same.
    """
    pixels, labels = render_stills(count, size, seed)
    return StillImages(
        pixels=torch.from_numpy(pixels),
        labels=labels,
        classes=CLASSES,
        name="embedded scenes",
        fingerprint=f"scenes-{RECIPE}-{count}-{size}-{seed}",
    )


@functools.lru_cache(maxsize=4)
def embedded_clips(count: int, frames: int, size: int, seed: int = 0) -> VideoClips:
    """Film the embedded scenes, once: the clips are kept in the cache.

    Args:
        count: V, number of clips.
        frames: Frames of each.
        size: S, pixels of a frame's side, at least 16.
        seed: Other seeds give other scenes of the same kind.

    Returns:
        The clips, memory-mapped from the cache; shared by all who ask for the same.

    Raises:
        DataError: If the cache cannot be written.
    """
    labels = deal_labels(count, seed)

    def film(append: Append) -> dict[str, str]:
        for index in tqdm(range(count), desc="filming scenes", unit="clip", disable=None):
            append(render_clip(index, int(labels[index]), frames, size, seed))
        return {}

    fingerprint = f"clips-{RECIPE}-{count}-{frames}-{size}-{seed}"
    pixels, _ = cached_rows(fingerprint, (count * frames, size, size, 3), film)
    return VideoClips(
        frames=StillImages(pixels, labels.repeat(frames), CLASSES, "embedded clips", fingerprint),
        starts=np.arange(count + 1) * frames,
        names=tuple(f"scene {index}" for index in range(count)),
    )
