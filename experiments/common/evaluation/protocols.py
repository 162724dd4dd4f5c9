"""The paper's evaluation protocols by name: what each needs, its settings and its metrics.

A protocol is a function of a trunk and folders of data. "paper" are the sizes of the paper and of the works that it
cites; "small" those for the tiny trunk and two CPU cores, a few minutes each.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from experiments.common.evaluation.paper_numbers import CLASS_ACCURACY, ELEVEN_POINTS, MEAN_IOU, SKLEARN
from experiments.common.options import data_name
from permenv import ConfigurationError, DataError, StillImages, VideoClips, image_folder, video_folder
from permenv.data.voc import VOC_CLASSES, VocImage, find_release, voc_images
from permenv.transfer.action_recognition import ActionOptions, ActionResult, SplitResult, action_recognition
from permenv.transfer.action_splits import read_actions
from permenv.transfer.classification import ClassificationOptions, classification
from permenv.transfer.detection import DetectionImages, DetectionOptions, detection
from permenv.transfer.probes import LinearOptions, NonLinearOptions, linear_probe, nonlinear_probe
from permenv.transfer.proposals import selective_search
from permenv.transfer.retrieval import TABLE_1, retrieval
from permenv.transfer.segmentation import SegmentationOptions, segmentation
from permenv.transfer.trunks import Trunk, some_of, some_squares, with_measured_statistics
from permenv.transfer.voc_sets import detection_images, labelled_images, object_crops, segmented_images

Setting = Literal["paper", "small"]
GivenSetting = Literal["auto", "paper", "small"]
_FRAMES = 10  # of a video, section 4.1
_PARTS = ("trainval", "test")  # of VOC 2007


@dataclass(frozen=True)
class Data:
    """Folders of data."""

    images: Path | None = None
    """Training images, a folder for each class."""
    eval_images: Path | None = None
    """Test images, a folder for each class."""
    videos: Path | None = None
    """Videos, a folder for each class, with the lists of the official splits of UCF-101 or HMDB-51."""
    voc: Path | None = None
    """VOCdevkit/VOC2007 or a folder above it."""
    voc_segmentation: Path | None = None
    """VOCdevkit/VOC2012, whose lists train and val have masks; by default those of --voc, trainval and test."""
    proposals: Path | None = None
    """Folder with voc_2007_trainval.mat and voc_2007_test.mat, as released with Fast R-CNN; by default windows that are
    made from edges."""


def resolve_setting(given: GivenSetting, trunk: Trunk) -> Setting:
    """Return the sizes of the protocols; "auto" are the paper's for CaffeNet only."""
    if given != "auto":
        return given
    return "paper" if trunk.name == "caffenet" else "small"


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
        trunk: What is evaluated.
        data: Folders.
        setting: Sizes.
        seed: Decides new weights and mini-batches.
        device: Where to compute.
        share: Of the training iterations or epochs, in (0, 1]: to try a protocol out.
        measure: Whether the trunk's batch statistics are measured on the protocol's training images first.
    """

    trunk: Trunk
    data: Data
    setting: Setting
    seed: int
    device: torch.device
    share: float = 1.0
    measure: bool = False

    def prepared(self, images: Callable[[], np.ndarray]) -> Trunk:
        """The trunk on the device, with the statistics of training images if asked for.

        Args:
            images: Returns some of them, (N, S, S, 3) uint8; of larger ones the centre of the trunk's size is used.
        """
        trunk = dataclasses.replace(self.trunk, module=self.trunk.module.to(self.device))
        if not self.measure:
            return trunk
        pixels, side = images(), self.trunk.input_size
        margin = max(0, pixels.shape[1] - side) // 2
        return with_measured_statistics(trunk, pixels[:, margin : margin + side, margin : margin + side])

    def options(self, kind: Any) -> Any:
        """A protocol's options in this setting, with the share of iterations that is asked for."""
        options = kind.small() if self.setting == "small" else kind()
        if self.share == 1:
            return options
        if hasattr(options, "epochs"):
            return dataclasses.replace(options, epochs=max(1, round(options.epochs * self.share)))
        schedule = options.schedule
        shorter = {name: max(1, round(getattr(schedule, name) * self.share)) for name in ("iterations", "drop_every")}
        return dataclasses.replace(options, schedule=dataclasses.replace(schedule, **shorter))


