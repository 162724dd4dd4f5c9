"""Boxes of objects: what a regression predicts of them, and which of many remain.

Boxes are [xmin, ymin, xmax, ymax] in pixels from 0 and contain their last row and column.
"""

from __future__ import annotations

import numpy as np

_LARGEST_GROWTH = np.log(1000 / 16)  # of the exponent, so that a wild prediction gives a large box and no overflow


def box_targets(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """What regression should predict: the way from boxes to objects (Girshick et al. 2014, appendix C).

    Args:
        boxes: (n, 4).
        objects: (n, 4), the object of each.

    Returns:
        (n, 4) float: shift of the centre in widths and heights of the box, logarithms of the growth of both.
    """
    size, centre = _size_and_centre(boxes)
    object_size, object_centre = _size_and_centre(objects)
    return np.concatenate([(object_centre - centre) / size, np.log(object_size / size)], axis=1)


def moved(boxes: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Apply predictions (n, 4) to boxes (n, 4): the inverse of `box_targets`."""
    size, centre = _size_and_centre(boxes)
    new_centre = centre + predicted[:, :2] * size
    new_size = size * np.exp(np.minimum(predicted[:, 2:], _LARGEST_GROWTH))
    return np.concatenate([new_centre - (new_size - 1) / 2, new_centre + (new_size - 1) / 2], axis=1)


def clipped(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (n, 4) cut at the borders of an image."""
    return np.clip(boxes, 0, np.array([width, height, width, height]) - 1)


def mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes (n, 4) in the image mirrored from left to right."""
    return np.stack([width - 1 - boxes[:, 2], boxes[:, 1], width - 1 - boxes[:, 0], boxes[:, 3]], axis=1)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Non-maximum suppression: keep a box unless one with a higher score that is kept overlaps it more.

    Args:
        boxes: (n, 4).
        scores: (n,).
        overlap: Largest intersection over union of two boxes that are kept.

    Returns:
        Indices of what is kept, from the highest score to the lowest.
    """
    import cv2

    order = np.argsort(-scores, kind="stable")
    if not len(order):
        return order
    sorted_boxes = boxes[order].astype(np.float64)
    corners_and_sizes = np.hstack([sorted_boxes[:, :2], sorted_boxes[:, 2:] - sorted_boxes[:, :2] + 1])
    ranks = range(len(order), 0, -1)  # it takes scores of at least 0
    return order[np.asarray(cv2.dnn.NMSBoxes(corners_and_sizes.tolist(), ranks, 0.0, overlap))]


def _size_and_centre(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes = boxes.astype(np.float64)
    return boxes[:, 2:] - boxes[:, :2] + 1, (boxes[:, :2] + boxes[:, 2:]) / 2
