"""From records of VOC's devkit to what the protocols of Tables 1 and 4 take.

Every image and mask is decoded once, to find those that cannot be used: they are named in a warning and left out. Then
it is decoded whenever it is asked for, so that a set needs no memory; but objects, which are small, are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from permenv.data import DataError, StillImages
from permenv.data.files import content_digest, fingerprint, list_some
from permenv.data.messages import log
from permenv.data.parallel import in_parallel
from permenv.data.voc import VOC_CLASSES, VocImage, load_voc_image, load_voc_mask
from permenv.transfer.classification import LabelledImages
from permenv.transfer.crops import resized
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
        progress: Show progress bars, see `permenv.progress`.

    Raises:
        DataError: If no image can be used, or the proposals lack one.
    """
    used = _usable(records, load_voc_image, progress)
    images = _Decoded(used, load_voc_image)
    if proposals is None:
        indices = range(len(used))
        found = list(
            in_parallel(lambda n: edge_windows(images[n], windows), indices, "windows", progress, "image", _IN_FLIGHT)
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


def object_crops(
    records: Sequence[VocImage], size: int, *, smallest: float = 10_000, progress: bool = True
) -> StillImages:
    """Objects as labelled images, each cut out along its box (section 4.1).

    "We use the provided bounding boxes of the dataset to extract the individual objects, whereas patches with less than
    10k pixels are discarded." Difficult objects are left out, too: the paper's number of annotated objects, 24,640, is
    VOC 2007's number of the others.

    A crop is resized to a square, so that the whole object is seen and nothing else, and the aspect ratio is lost. The
    paper only says that its images are squares of 227 pixels; R-CNN (Girshick et al. 2014) warps its boxes in the same
    way, but with 16 pixels of context.

    Args:
        records: The images, for queries those of the list "test", for the database of "trainval".
        size: Side of the squares in pixels.
        smallest: Pixels of the smallest box that is used, in the image before resizing.
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        The objects, image by image in the order of their annotations, with labels of `VOC_CLASSES`.

    Raises:
        DataError: If there is none that can be used.
    """

    def cut(record: VocImage) -> tuple[list[np.ndarray], list[int]] | str:
        objects = [each for each in record.objects if not each.difficult and each.area >= smallest]
        if not objects:
            return [], []
        pixels = load_voc_image(record)
        if isinstance(pixels, str):
            return pixels
        labels = [VOC_CLASSES.index(each.name) for each in objects]
        return [_crop(pixels, each.box, size) for each in objects], labels

    crops: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    cuts = in_parallel(cut, records, "objects", progress, "image", _IN_FLIGHT)
    for record, found in zip(records, cuts, strict=True):
        if isinstance(found, str):
            skipped.append((record.name, found))
            continue
        crops += found[0]
        labels += found[1]
        names += [record.name] * len(found[0])
    if skipped:
        log.warning("%d of %d images skipped: %s", len(skipped), len(records), list_some(skipped))
    if not crops:
        raise DataError(
            f"{len(records)} images have no object of at least {smallest:g} pixels that is not difficult and can be "
            "read; lower the number of pixels, or correct the folder"
        )
    key = fingerprint(f"VOC objects, size {size}", names, [content_digest(crop.tobytes()) for crop in crops])
    return StillImages(
        torch.from_numpy(np.stack(crops)), np.array(labels), VOC_CLASSES, "VOC objects", key, tuple(skipped)
    )


class _Decoded(Sequence[np.ndarray]):
    """Files that are decoded when they are asked for."""

    def __init__(self, records: Sequence[VocImage], load: Callable[[VocImage], np.ndarray | str]):
        self._records, self._load = records, load

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an index or a slice
        if isinstance(index, slice):
            return _Decoded(self._records[index], self._load)
        pixels = self._load(self._records[index])
        if isinstance(pixels, str):
            path = _decoded_file(self._records[index], self._load)
            raise DataError(f"{path} cannot be read any more: {pixels}; restore it")
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
        log.warning("%d of %d images skipped: %s", len(skipped), len(records), list_some(skipped))
    if not kept:
        named = [(str(_decoded_file(record, load)), fault) for record, (_, fault) in zip(records, skipped, strict=True)]
        raise DataError(f"none of {len(records)} images can be used: {list_some(named)}; correct the folder")
    return kept


def _decoded_file(record: VocImage, load: Callable[[VocImage], np.ndarray | str]) -> Path:
    """The file that one of the functions that decode takes its pixels from."""
    return record.mask if load is load_voc_mask and record.mask is not None else record.path


def _fault(pixels: np.ndarray | str) -> str | None:
    return pixels if isinstance(pixels, str) else None


def _crop(pixels: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Cut out the pixels that a box touches, as a square (size, size, 3)."""
    left, top, right, bottom = box
    return resized(pixels[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)], size, size)


def _objects(record: VocImage) -> Objects:
    boxes = np.array([each.box for each in record.objects], dtype=np.float64).reshape(-1, 4)
    return Objects(
        boxes - [0, 0, 1, 1],  # from half-open to boxes that contain their last pixels
        np.array([VOC_CLASSES.index(each.name) for each in record.objects], dtype=np.int64),
        np.array([each.difficult for each in record.objects], dtype=bool),
    )
