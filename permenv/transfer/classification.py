"""Multi-label classification of PASCAL VOC 2007 (section 4.2, Table 4 i).

"For object classification we fine-tune our model on the dataset using the procedure described in [23]": Krähenbühl et
al., Data-dependent initializations of convolutional neural networks, ICLR 2016, without its initialisation. As in
their public code, the network is trained on random mirrored crops of trainval at random scales with one logistic loss
a class, and the score of a test image is the mean over ten such crops. Classes whose objects in an image are all
difficult are left out, in training and in the figure. The figure is, by that code, scikit-learn's average precision,
which does not interpolate (before scikit-learn 0.19 it did, linearly); `AveragePrecision` has it beside VOC's own.

What differs: crops are normalised each on its own, as the pieces of the self-supervised task are, instead of by
ImageNet's mean colour; fc6 and fc7 start with He's normal distribution, since the trunk has none. Of images with equal
scores the first ranks first; that code ranks those last that are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from permenv.progress import progress_bar
from permenv.transfer.crops import resized
from permenv.transfer.finetuning import Schedule, epochs, fine_tune
from permenv.transfer.plain import FineTunedNetwork, map_size, network_input, plain_trunk
from permenv.transfer.voc_metrics import AveragePrecision, classification_precision, mean_average_precision

_SCORE = "score"


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with a label for each class.

    Attributes:
        images: N of (H, W, 3) uint8 RGB, of any sizes; they may be decoded when they are asked for.
        labels: (N, classes) int as in VOC's files: 1 = in the image, -1 = not in it, 0 = difficult only.
    """

    images: Sequence[np.ndarray]
    labels: np.ndarray

    def __post_init__(self) -> None:
        if not 0 < len(self.images) == len(self.labels):
            raise ValueError(
                f"{len(self.images)} images with labels of {len(self.labels)}: give at least one image, and labels for "
                "every image"
            )


@dataclass(frozen=True)
class ClassificationOptions:
    """Options of the protocol; the defaults are those of Krähenbühl et al.

    Attributes:
        crop: Side of a crop in pixels, 227 for CaffeNet.
        scales: Smallest and largest factor by which images are resized before they are cropped.
        short_side: Images are resized to this short side before that; None to leave them as they are.
        test_crops: Random crops of a test image.
        batch: Crops of a mini-batch.
        hidden: Units of fc6 and fc7.
        dropout: Share of them that is dropped in training.
        stride: Stride of conv1; None for the trunk's own.
        schedule: SGD.
    """

    crop: int = 227
    scales: tuple[float, float] = (0.5, 2.0)
    short_side: int | None = None
    test_crops: int = 10
    batch: int = 16
    hidden: int = 4096
    dropout: float = 0.5
    stride: int | None = 4
    schedule: Schedule = field(
        default_factory=lambda: Schedule(80_000, 1e-3, 10_000, drop=0.5, weight_decay=1e-6, largest_gradient=10.0)
    )

    @classmethod
    def small(cls) -> ClassificationOptions:
        """For the trunk of the tiny preset and two CPU cores: as much of an image in a crop, at its own scale."""
        schedule = Schedule(500, 0.01, 200, drop=0.3, weight_decay=1e-6, largest_gradient=10.0)
        return cls(crop=96, short_side=158, hidden=256, stride=None, schedule=schedule)


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """Figures of the protocol.

    Attributes:
        by_class: Average precision of each class on the test images.
        mean: Over the classes that occur there.
        losses: (iterations,) of the training.
        network: The fine-tuned network; its output "score" is the logit of each class.
    """

    by_class: dict[str, AveragePrecision]
    mean: AveragePrecision
    losses: np.ndarray
    network: FineTunedNetwork


def classification(
    trunk: nn.Module,
    train: LabelledImages,
    test: LabelledImages,
    classes: Sequence[str],
    options: ClassificationOptions | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ClassificationResult:
    """Fine-tune a trunk on labelled images and measure average precision on others.

    Args:
        trunk: See `plain_trunk`; it is left as it is.
        train: Training images, of VOC those of trainval.
        test: Test images.
        classes: Names of the classes.
        options: By default those of the paper.
        seed: Decides new weights, mini-batches, crops and dropped units.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Raises:
        ValueError: If the trunk cannot be folded, the crop is too small for it, or labels are of other classes.
        FloatingPointError: If the training diverges.
    """
    options = options or ClassificationOptions()
    device = torch.device(device)
    for data in (train, test):
        if data.labels.shape[1:] != (len(classes),):
            raise ValueError(f"labels of shape {data.labels.shape} do not fit {len(classes)} classes")
    plain = plain_trunk(trunk, stride=options.stride).to(device)
    network = FineTunedNetwork(
        plain,
        map_size(plain, options.crop),
        {_SCORE: (len(classes), 0.01)},
        hidden=options.hidden,
        dropout=options.dropout,
        seed=seed,
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it
    rng = np.random.default_rng([seed, 0])
    batches = epochs(rng, len(train.images), options.batch)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        rows = next(batches)
        return np.stack([random_crop(train.images[row], options, rng) for row in rows]), train.labels[rows]

    def loss_of(batch: tuple[np.ndarray, np.ndarray]) -> Tensor:
        crops, labels = batch
        logits = network(network_input(crops, device))[_SCORE]
        return multi_label_loss(logits, torch.from_numpy(labels).to(device))

    losses = fine_tune(network, options.schedule, draw, loss_of, label="classification", progress=progress)
    scores = class_scores(network, test.images, options, seed=seed, progress=progress)
    by_class = {
        name: classification_precision(scores[:, column], test.labels[:, column]) for column, name in enumerate(classes)
    }
    return ClassificationResult(by_class, mean_average_precision(by_class), losses, network)


def multi_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Logistic losses summed over the classes, without those of label 0, and averaged over the images.

    Args:
        logits: (B, classes).
        labels: (B, classes) in {-1, 0, 1}.
    """
    losses = nn.functional.softplus(-labels * logits)
    return losses[labels != 0].sum() / len(logits)


@torch.no_grad()
def class_scores(
    network: FineTunedNetwork,
    images: Sequence[np.ndarray],
    options: ClassificationOptions,
    *,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """Mean logits (N, classes) over the random crops of each image."""
    device = next(network.parameters()).device
    rng = np.random.default_rng([seed, 1])
    network.eval()
    scores = []
    for image in progress_bar(images, label="testing", unit="image", show=progress):
        crops = np.stack([random_crop(image, options, rng) for _ in range(options.test_crops)])
        scores.append(network(network_input(crops, device))[_SCORE].mean(0).cpu().numpy())
    return np.stack(scores)


def random_crop(image: np.ndarray, options: ClassificationOptions, rng: np.random.Generator) -> np.ndarray:
    """Cut a random square out of an image and mirror it half of the time.

    Its side is that of a crop in the image resized by a random factor, at most the image's short side.

    Args:
        image: (H, W, 3) uint8.
        options: `crop`, `scales` and `short_side` are used.
        rng: Source of the draws.

    Returns:
        (crop, crop, 3) uint8.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    scale = rng.uniform(*options.scales) * (1 if options.short_side is None else options.short_side / short)
    side = min(short, max(1, round(options.crop / scale)))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    square = resized(image[top : top + side, left : left + side], options.crop, options.crop)
    return square[:, ::-1] if rng.random() < 0.5 else square
