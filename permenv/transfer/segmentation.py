"""Semantic segmentation of PASCAL VOC 2012 with FCN-32s (section 4.2, Table 4 iii).

"We use FCN[29] to fine-tune our features on the segmentation task": Long et al., Fully convolutional networks for
semantic segmentation, CVPR 2015. fc6 and fc7 become convolutions, a 1 × 1 convolution scores the classes, and a fixed
bilinear interpolation, a transposed convolution, brings the scores back to the size of the image. conv1 is padded so
widely, by 100 pixels in CaffeNet, that the scores cover the whole image; pooling rounds sizes up, as in Caffe. Void
pixels count neither in the loss nor in the figure.

What differs: images are normalised each on its own, as the pieces of the self-supervised task are; fc6 and fc7 start
with He's normal distribution, since the trunk has none. As in the original the score layer starts with zero, and
images are neither resized nor mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from permenv.data.voc import VOID
from permenv.progress import progress_bar
from permenv.transfer.batches import padded
from permenv.transfer.finetuning import Schedule, epochs, fine_tune
from permenv.transfer.plain import FineTunedNetwork, network_input, plain_trunk, receptive_field
from permenv.transfer.voc_metrics import class_iou, confusion, mean_iou

_SCORE = "score"


@dataclass(frozen=True, eq=False)
class SegmentedImages:
    """Images with a class for each pixel.

    Attributes:
        images: N of (H, W, 3) uint8 RGB, of any sizes; they may be decoded when they are asked for.
        masks: Of each image (H, W) uint8, indices of classes or `VOID`.
    """

    images: Sequence[np.ndarray]
    masks: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if not 0 < len(self.images) == len(self.masks):
            raise ValueError(
                f"{len(self.images)} images with masks of {len(self.masks)}: give at least one image, and a mask for "
                "every image"
            )


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of the protocol; the defaults are those of FCN-32s on AlexNet.

    Attributes:
        padding: Of conv1 in pixels.
        kernel: Rows and columns of fc6, which are those of CaffeNet's pool5 map.
        batch: Images of a mini-batch.
        hidden: Channels of fc6 and fc7.
        dropout: Share of their units that is dropped in training.
        stride: Stride of conv1; None for the trunk's own.
        schedule: SGD.
    """

    padding: int = 100
    kernel: tuple[int, int] = (6, 6)
    batch: int = 20
    hidden: int = 4096
    dropout: float = 0.5
    stride: int | None = 4
    schedule: Schedule = field(default_factory=lambda: Schedule(100_000, 1e-3, 100_000))

    @classmethod
    def small(cls) -> SegmentationOptions:
        """For the trunk of the tiny preset and two CPU cores, at its own scale."""
        schedule = Schedule(400, 0.02, 280, largest_gradient=1.0)
        return cls(padding=50, batch=2, hidden=256, stride=None, schedule=schedule)


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """Figures of the protocol.

    Attributes:
        by_class: Intersection over union of each class on the test images; NaN if it is neither there nor predicted.
        mean: Over the classes that occur there, background included.
        counts: (classes, classes) int64 pixels by true and predicted class.
        losses: (iterations,) of the training.
    """

    by_class: dict[str, float]
    mean: float
    counts: np.ndarray
    losses: np.ndarray