@dataclass(frozen=True)
class Protocol:
    """A protocol.

    Attributes:
        title: In words.
        table: Of the paper.
        needs: Names of fields of `Data`; of those that stand together one suffices.
        on: Says which data are used.
        run: Returns metrics by name, shares in [0, 1]; None where features are not finite.
        metric: Which of them networks are compared by: that of the paper where it reports one.
        may_use: Names of fields of `Data` that it reads if they are given.
    """

    title: str
    table: str
    needs: tuple[tuple[str, ...], ...]
    on: Callable[[Data], str]
    run: Callable[[Job], Mapping[str, float | None]]
    metric: str
    may_use: tuple[str, ...] = ()

    def allowed_by(self, data: Data) -> bool:
        """Whether the data that it needs are given."""
        return not self._lacking(data)

    def check(self, name: str, data: Data) -> None:
        """Check that the data are given, and that their folders are there.

        Raises:
            ConfigurationError: If they are not given.
            DataError: If there is no such folder.
        """
        for needs in self._lacking(data):
            options = " or ".join(map(_option, needs))
            raise ConfigurationError(f"protocol {name!r} needs {options}: name the folder")
        for field in itertools.chain(*self.needs, self.may_use):
            folder = getattr(data, field)
            if folder is not None and not Path(os.path.expanduser(folder)).is_dir():  # noqa: PTH111 - raises nothing
                raise DataError(f"protocol {name!r}: there is no folder {folder}; name it with {_option(field)}")

    def _lacking(self, data: Data) -> list[tuple[str, ...]]:
        return [needs for needs in self.needs if all(getattr(data, need) is None for need in needs)]


def _option(field: str) -> str:
    """Return the option that names a folder of `Data`."""
    return f"--{field.replace('_', '-')}"


def class_folders(data: Data, side: int) -> tuple[StillImages, StillImages]:
    """Read images of train and of test."""
    assert data.images is not None, "checked by `Protocol.check`"
    assert data.eval_images is not None, "likewise"
    return image_folder(data.images, side), image_folder(data.eval_images, side)


def objects(data: Data, side: int) -> tuple[StillImages, StillImages]:
    """Cut the objects out of VOC's trainval and test."""
    train, test = (object_crops(each, side) for each in _records(data))
    return train, test


def clips_of_split_1(data: Data, side: int) -> tuple[VideoClips, VideoClips]:
    """Read the frames of the training and of the test list."""
    assert data.videos is not None, "checked by `Protocol.check`"
    return (
        video_folder(data.videos, side, _FRAMES, split=1, part="train"),
        video_folder(data.videos, side, _FRAMES, split=1, part="test"),
    )


SETS: Mapping[str, Callable[[Data, int], tuple[StillImages | VideoClips, StillImages | VideoClips]]] = {
    "images": class_folders,
    "objects": objects,
    "frames": clips_of_split_1,
}
"""By name, what makes the images or clips that are searched, and the queries."""


def _retrieve(
    load: Callable[[Data, int], tuple[StillImages | VideoClips, StillImages | VideoClips]], job: Job
) -> dict[str, float | None]:
    database, queries = load(job.data, job.trunk.input_size)
    trunk = job.prepared(lambda: some_of(database))
    found = retrieval(trunk.module, queries, database, top=TABLE_1, frames=_FRAMES, progress=True)
    # where features are not finite there is no metric
    return {f"top {k}": None if found is None else found[k] for k in TABLE_1}


def _probe_linearly(job: Job) -> dict[str, float]:
    train, test = class_folders(job.data, job.trunk.input_size)
    trunk = job.prepared(lambda: some_of(train))
    found = linear_probe(trunk, train, test, job.options(LinearOptions), seed=job.seed, device=job.device)
    return {layer: each.accuracy for layer, each in found.items()}


def _probe_nonlinearly(job: Job) -> dict[str, float]:
    train, test = class_folders(job.data, job.trunk.input_size)
    trunk = job.prepared(lambda: some_of(train))
    found = nonlinear_probe(trunk, train, test, job.options(NonLinearOptions), seed=job.seed, device=job.device)
    return {found.layer: found.accuracy}


def _recognise_actions(job: Job) -> dict[str, float]:
    assert job.data.videos is not None, "checked by `Protocol.check`"
    clips, splits = read_actions(job.data.videos, job.trunk.input_size)
    options: ActionOptions = job.options(ActionOptions)
    results: list[SplitResult] = []
    for split in splits:  # a clip that one split trains on is tested by another
        trunk = job.prepared(functools.partial(some_of, clips, split.train))
        results += action_recognition(trunk, clips, [split], options, seed=job.seed, device=job.device).splits
    found = ActionResult.of(results)
    return {
        "accuracy": found.accuracy,
        CLASS_ACCURACY: found.class_accuracy,
        **{f"split {each.number}": each.accuracy for each in found.splits},
    }


def _classify(job: Job) -> dict[str, float]:
    records = _records(job.data)
    train, test = (labelled_images(each) for each in records)
    trunk = job.prepared(lambda: some_squares(records[0], job.trunk.input_size))
    options = job.options(ClassificationOptions)
    found = classification(trunk.module, train, test, VOC_CLASSES, options, seed=job.seed, device=job.device)
    return {
        ELEVEN_POINTS: found.mean.eleven_point,
        "mAP, all points": found.mean.all_point,
        SKLEARN: found.mean.uninterpolated,
    }


