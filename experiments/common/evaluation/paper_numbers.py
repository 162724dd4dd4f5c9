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
_RANDOM, _JIGSAW, _OPN, _OURS = "random", "jigsaw", "OPN", "S+T+P"
_LABELS = "ImageNet labels"  # what our supervised network is compared with; the paper's Table 1 has none


def _of(data: str, rows: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Name the rows of a table, of which each initialisation has one."""
    return {f"{name} in the paper ({data})": metrics for name, metrics in rows.items()}


def _one(data: str, metric: str, values: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """Make the rows of a table of one metric."""
    return _of(data, {name: {metric: value} for name, value in values.items()})


def _tops(*values: float) -> dict[str, float]:
    return {f"top {k}": value for k, value in zip(TABLE_1, values, strict=True)}


PAPER: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "retrieval-objects": _of(
        "VOC 2007",
        {
            _RANDOM: _tops(17.6, 61.6, 75.5, 85.5, 94.2),
            _JIGSAW: _tops(39.2, 71.6, 82.2, 89.5, 96.0),
            _OPN: _tops(33.2, 67.1, 78.5, 87.0, 94.6),
            _OURS: _tops(54.3, 73.0, 83.0, 89.9, 96.2),
        },
    ),
    "retrieval-videos": _of(
        "UCF-101",
        {
            _RANDOM: _tops(18.8, 25.7, 30.0, 35.0, 43.3),
            _JIGSAW: _tops(19.7, 28.5, 33.5, 40.0, 49.4),
            _OPN: _tops(19.9, 28.7, 34.0, 40.6, 51.6),
            _OURS: _tops(25.7, 36.2, 42.2, 49.2, 59.5),
        },
    ),
    "linear": _one("ImageNet", "pool5", {_LABELS: 50.5, _RANDOM: 14.1, _JIGSAW: 27.1, _OURS: 36.5}),
    "nonlinear": _one("ImageNet", "pool5", {_LABELS: 59.7, _RANDOM: 12.0, _OPN: 29.6, _JIGSAW: 34.6, _OURS: 38.2}),
    "actions": {
        **_one("UCF-101", CLASS_ACCURACY, {_LABELS: 67.7, _RANDOM: 47.8, _JIGSAW: 51.5, _OPN: 56.3, _OURS: 58.6}),
        **_one("HMDB-51", CLASS_ACCURACY, {_LABELS: 28.0, _RANDOM: 16.3, _JIGSAW: 22.5, _OPN: 22.1, _OURS: 25.0}),
    },
    "classification": _one("VOC 2007", SKLEARN, {_LABELS: 78.2, _RANDOM: 53.3, _OPN: 63.8, _JIGSAW: 67.6, _OURS: 74.2}),
    "detection": _one(
        "VOC 2007, selective search",
        ELEVEN_POINTS,
        {_LABELS: 56.8, _RANDOM: 43.4, _OPN: 46.9, _JIGSAW: 53.2, _OURS: 52.8},
    ),
    "segmentation": _one("VOC 2012", MEAN_IOU, {_LABELS: 48.0, _RANDOM: 19.8, _JIGSAW: 37.6, _OURS: 42.8}),
}
"""By protocol of `experiments.common.evaluation.protocols`, by row, by name of the metric."""