def segmentation(
    trunk: nn.Module,
    train: SegmentedImages,
    test: SegmentedImages,
    classes: Sequence[str],
    options: SegmentationOptions | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> SegmentationResult:
    """Train FCN-32s from a trunk and measure mean intersection over union on other images.

    Args:
        trunk: See `plain_trunk`; it is left as it is.
        train: Training images.
        test: Test images.
        classes: Names of the classes, "background" first.
        options: By default those of the paper.
        seed: Decides new weights, mini-batches and dropped units.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Raises:
        ValueError: If the trunk cannot be folded, the padding is too small, or a mask has other labels.
        FloatingPointError: If the training diverges.
    """
    options = options or SegmentationOptions()
    device = torch.device(device)
    network = FullyConvolutional(trunk, len(classes), options, seed=seed).to(device)
    batches = epochs(np.random.default_rng([seed, 0]), len(train.images), options.batch)

    def draw() -> list[tuple[np.ndarray, np.ndarray]]:
        return [(train.images[row], train.masks[row]) for row in next(batches)]

    def loss_of(batch: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        images = [network_input(image[None], device)[0] for image, _ in batch]
        masks = [torch.from_numpy(np.array(mask)).to(device) for _, mask in batch]
        return pixel_loss(network(padded(images, 0.0)), padded(masks, VOID), len(classes))

    losses = fine_tune(network, options.schedule, draw, loss_of, label="segmentation", progress=progress)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    bar = progress_bar(test.images, label="testing", unit="image", show=progress)
    for image, mask in zip(bar, test.masks, strict=True):
        counts += confusion(network.predict(image), mask, len(classes))
    ious = class_iou(counts)
    return SegmentationResult(
        {name: float(each) for name, each in zip(classes, ious, strict=True)}, mean_iou(counts), counts, losses
    )


class FullyConvolutional(nn.Module):
    """A plain trunk, fc6 and fc7 as convolutions, a score a class, and bilinear interpolation.

    Args:
        trunk: See `plain_trunk`.
        classes: Their number, background included.
        options: `padding`, `kernel`, `hidden`, `dropout` and `stride` are used.
        seed: Decides new weights and dropped units.
    """

    bilinear: Tensor

    def __init__(self, trunk: nn.Module, classes: int, options: SegmentationOptions, *, seed: int = 0):
        super().__init__()
        plain = plain_trunk(trunk, stride=options.stride)
        next(layer for layer in plain if isinstance(layer, nn.Conv2d)).padding = (options.padding, options.padding)
        for layer in plain:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        self.network = FineTunedNetwork(
            plain, options.kernel, {_SCORE: (classes, 0.0)}, hidden=options.hidden, dropout=options.dropout, seed=seed
        )
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it
        rows, columns = (receptive_field(plain).after(side) for side in options.kernel)
        self.stride = rows.stride
        # where the image begins in the interpolated scores: the first unit is at their pixel stride - 1
        self.offset = tuple(round(self.stride - 1 - each.first) for each in (rows, columns))
        if min(self.offset) < 0:
            raise ValueError(f"padding {options.padding} of conv1 is too small; add at least {-min(self.offset)}")
        self.register_buffer("bilinear", bilinear_kernel(self.stride), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, classes, h, w) of the pixels of images (N, 3, h, w)."""
        network = self.network
        kernel = network.fc6.weight.unflatten(1, (-1, *network.pool5))
        units = torch.relu(nn.functional.conv2d(network.trunk(images), kernel, network.fc6.bias))
        units = network.dropout(units)
        units = torch.relu(nn.functional.conv2d(units, network.fc7.weight[:, :, None, None], network.fc7.bias))
        units = network.dropout(units)
        score = network.outputs[_SCORE]
        assert isinstance(score, nn.Linear)
        scores = upsampled(
            nn.functional.conv2d(units, score.weight[:, :, None, None], score.bias), self.bilinear, self.stride
        )
        (top, left), (rows, columns) = self.offset, images.shape[2:]
        if scores.shape[2] < top + rows or scores.shape[3] < left + columns:
            raise ValueError(
                f"the scores do not cover an image of {rows} × {columns} pixels; choose a larger padding of conv1"
            )
        return scores[:, :, top : top + rows, left : left + columns]

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> np.ndarray:
        """The class of each pixel (H, W) int64 of an image (H, W, 3) uint8."""
        scores = self(network_input(image[None], self.bilinear.device))
        return scores[0].argmax(0).cpu().numpy()


def bilinear_kernel(stride: int) -> Tensor:
    """Weights (2 · stride - 1,) of bilinear interpolation along a line: a tent that is 0 at neighbouring units."""
    return 1 - (torch.arange(2 * stride - 1) - (stride - 1)).abs() / stride


def upsampled(scores: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Interpolate each channel, as a transposed convolution.

    Args:
        scores: (N, c, y, x).
        kernel: (k,) weights along a line, of `bilinear_kernel`.
        stride: Pixels from one unit to the next.

    Returns:
        (N, c, (y - 1) · stride + k, (x - 1) · stride + k).
    """
    channels = scores.shape[1]
    # the tent of an area is a product of two: a pass along each direction takes less time than one of k · k weights
    columns = kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    wide = nn.functional.conv_transpose2d(scores, columns, stride=(1, stride), groups=channels)
    return nn.functional.conv_transpose2d(wide, columns.transpose(2, 3), stride=(stride, 1), groups=channels)


def pixel_loss(scores: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Mean cross-entropy of the pixels that are not void; 0 if all are.

    Args:
        scores: (N, classes, h, w).
        masks: (N, h, w) uint8, labels or `VOID`.
        classes: Their number.

    Raises:
        ValueError: If there is another label.
    """
    labels = masks.long()
    used = labels != VOID
    if bool((used & (labels >= classes)).any()):
        raise ValueError(f"a mask has the label {int(labels[used].max())}; expected 0 to {classes - 1}, or {VOID}")
    return nn.functional.cross_entropy(scores, labels, ignore_index=VOID, reduction="sum") / used.sum().clamp_min(1)
