"""From records of VOC's devkit to what the protocols of Table 4 take.

Every image and mask is decoded once, to find those that cannot be used: they are named in a warning and left out. Then
it is decoded whenever it is asked for, so that a set needs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from permenv.data import DataError
from permenv.data.files import in_parallel, summary
from permenv.data.source import log
from permenv.data.voc import VOC_CLASSES, VocImage, load_voc_image, load_voc_mask
from permenv.transfer.classification import LabelledImages
from permenv.transfer.detection import DetectionImages, Objects
from permenv.transfer.proposals import edge_windows
from permenv.transfer.segmentation import SegmentedImages

_IN_FLIGHT = 64  # images submitted to the threads before the result of the first is used


def labelled_images(records: Sequence[VocImage], *, progress: bool = True) -> LabelledImages:
    """Images with the labels of the classification task, in the order of `VOC_CLASSES`.

    Raises:
        DataError: If no image can be used.
    """
    used = _usable(records, load_voc_image, progress)
    labels = np.full((len(used), len(VOC_CLASSES)), -1)
    for row, record in enumerate(used):
        for each in record.objects:
            column = VOC_CLASSES.index(each.name)
            labels[row, column] = max(labels[row, column], 0 if each.difficult else 1)
    return LabelledImages(_Decoded(used, load_voc_image), labels)


def detection_images(
    records: Sequence[VocImage],
    proposals: Mapping[str, np.ndarray] | None = None,
    *,
    windows: int = 2000,
    progress: bool = True,
) -> DetectionImages:
    """Images with their objects and proposals.

    Args:
        records: The images.
        proposals: By name of the image, such as of `selective_search`; without, `edge_windows` of each image.
        windows: How many of these.
        progress: Show progress bars where stderr is a terminal.

    Raises:
        DataError: If no image can be used, or the proposals lack one.
    """
    used = _usable(records, load_voc_image, progress)
    images = _Decoded(used, load_voc_image)
    if proposals is None:
        places = range(len(used))
        found = list(
            in_parallel(lambda n: edge_windows(images[n], windows), places, "windows", progress, "image", _IN_FLIGHT)
        )
    else:
        absent = [record.name for record in used if record.name not in proposals]
        if absent:
            raise DataError(
                f"there are no proposals for {len(absent)} of {len(used)} images, such as {absent[0]}; "
                "pass the file of the same part"
            )
        found = [proposals[record.name] for record in used]
    return DetectionImages(images, [_objects(record) for record in used], found)


def segmented_images(records: Sequence[VocImage], *, progress: bool = True) -> SegmentedImages:
    """Images with their masks; label 0 is background, 1 + k the class k of `VOC_CLASSES`.

    Raises:
        DataError: If no image can be used.
    """
    used = _usable(_usable(records, load_voc_image, progress), load_voc_mask, progress)
    return SegmentedImages(_Decoded(used, load_voc_image), _Decoded(used, load_voc_mask))


class _Decoded(Sequence[np.ndarray]):
    """Files that are decoded when they are asked for."""

    def __init__(self, records: Sequence[VocImage], load: Callable[[VocImage], np.ndarray | str]):
        self._records, self._load = records, load

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # an index or a slice
        if isinstance(place, slice):
            return _Decoded(self._records[place], self._load)
        pixels = self._load(self._records[place])
        if isinstance(pixels, str):
            raise DataError(f"{self._records[place].path} cannot be read any more: {pixels}; restore it")
        return pixels


def _usable(
    records: Sequence[VocImage], load: Callable[[VocImage], np.ndarray | str], progress: bool
) -> list[VocImage]:
    faults = in_parallel(lambda record: _fault(load(record)), records, "checking", progress, "image", _IN_FLIGHT)
    kept, skipped = [], []
    for record, fault in zip(records, faults, strict=True):
        if isinstance(fault, str):
            skipped.append((record.name, fault))
        else:
            kept.append(record)
    if skipped:
        log.warning("%d of %d images skipped: %s", len(skipped), len(records), summary(skipped))
    if not kept:
        raise DataError(f"none of {len(records)} images can be used; correct the folder")
    return kept


def _fault(pixels: np.ndarray | str) -> str | None:
    return pixels if isinstance(pixels, str) else None


def _objects(record: VocImage) -> Objects:
    boxes = np.array([each.box for each in record.objects], dtype=np.float64).reshape(-1, 4)
    return Objects(
        boxes - [0, 0, 1, 1],  # from half-open to boxes that contain their last pixels
        np.array([VOC_CLASSES.index(each.name) for each in record.objects], dtype=np.int64),
        np.array([each.difficult for each in record.objects], dtype=bool),
    )
