"""The figures of PASCAL VOC: average precision of classification and detection, mean intersection over union.

The rules are those of the development kit (Everingham et al. 2010): VOC 2007 interpolates precision at 11 recalls,
later years integrate all of the curve. Boxes are [xmin, ymin, xmax, ymax] and contain their last row and column of
pixels, so that a box has (xmax - xmin + 1) · (ymax - ymin + 1) of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from permenv.data.voc import VOID


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of one class, in [0, 1]; NaN if the class has no positive.

    Attributes:
        eleven_point: Mean of the interpolated precision at recalls 0, 0.1, ..., 1: VOC 2007.
        all_point: Area under the interpolated curve: VOC 2010 and later.
        uninterpolated: Mean of the precision at each positive: scikit-learn's `average_precision_score`.
    """

    eleven_point: float
    all_point: float
    uninterpolated: float


_ENOUGH = 0.5  # intersection over union from which an object is found
_NONE = AveragePrecision(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Truth:
    """The objects of one class in one image.

    Attributes:
        boxes: (n, 4) [xmin, ymin, xmax, ymax].
        difficult: (n,) bool; a difficult object need not be found, and finding it is not an error.
    """

    boxes: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class Detections:
    """Boxes of one class that were found, in all images.

    Attributes:
        images: (n,) image of each, an index into the truth.
        boxes: (n, 4) [xmin, ymin, xmax, ymax].
        scores: (n,) higher is surer.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def average_precision(correct: np.ndarray, positives: int) -> AveragePrecision:
    """Compute average precision of a ranked list.

    Args:
        correct: (n,) bool, from the highest score to the lowest.
        positives: How many there are to be found.
    """
    if not positives:
        return _NONE
    hits = np.cumsum(correct)
    recall, precision = hits / positives, hits / np.arange(1, len(correct) + 1)
    # highest precision at this recall or a higher one
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # reached with one rounding of tolerance: 3 hits of 10 reach a recall of 0.3
    indices = np.searchsorted(recall, np.arange(11) / 10 - 1e-12)
    eleven_point = np.append(envelope, 0.0)[indices].mean()
    all_point = (np.diff(recall, prepend=0.0) * envelope).sum()
    return AveragePrecision(float(eleven_point), float(all_point), float(precision[correct].sum() / positives))


def classification_precision(scores: np.ndarray, labels: np.ndarray) -> AveragePrecision:
    """Average precision of one class of the classification task.

    Args:
        scores: (N,) of all images. Of equal scores, the first image ranks first.
        labels: (N,) int as in the kit's files: 1 = in the image, -1 = not in it, 0 = all objects of the class are
            difficult. The last are left out.
    """
    used = labels != 0
    scores, positive = scores[used], labels[used] == 1
    return average_precision(positive[_ranking(scores)], int(positive.sum()))


def detection_precision(detections: Detections, truth: Sequence[Truth]) -> AveragePrecision:
    """Average precision of one class of the detection task.

    In the order of scores, a detection is given to the object that it overlaps most. It is correct if their
    intersection over union is at least 0.5 (as in the kit's code; its text has "more than") and no earlier detection
    was given to the object; otherwise it is a false positive. It does not count if the object is difficult.

    Args:
        detections: What was found.
        truth: By image, what there is.
    """
    found = [np.zeros(len(each.boxes), dtype=bool) for each in truth]
    correct = []
    for row in _ranking(detections.scores):
        image = detections.images[row]
        objects = truth[image]
        if not len(objects.boxes):
            correct.append(False)
            continue
        overlaps = intersection_over_union(detections.boxes[row : row + 1], objects.boxes)[0]
        nearest = overlaps.argmax()
        if overlaps[nearest] < _ENOUGH:
            correct.append(False)
        elif not objects.difficult[nearest]:
            correct.append(not found[image][nearest])
            found[image][nearest] = True
    positives = sum(int((~each.difficult).sum()) for each in truth)
    return average_precision(np.array(correct, dtype=bool), positives)


def mean_average_precision(by_class: Mapping[str, AveragePrecision]) -> AveragePrecision:
    """Mean over the classes that have a positive; NaN if none has."""
    present = [dataclasses.astuple(each) for each in by_class.values() if not np.isnan(each.all_point)]
    return AveragePrecision(*(float(np.mean(each)) for each in zip(*present, strict=True))) if present else _NONE


def intersection_over_union(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlaps (n, m) in [0, 1] of boxes (n, 4) with others (m, 4), [xmin, ymin, xmax, ymax] in whole pixels."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low + 1, 0, None).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2] + 1).prod(axis=1) for each in (boxes, others)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def confusion(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by true and predicted class, without those that are void.

    Args:
        predicted: Labels in [0, classes), of any shape.
        truth: Labels in [0, classes) or `VOID`, of the same shape.
        classes: Number of classes, background included.

    Returns:
        (classes, classes) int64: true class by predicted class. The sum over images is what `mean_iou` takes.

    Raises:
        ValueError: If a label is outside.
    """
    used = truth != VOID
    rows, columns = truth[used].astype(np.int64), predicted[used].astype(np.int64)
    for labels in (rows, columns):
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels go from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class (classes,), in [0, 1]; NaN where no pixel is or was predicted."""
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(counts), np.nan), where=union > 0)


def mean_iou(counts: np.ndarray) -> float:
    """Mean of `class_iou` over the classes, background included, that the truth contains; NaN if it has none."""
    present = counts.sum(axis=1) > 0
    return float(class_iou(counts)[present].mean()) if present.any() else float("nan")


def _ranking(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError("scores that are not finite cannot be ranked: the network has diverged")
    return np.argsort(-scores, kind="stable")
