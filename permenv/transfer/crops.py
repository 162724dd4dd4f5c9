"""Crops of images, cut out and resized.

Those of training and testing are those of Wang et al. (Temporal segment networks, ECCV 2016), with one segment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides of training crops as shares of an image's, from the largest."""

_STEPS = 4  # places of crops are multiples of a quarter of the way that a crop can go
_CORNERS_AND_CENTRE = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
_TRAINING_PLACES = (*_CORNERS_AND_CENTRE, (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))


def training_crop(frame: np.ndarray, side: int, scales: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Cut a random rectangle out of an image, resize it to a square, and mirror it half of the time.

    Args:
        frame: (S, S, 3) uint8.
        side: Of the square in pixels.
        scales: Sides of the rectangle as shares of the image's, from the largest; height and width are the same or
            neighbours in this list.
        rng: Source of the draws.

    Returns:
        (side, side, 3) uint8.
    """
    numbers = range(len(scales))
    pairs = [(high, wide) for high in numbers for wide in numbers if abs(high - wide) <= 1]
    height, width = (_pixels(frame, scales[scale]) for scale in pairs[rng.integers(len(pairs))])
    place = _TRAINING_PLACES[rng.integers(len(_TRAINING_PLACES))]
    crop = _cut(frame, height, width, place, side)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def evaluated_crops(frame: np.ndarray, side: int, scale: float, ten: bool) -> np.ndarray:
    """Cut the squares out of an image that are tested.

    Args:
        frame: (S, S, 3) uint8.
        side: Of the squares in pixels.
        scale: Their side in the image, as a share of the image's.
        ten: Whether to cut out the corners and the centre, and mirror all of them, or the centre alone.

    Returns:
        (10 or 1, side, side, 3) uint8.
    """
    places = _CORNERS_AND_CENTRE if ten else _CORNERS_AND_CENTRE[-1:]
    own = _pixels(frame, scale)
    crops = np.stack([_cut(frame, own, own, place, side) for place in places])
    return np.concatenate([crops, crops[:, :, ::-1]]) if ten else crops


def resized(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize (H, W, 3) uint8: area averaging to shrink, bilinear interpolation to enlarge."""
    import cv2

    shrink = rows * columns < image.shape[0] * image.shape[1]
    return cv2.resize(
        np.ascontiguousarray(image), (columns, rows), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )


def _pixels(frame: np.ndarray, share: float) -> int:
    return max(1, round(share * len(frame)))


def _cut(frame: np.ndarray, height: int, width: int, place: tuple[int, int], side: int) -> np.ndarray:
    """Cut (height, width) at a place of the 5 × 5 that there are, and resize it to a square."""
    top = (frame.shape[0] - height) // _STEPS * place[0]
    left = (frame.shape[1] - width) // _STEPS * place[1]
    return resized(frame[top : top + height, left : left + width], side, side)
