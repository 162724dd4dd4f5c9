"""Sources of still images: the embedded scenes, or any folder of images."""

import functools

import torch

from permenv.data.folder import image_folder
from permenv.data.scenes import CLASSES, RECIPE, render_stills
from permenv.data.source import DataError, StillImages

__all__ = ["DataError", "StillImages", "embedded_scenes", "image_folder"]


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
