"""Object detection on PASCAL VOC 2007 with Fast R-CNN (section 4.2, Table 4 ii).

"For object detection we train Fast RCNN [43] following the experimental protocol described in [43]": Girshick, Fast
R-CNN, ICCV 2015. One scale, two images a mini-batch with 64 proposals each, a quarter of them objects (overlap of at
least 0.5), the others with an overlap in [0.1, 0.5); a softmax over classes and background, and for each class a
regression of the box with normalised targets and a smooth L1 loss; non-maximum suppression at 0.3. Difficult objects
are not trained on.

As in the released CaffeNet of Fast R-CNN, every layer of the trunk is padded by half of its kernel, so that units lie
at multiples of the stride, and RoI pooling takes the place of the last max pooling. What differs: all layers are
trained, conv1 as well, since the trunk did not see ImageNet's labels; images are normalised each on its own; fc6 and
fc7 start with He's normal distribution; every image is mirrored half of the time instead of being in the set twice.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from permenv.progress import progress_bar
from permenv.transfer.batches import chunks, padded
from permenv.transfer.boxes import box_targets, clipped, mirrored, moved, suppress
from permenv.transfer.crops import resized
from permenv.transfer.finetuning import Schedule, epochs, fine_tune
from permenv.transfer.plain import FineTunedNetwork, ReceptiveField, network_input, plain_trunk, receptive_field
from permenv.transfer.roi_pooling import roi_max_pool
from permenv.transfer.voc_metrics import (
    AveragePrecision,
    Detections,
    Truth,
    detection_precision,
    intersection_over_union,
    mean_average_precision,
)

_CLASS, _BOX = "class", "box"
_POOLED = (6, 6)  # units that fc6 sees of a proposal
_PROPOSALS = 512  # in fc6 at once


@dataclass(frozen=True, eq=False)
class Objects:
    """What is in an image.

    Attributes:
        boxes: (n, 4) [xmin, ymin, xmax, ymax] in pixels from 0, the last ones included.
        labels: (n,) int, indices of classes.
        difficult: (n,) bool.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True, eq=False)
class DetectionImages:
    """Images with their objects and proposals.

    Attributes:
        images: N of (H, W, 3) uint8 RGB, of any sizes; they may be decoded when they are asked for.
        objects: Of each image.
        proposals: Of each image (m, 4), like the boxes of objects.
    """

    images: Sequence[np.ndarray]
    objects: Sequence[Objects]
    proposals: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        numbers = (len(self.images), len(self.objects), len(self.proposals))
        if len(set(numbers)) > 1 or not numbers[0]:
            raise ValueError(
                "{} images with objects of {} and proposals of {}: give at least one image, with objects and proposals "
                "for each".format(*numbers)
            )


@dataclass(frozen=True)
class DetectionOptions:
    """Options of the protocol; the defaults are those of Fast R-CNN.

    Attributes:
        short_side: Images are resized to this short side in pixels.
        long_side: Unless the long one would be longer than this.
        images: Images of a mini-batch.
        proposals: Proposals of a mini-batch, from all of its images.
        foreground: Largest share of them that are objects.
        least_foreground: Overlap from which a proposal is an object.
        background: Overlaps of background: from the first, below the second.
        hidden: Units of fc6 and fc7.
        dropout: Share of them that is dropped in training.
        stride: Stride of conv1; None for the trunk's own.
        suppression: Overlap above which the box with the lower score is removed.
        least_score: Boxes with a lower probability of the class are no detections.
        most: Largest number of detections in an image.
        schedule: SGD.
    """

    short_side: int = 600
    long_side: int = 1000
    images: int = 2
    proposals: int = 128
    foreground: float = 0.25
    least_foreground: float = 0.5
    background: tuple[float, float] = (0.1, 0.5)
    hidden: int = 4096
    dropout: float = 0.5
    stride: int | None = 4
    suppression: float = 0.3
    least_score: float = 0.05
    most: int = 100
    schedule: Schedule = field(default_factory=lambda: Schedule(40_000, 1e-3, 30_000))

    @classmethod
    def small(cls) -> DetectionOptions:
        """For the trunk of the tiny preset and two CPU cores, at its own scale."""
        schedule = Schedule(600, 0.01, 450, largest_gradient=1.0)
        return cls(short_side=240, long_side=430, hidden=256, stride=None, least_score=0.01, schedule=schedule)


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """Figures of the protocol.

    Attributes:
        by_class: Average precision of each class on the test images, at an overlap of 0.5.
        mean: Over the classes that occur there.
        detections: By class, what was found.
        losses: (iterations,) of the training.
    """

    by_class: dict[str, AveragePrecision]
    mean: AveragePrecision
    detections: dict[str, Detections]
    losses: np.ndarray


