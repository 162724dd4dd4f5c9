"""The paper's own numbers of Tables 1 to 4 in percent, each with the data that it is of.

All are of CaffeNet at the paper's sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

from permenv.transfer.retrieval import TABLE_1

CLASS_ACCURACY = "mean over classes"
"""The metric of Table 3, by the code that the paper names."""
SKLEARN = "mAP, scikit-learn"
"""The metric of Table 4 i, likewise."""
ELEVEN_POINTS = "mAP, 11 points"
MEAN_IOU = "mean IoU"
RANDOM, JIGSAW, OPN, OURS = "random", "jigsaw", "OPN", "S+T+P"
LABELS = "ImageNet labels"  # what our supervised network is compared with; the paper's Table 1 has none


def _of(metric: str, numbers: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """Name the one metric of a table."""
    return {name: {metric: number} for name, number in numbers.items()}


def _tops(*numbers: float) -> dict[str, float]:
    return {f"top {k}": number for k, number in zip(TABLE_1, numbers, strict=True)}


PAPER: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]] = {
    "retrieval-objects": {
        "VOC 2007": {
            RANDOM: _tops(17.6, 61.6, 75.5, 85.5, 94.2),
            JIGSAW: _tops(39.2, 71.6, 82.2, 89.5, 96.0),
            OPN: _tops(33.2, 67.1, 78.5, 87.0, 94.6),
            OURS: _tops(54.3, 73.0, 83.0, 89.9, 96.2),
        },
    },
    "retrieval-videos": {
        "UCF-101": {
            RANDOM: _tops(18.8, 25.7, 30.0, 35.0, 43.3),
            JIGSAW: _tops(19.7, 28.5, 33.5, 40.0, 49.4),
            OPN: _tops(19.9, 28.7, 34.0, 40.6, 51.6),
            OURS: _tops(25.7, 36.2, 42.2, 49.2, 59.5),
        },
    },
    "linear": {"ImageNet": _of("pool5", {LABELS: 50.5, RANDOM: 14.1, JIGSAW: 27.1, OURS: 36.5})},
    "nonlinear": {"ImageNet": _of("pool5", {LABELS: 59.7, RANDOM: 12.0, OPN: 29.6, JIGSAW: 34.6, OURS: 38.2})},
    "actions": {
        "UCF-101": _of(CLASS_ACCURACY, {LABELS: 67.7, RANDOM: 47.8, JIGSAW: 51.5, OPN: 56.3, OURS: 58.6}),
        "HMDB-51": _of(CLASS_ACCURACY, {LABELS: 28.0, RANDOM: 16.3, JIGSAW: 22.5, OPN: 22.1, OURS: 25.0}),
    },
    "classification": {"VOC 2007": _of(SKLEARN, {LABELS: 78.2, RANDOM: 53.3, OPN: 63.8, JIGSAW: 67.6, OURS: 74.2})},
    "detection": {
        "VOC 2007, selective search": _of(
            ELEVEN_POINTS, {LABELS: 56.8, RANDOM: 43.4, OPN: 46.9, JIGSAW: 53.2, OURS: 52.8}
        ),
    },
    "segmentation": {"VOC 2012": _of(MEAN_IOU, {LABELS: 48.0, RANDOM: 19.8, JIGSAW: 37.6, OURS: 42.8})},
}
"""By protocol of `experiments.common.evaluation.protocols`, by data, by network, by name of the metric."""
