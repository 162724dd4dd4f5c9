"""Object proposals for Fast R-CNN: the published ones of selective search, or windows made here.

Boxes are [xmin, ymin, xmax, ymax] in pixels from 0 and contain their last row and column.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from permenv.data import DataError
from permenv.data.files import open_regular
from permenv.transfer.boxes import suppress

_EXPECTED = "pass a file as released with Fast R-CNN, such as voc_2007_trainval.mat"
_SHAPES = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)  # width by height
_SMALLEST = 24.0  # pixels of the shorter side of the smallest windows
_GROWTH = 2**0.5  # of the side from one size of windows to the next
_STEP = 0.25  # between neighbouring windows, in widths and heights
_SAME = 0.8  # windows that overlap more are one proposal


def selective_search(path: str | Path) -> dict[str, np.ndarray]:
    """Read the proposals that were released with R-CNN and Fast R-CNN, such as voc_2007_trainval.mat.

    The file has the names of the images in `images` and, in the same order, their boxes in `boxes`: [ymin, xmin, ymax,
    xmax] counted from 1.

    Args:
        path: A MATLAB file up to version 7.2.

    Returns:
        By name of the image, (n, 4) float64 boxes, counted from 0. Boxes that occur twice are there once.

    Raises:
        DataError: If the file cannot be read, or does not contain them.
    """
    from scipy.io import loadmat

    try:
        with open_regular(Path(path)) as file:
            content = loadmat(file, variable_names=["boxes", "images"])
    except OSError as fault:
        raise DataError(f"the proposals {path} cannot be read: {fault.strerror or fault}; {_EXPECTED}") from fault
    except Exception as fault:  # scipy raises many kinds on a damaged file
        raise DataError(f"the proposals {path} are no MATLAB file up to version 7.2: {fault}; {_EXPECTED}") from fault
    if not {"boxes", "images"} <= content.keys():
        raise DataError(f"the proposals {path} have no variables `boxes` and `images`; {_EXPECTED}")
    boxes, names = content["boxes"].ravel(), content["images"].ravel()
    if len(boxes) != len(names):
        raise DataError(f"the proposals {path} have {len(names)} images and boxes of {len(boxes)}; {_EXPECTED}")
    return {
        _name(np.asarray(name), str(path)): _counted_from_zero(np.asarray(each), str(path))
        for name, each in zip(names, boxes, strict=True)
    }


def _name(name: np.ndarray, path: str) -> str:
    if name.size != 1:
        raise DataError(f"the proposals {path} have an image with {name.size} names instead of one; {_EXPECTED}")
    return str(name.item())


def _counted_from_zero(boxes: np.ndarray, path: str) -> np.ndarray:
    if not boxes.size:
        return np.empty((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise DataError(
            f"the proposals {path} have boxes of shape {boxes.shape} and type {boxes.dtype}, not (n, 4) numbers; "
            f"{_EXPECTED}"
        )
    found = boxes[:, [1, 0, 3, 2]].astype(np.float64) - 1
    if not np.isfinite(found).all() or (found[:, :2] > found[:, 2:]).any():
        raise DataError(f"the proposals {path} have a box that ends before it begins; {_EXPECTED}")
    _, first = np.unique(found, axis=0, return_index=True)
    return found[np.sort(first)]


def edge_windows(image: np.ndarray, number: int = 2000) -> np.ndarray:
    """Propose windows with many edges inside and few across their border: a stand-in for selective search.

    A grid of windows of several sizes and five shapes is ranked by a contrast, as the edge boxes of Zitnick & Dollár
    (2014) are: the magnitude of the edges in the window, of which the part near its border counts negative, by its
    circumference. Windows that nearly coincide with a better one are left out.

    Args:
        image: (H, W, 3) uint8.
        number: Largest number of proposals.

    Returns:
        (n, 4) float64 boxes, the best first; n is at least 1.
    """
    import cv2

    smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    edges = np.sqrt((across**2 + down**2).sum(axis=2))
    sums = cv2.integral(edges, sdepth=cv2.CV_64F)
    windows = _grid(image.shape[0], image.shape[1])
    size = windows[:, 2:] - windows[:, :2] + 1
    margin = np.maximum(1, size // 8)
    inside = _sum(sums, windows[:, :2] + margin, windows[:, 2:] - margin)
    border = _sum(sums, windows[:, :2], windows[:, 2:]) - inside
    contrast = (inside - border) / size.sum(axis=1)
    best = np.argsort(-contrast, kind="stable")[: 3 * number]  # suppression is slow among all
    kept = suppress(windows[best], contrast[best], _SAME)
    return windows[best][kept[:number]].astype(np.float64)


def _grid(height: int, width: int) -> np.ndarray:
    """Windows (n, 4) int of all sizes and shapes that fit into an image, and the whole image."""
    windows = [np.array([[0, 0, width - 1, height - 1]])]
    for shape in _SHAPES:
        short = _SMALLEST
        while True:
            columns, rows = round(short * max(1.0, shape)), round(short / min(1.0, shape))
            short *= _GROWTH
            if columns > width and rows > height:
                break
            columns, rows = min(columns, width), min(rows, height)
            left, top = (_starts(length, window) for length, window in ((width, columns), (height, rows)))
            corners = np.stack(np.meshgrid(left, top), axis=-1).reshape(-1, 2)
            windows.append(np.concatenate([corners, corners + np.array([columns, rows]) - 1], axis=1))
    return np.unique(np.concatenate(windows), axis=0)


def _starts(length: int, window: int) -> np.ndarray:
    """Where windows begin, evenly spread from one end to the other."""
    number = 1 + int(np.ceil((length - window) / max(1.0, _STEP * window)))
    return np.linspace(0, length - window, number).round().astype(np.int64)


def _sum(sums: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Sums over the rectangles from `low` to `high` [column, row], both included, from an integral image."""
    (left, top), (right, bottom) = low.T, high.T + 1
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