def detection(
    trunk: nn.Module,
    train: DetectionImages,
    test: DetectionImages,
    classes: Sequence[str],
    options: DetectionOptions | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> DetectionResult:
    """Train Fast R-CNN from a trunk and measure average precision on other images.

    Args:
        trunk: See `plain_trunk`; it is left as it is.
        train: Training images, of VOC those of trainval. Those that have no object, or difficult ones only, are left
            out.
        test: Test images.
        classes: Names of the classes.
        options: By default those of the paper.
        seed: Decides new weights, mini-batches, proposals and dropped units.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Raises:
        ValueError: If the trunk cannot be folded, or the training images have no object, or difficult ones only.
        FloatingPointError: If the training diverges.
    """
    options = options or DetectionOptions()
    detector = FastRCNN(trunk, len(classes), options, seed=seed).to(torch.device(device))
    regions = [
        assign(proposals, objects, options) for objects, proposals in zip(train.objects, train.proposals, strict=True)
    ]
    usable = [index for index, each in enumerate(regions) if len(each.foreground) or len(each.background)]
    detector.targets = TargetScale.of(regions, len(classes))
    rng = np.random.default_rng([seed, 0])
    batches = epochs(rng, len(usable), options.images)

    def draw() -> tuple[list[np.ndarray], list[Regions]]:
        chosen = [usable[index] for index in next(batches)]
        drawn = [sample(regions[index], options, rng) for index in chosen]
        images = [train.images[index] for index in chosen]
        for index, image in enumerate(images):
            if rng.random() < 0.5:
                images[index], drawn[index] = image[:, ::-1], drawn[index].mirrored(image.shape[1])
        return images, drawn

    losses = fine_tune(
        detector, options.schedule, draw, lambda batch: detector.loss(*batch), label="detection", progress=progress
    )
    found = detect(detector, test, classes, progress=progress)
    by_class = {
        name: detection_precision(found[name], [_truth(objects, label) for objects in test.objects])
        for label, name in enumerate(classes)
    }
    return DetectionResult(by_class, mean_average_precision(by_class), found, losses)


class Regions(NamedTuple):
    """Regions of one image and what is to be predicted of them.

    Attributes:
        boxes: (n, 4).
        labels: (n,) int: 0 = background, 1 + class.
        targets: (n, 4) what regression should predict; 0 for background.
        foreground: Indices of objects.
        background: Indices of background.
    """

    boxes: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    foreground: np.ndarray
    background: np.ndarray

    def mirrored(self, width: int) -> Regions:
        """The regions in the mirrored image."""
        return self._replace(boxes=mirrored(self.boxes, width), targets=self.targets * [-1, 1, 1, 1])


class TargetScale(NamedTuple):
    """Mean and deviation of the regression's targets by class (classes, 4), of images and mirrored images."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, regions: Sequence[Regions], classes: int) -> TargetScale:
        """Measure them; a class whose targets do not vary has deviation 1.

        Raises:
            ValueError: If there is no object.
        """
        targets = np.concatenate([each.targets[each.foreground] for each in regions])
        labels = np.concatenate([each.labels[each.foreground] for each in regions])
        if not len(labels):
            raise ValueError("no training image has an object that is not difficult: there is nothing to learn")
        mean, deviation = np.zeros((classes, 4)), np.ones((classes, 4))
        for label in range(classes):
            own = targets[labels == label + 1]
            if len(own):
                both = np.concatenate([own, own * [-1, 1, 1, 1]])
                mean[label], spread = both.mean(axis=0), both.std(axis=0)
                deviation[label] = np.where(spread > 1e-6, spread, 1.0)
        return cls(mean, deviation)


class FastRCNN(nn.Module):
    """The detector: a plain trunk, RoI pooling, fc6, fc7, and outputs for class and box.

    Args:
        trunk: See `plain_trunk`.
        classes: Their number, without background.
        options: `hidden`, `dropout`, `stride` and the sizes of images are used.
        seed: Decides new weights and dropped units.
    """

    targets: TargetScale

    def __init__(self, trunk: nn.Module, classes: int, options: DetectionOptions, *, seed: int = 0):
        super().__init__()
        plain = centred(plain_trunk(trunk, stride=options.stride))
        last = max(index for index, layer in enumerate(plain) if isinstance(layer, nn.Conv2d | nn.ReLU))
        plain = nn.Sequential(*list(plain)[: last + 1])  # RoI pooling takes the place of the last max pooling
        self.field: ReceptiveField = receptive_field(plain)
        outputs = {_CLASS: (classes + 1, 0.01), _BOX: (4 * classes, 0.001)}
        self.network = FineTunedNetwork(
            plain, _POOLED, outputs, hidden=options.hidden, dropout=options.dropout, seed=seed
        )
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it
        self.options = options
        self.targets = TargetScale(np.zeros((classes, 4)), np.ones((classes, 4)))

    def maps(self, images: Sequence[np.ndarray]) -> tuple[Tensor, list[float]]:
        """Resize images, normalise them, and run the trunk; smaller ones are padded at the right and at the bottom.

        Returns:
            Feature maps (N, c, y, x), and the factor by which each image was resized.
        """
        device = next(self.parameters()).device
        factors, inputs = [], []
        for image in images:
            height, width = image.shape[:2]
            factor = min(self.options.short_side / min(height, width), self.options.long_side / max(height, width))
            pixels = resized(image, max(1, round(height * factor)), max(1, round(width * factor)))
            inputs.append(network_input(pixels[None], device)[0])
            factors.append(factor)
        return self.network.trunk(padded(inputs, 0.0).contiguous(memory_format=torch.channels_last)), factors

    def pooled(self, maps: Tensor, boxes: np.ndarray, images: np.ndarray) -> Tensor:
        """Pool resized boxes (R, 4) of images (R,) from feature maps: (R, c, 6, 6)."""
        units = np.round((boxes - self.field.first) / self.field.stride).astype(np.int64)
        low, high = np.split(units, 2, axis=1)
        size = np.array([maps.shape[3], maps.shape[2]])
        units = np.concatenate([np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)], axis=1)
        regions, which = (torch.from_numpy(each).to(maps.device) for each in (units, images))
        return roi_max_pool(maps, regions, which, _POOLED)

    def loss(self, images: Sequence[np.ndarray], regions: Sequence[Regions]) -> Tensor:
        """Cross-entropy of the classes and smooth L1 of the boxes, each per region."""
        maps, factors = self.maps(images)
        boxes = np.concatenate([each.boxes * factor for each, factor in zip(regions, factors, strict=True)])
        which = np.repeat(np.arange(len(images)), [len(each.boxes) for each in regions])
        units = self.network.hidden(self.pooled(maps, boxes, which))
        labels = np.concatenate([each.labels for each in regions])
        targets = np.concatenate([each.targets for each in regions])
        (objects,) = np.nonzero(labels)
        classes = labels[objects] - 1
        wanted = (targets[objects] - self.targets.mean[classes]) / self.targets.deviation[classes]
        truth = torch.from_numpy(labels).to(maps.device)
        class_loss = nn.functional.cross_entropy(self.network.outputs[_CLASS](units), truth)
        rows, columns = (torch.from_numpy(each).to(maps.device) for each in (objects, classes))
        predicted = self.network.outputs[_BOX](units).unflatten(1, (-1, 4))[rows, columns]
        shifts = torch.from_numpy(wanted).float().to(maps.device)
        return class_loss + nn.functional.smooth_l1_loss(predicted, shifts, reduction="sum") / len(labels)

    @torch.no_grad()
    def predict(self, image: np.ndarray, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (m, classes) and boxes (m, classes, 4) of proposals (m, 4) of an image."""
        maps, (factor,) = self.maps([image])
        probabilities, predicted = [], []
        for part in chunks(proposals, _PROPOSALS):
            units = self.network.hidden(self.pooled(maps, part * factor, np.zeros(len(part), dtype=np.int64)))
            probabilities.append(self.network.outputs[_CLASS](units).softmax(1)[:, 1:].cpu().numpy())
            predicted.append(self.network.outputs[_BOX](units).unflatten(1, (-1, 4)).cpu().numpy())
        shifts = np.concatenate(predicted) * self.targets.deviation + self.targets.mean
        height, width = image.shape[:2]
        classes = shifts.shape[1]
        boxes = clipped(moved(np.repeat(proposals, classes, axis=0), shifts.reshape(-1, 4)), height, width)
        return np.concatenate(probabilities), boxes.reshape(-1, classes, 4)


def centred(trunk: nn.Sequential) -> nn.Sequential:
    """Pad every layer of a trunk by half of its kernel; a copy."""
    trunk = copy.deepcopy(trunk)
    for layer in trunk:
        if isinstance(layer, nn.Conv2d):
            (rows, columns), (down, across) = layer.kernel_size, layer.dilation
            layer.padding = (down * (rows - 1) // 2, across * (columns - 1) // 2)
        elif isinstance(layer, nn.MaxPool2d) and isinstance(layer.kernel_size, int):
            layer.padding = (layer.kernel_size - 1) // 2
    return trunk


def assign(proposals: np.ndarray, objects: Objects, options: DetectionOptions) -> Regions:
    """Assign proposals, and the objects themselves, to the objects that they overlap most.

    Args:
        proposals: (m, 4).
        objects: Difficult ones are left out.
        options: `least_foreground` and `background` are used.
    """
    boxes, labels = objects.boxes[~objects.difficult], objects.labels[~objects.difficult]
    regions = np.concatenate([boxes, proposals]).astype(np.float64)
    if not len(boxes):
        nothing = np.empty(0, dtype=np.int64)
        return Regions(regions, np.zeros(len(regions), dtype=np.int64), np.zeros((len(regions), 4)), nothing, nothing)
    overlaps = intersection_over_union(regions, boxes)
    nearest, largest = overlaps.argmax(axis=1), overlaps.max(axis=1)
    foreground = largest >= options.least_foreground
    background = (largest >= options.background[0]) & (largest < options.background[1]) & ~foreground
    targets = np.where(foreground[:, None], box_targets(regions, boxes[nearest]), 0.0)
    return Regions(
        regions, np.where(foreground, labels[nearest] + 1, 0), targets, *map(np.flatnonzero, (foreground, background))
    )


def sample(regions: Regions, options: DetectionOptions, rng: np.random.Generator) -> Regions:
    """Draw the regions of an image for a mini-batch, without repetition: fewer if there are not enough."""
    number = options.proposals // options.images
    objects = min(round(options.foreground * number), len(regions.foreground))
    others = min(number - objects, len(regions.background))
    chosen = np.concatenate(
        [
            rng.choice(regions.foreground, objects, replace=False),
            rng.choice(regions.background, others, replace=False),
        ]
    )
    rows = np.arange(len(chosen))
    return Regions(
        regions.boxes[chosen], regions.labels[chosen], regions.targets[chosen], rows[:objects], rows[objects:]
    )


def detect(
    detector: FastRCNN, data: DetectionImages, classes: Sequence[str], *, progress: bool = True
) -> dict[str, Detections]:
    """Find the objects of every class in all images, at most `most` in each."""
    options = detector.options
    detector.eval()
    found: list[list[np.ndarray]] = [[np.empty((0, 6))] for _ in classes]  # image, box, score
    bar = progress_bar(data.images, label="testing", unit="image", show=progress)
    for number, (image, proposals) in enumerate(zip(bar, data.proposals, strict=True)):
        if not len(proposals):
            continue
        scores, boxes = detector.predict(image, proposals)
        own = []
        for label in range(len(classes)):
            (sure,) = np.nonzero(scores[:, label] > options.least_score)
            kept = sure[suppress(boxes[sure, label], scores[sure, label], options.suppression)]
            own.append(np.column_stack([np.full(len(kept), number), boxes[kept, label], scores[kept, label]]))
        ranked = np.sort(np.concatenate(own)[:, 5])[::-1]
        least = ranked[options.most - 1] if len(ranked) > options.most else -np.inf
        for label, each in enumerate(own):
            found[label].append(each[each[:, 5] >= least])
    results = {}
    for name, parts in zip(classes, found, strict=True):
        rows = np.concatenate(parts)
        results[name] = Detections(rows[:, 0].astype(np.int64), rows[:, 1:5], rows[:, 5])
    return results


def _truth(objects: Objects, label: int) -> Truth:
    own = objects.labels == label
    return Truth(objects.boxes[own], objects.difficult[own])