def _detect(job: Job) -> dict[str, float]:
    assert job.data.voc is not None, "checked by `Protocol.check`"
    voc, options = job.data.voc, job.options(DetectionOptions)
    train, test = (_detection_images(voc, job.data.proposals, part) for part in _PARTS)
    trunk = job.prepared(lambda: some_squares(voc_images(voc, _PARTS[0]), job.trunk.input_size))
    found = detection(trunk.module, train, test, VOC_CLASSES, options, seed=job.seed, device=job.device)
    return {ELEVEN_POINTS: found.mean.eleven_point, "mAP, all points": found.mean.all_point}


@functools.lru_cache(maxsize=len(_PARTS))
def _detection_images(voc: Path, proposals: Path | None, part: str) -> DetectionImages:
    """Images with proposals: the same for every network, and slow to make."""
    published = None if proposals is None else selective_search(proposals / f"voc_2007_{part}.mat")
    return detection_images(voc_images(voc, part), published)


def _segment(job: Job) -> dict[str, float]:
    root, parts = _segmented(job.data)
    records = [voc_images(root, part, "Segmentation") for part in parts]
    train, test = (segmented_images(each) for each in records)
    trunk = job.prepared(lambda: some_squares(records[0], job.trunk.input_size))
    options = job.options(SegmentationOptions)
    classes = ("background", *VOC_CLASSES)
    found = segmentation(trunk.module, train, test, classes, options, seed=job.seed, device=job.device)
    return {MEAN_IOU: found.mean}


def _segmented(data: Data) -> tuple[Path, tuple[str, str]]:
    """The release whose masks are used, and the lists of training and test."""
    if data.voc_segmentation is not None:
        return data.voc_segmentation, ("train", "val")  # the masks of VOC 2012's test are not published
    assert data.voc is not None, "checked by `Protocol.check`"
    return data.voc, _PARTS


def _records(data: Data) -> list[tuple[VocImage, ...]]:
    """The images of trainval and of test."""
    assert data.voc is not None, "checked by `Protocol.check`"
    return [voc_images(data.voc, part) for part in _PARTS]


def _name(path: Path | None) -> str:
    assert path is not None, "checked by `Protocol.check`"
    return data_name(path, "", 0)


def _release(root: Path | None) -> str:
    """A release of VOC by the names of its folder and of those above it."""
    assert root is not None, "checked by `Protocol.check`"
    return "/".join(find_release(root).absolute().parts[-3:])


def _on_images(data: Data) -> str:
    return f"{_name(data.images)} and {_name(data.eval_images)}"


def _on_videos(data: Data) -> str:
    return f"{_name(data.videos)}, split 1"


def _on_splits(data: Data) -> str:
    return f"{_name(data.videos)}, three splits"


def _on_voc(data: Data) -> str:
    return f"{_release(data.voc)}, {' and '.join(_PARTS)}"


def _on_proposals(data: Data) -> str:
    proposals = "windows made from edges" if data.proposals is None else f"proposals of {_name(data.proposals)}"
    return f"{_on_voc(data)}, {proposals}"


def _on_masks(data: Data) -> str:
    root, parts = _segmented(data)
    return f"{_release(root)}, {' and '.join(parts)}"


_CLASS_FOLDERS, _VOC, _VIDEOS = (("images",), ("eval_images",)), (("voc",),), (("videos",),)


PROTOCOLS: Mapping[str, Protocol] = {
    "retrieval-images": Protocol(
        "nearest neighbours of images",
        "as Table 1",
        _CLASS_FOLDERS,
        _on_images,
        functools.partial(_retrieve, class_folders),
        "top 1",
    ),
    "retrieval-objects": Protocol(
        "nearest neighbours of objects",
        "Table 1, Pascal",
        _VOC,
        _on_voc,
        functools.partial(_retrieve, objects),
        "top 1",
    ),
    "retrieval-videos": Protocol(
        "nearest neighbours of frames",
        "Table 1, UCF-101",
        _VIDEOS,
        _on_videos,
        functools.partial(_retrieve, clips_of_split_1),
        "top 1",
    ),
    "linear": Protocol(
        "linear classifier of frozen features",
        "Table 2",
        _CLASS_FOLDERS,
        _on_images,
        _probe_linearly,
        "pool5",
    ),
    "nonlinear": Protocol(
        "two-layer classifier of frozen features",
        "Table 2",
        _CLASS_FOLDERS,
        _on_images,
        _probe_nonlinearly,
        "pool5",
    ),
    "actions": Protocol(
        "action recognition, mean of three splits",
        "Table 3",
        _VIDEOS,
        _on_splits,
        _recognise_actions,
        CLASS_ACCURACY,
    ),
    "classification": Protocol("multi-label classification", "Table 4 i", _VOC, _on_voc, _classify, SKLEARN),
    "detection": Protocol(
        "detection by Fast R-CNN",
        "Table 4 ii",
        _VOC,
        _on_proposals,
        _detect,
        ELEVEN_POINTS,
        may_use=("proposals",),
    ),
    "segmentation": Protocol(
        "segmentation by FCN-32s",
        "Table 4 iii",
        (("voc", "voc_segmentation"),),
        _on_masks,
        _segment,
        MEAN_IOU,
    ),
}
