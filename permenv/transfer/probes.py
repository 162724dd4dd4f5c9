"""Classifiers on frozen features (section 4.2, Table 2).

`linear_probe` follows Zhang, Isola, Efros, Colorful image colorization, ECCV 2016: the map of each layer is
average-pooled so that about 9,000 numbers stay, and a logistic regression is trained on them by SGD.

`nonlinear_probe` follows the paper's use of Noroozi, Favaro, Unsupervised learning of visual representations by solving
jigsaw puzzles, ECCV 2016: "a two layer neural network" over the frozen features, with one hidden layer. There, the
network is frozen up to a layer, and the layers after it are trained from random weights. So it is here, if a layer
before pool5 is named; but after pool5 there is one hidden layer instead of fc6 and fc7.

What differs from both: features are computed once, not once an epoch, so that images are seen whole, without random
crops and mirroring; each is normalised on its own as in the self-supervised task, and batch normalisation of frozen
layers keeps its running statistics. Features are kept in half precision. Those of a layer are divided by one number,
and the learning rate is chosen on a part of the training images, so that layers and trunks of any scale compare.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from permenv.config import ConfigurationError
from permenv.data import DataError, StillImages
from permenv.data.sets import free_bytes
from permenv.progress import progress_bar
from permenv.transfer.batches import CHUNK, chunks
from permenv.transfer.finetuning import Schedule, epochs, fine_tune
from permenv.transfer.plain import SeededDropout, linear_layer, network_input
from permenv.transfer.retrieval import class_names
from permenv.transfer.trunks import POOL5, Trunk

_PARTS = 3  # of a training: the learning rate drops after each
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class ProbeOptions:
    """How a classifier is trained and its learning rate chosen.

    Attributes:
        rates: Learning rates to choose from. The best is that of the highest accuracy on held-out training images, of
            equal ones the first. Biases learn at twice the rate.
        held_out: Share of the training images of each class that is held out meanwhile, in (0, 1).
        epochs: Of SGD; the learning rate drops to a tenth after each third.
        batch: Images of a mini-batch.
        momentum: Of SGD.
        weight_decay: Of weights; biases have none.
    """

    rates: tuple[float, ...]
    held_out: float = 0.1
    epochs: int = 30
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 1e-6

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ConfigurationError(f"rates={self.rates}: pass one or more learning rates above 0")
        if not 0 < self.held_out < 1:
            raise ConfigurationError(f"held_out={self.held_out}: pass a share between 0 and 1")
        if min(self.epochs, self.batch) < 1:
            raise ConfigurationError(f"epochs={self.epochs}, batch={self.batch}: pass at least 1")

    def schedule(self, images: int, rate: float) -> Schedule:
        """SGD on so many images."""
        iterations = max(1, round(self.epochs * images / self.batch))
        return Schedule(
            iterations,
            rate,
            math.ceil(iterations / _PARTS),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True)
class LinearOptions(ProbeOptions):
    """Options of the linear probe.

    Features are centred and divided by one number, so that the mean of their squared lengths is 1: then one list of
    rates fits all layers. Weight decay is that of these features.

    Attributes:
        rates: See `ProbeOptions`.
        numbers: About how many numbers of a map stay.
    """

    rates: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    numbers: int = 9000

    @classmethod
    def small(cls) -> LinearOptions:
        """For the trunk of the tiny preset, thousands of images and two CPU cores."""
        return cls(rates=(1.0, 5.0, 25.0), epochs=6, batch=128)


@dataclass(frozen=True)
class NonLinearOptions(ProbeOptions):
    """Options of the non-linear probe.

    Features are divided by one number, so that the mean of their squares is 1.

    Attributes:
        rates: See `ProbeOptions`.
        weight_decay: See `ProbeOptions`.
        frozen: Name of the last frozen layer. The layers of the trunk after it are trained from random weights.
        hidden: Units of the hidden layer.
        dropout: Share of them that is dropped in training.
    """

    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 5e-4
    frozen: str = POOL5
    hidden: int = 4096
    dropout: float = 0.5

    @classmethod
    def small(cls) -> NonLinearOptions:
        """For the trunk of the tiny preset, thousands of images and two CPU cores."""
        return cls(rates=(1e-3, 5e-3, 2.5e-2), hidden=256, epochs=10, batch=64)


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Figures of a classifier.

    Attributes:
        layer: Name of the last frozen layer.
        shape: (c, y, x) of the features of an image.
        classes: Names of the classes.
        by_rate: By learning rate, the accuracy in [0, 1] on the held-out training images; NaN where training diverged.
        rate: The best of them, by which the classifier is trained on all training images.
        accuracy: Of that classifier on the test images, in [0, 1].
        losses: (iterations,) of its training.
    """

    layer: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    by_rate: dict[float, float]
    rate: float
    accuracy: float
    losses: np.ndarray


def linear_probe(
    trunk: Trunk,
    train: StillImages,
    test: StillImages,
    options: LinearOptions | None = None,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, ProbeResult]:
    """Train a linear classifier on the frozen maps of layers and measure its accuracy.

    Args:
        trunk: It is left as it is.
        train: Labelled images of side `trunk.input_size`; unlabelled ones are left out.
        test: Likewise. Classes are compared by name; an image of a class that `train` lacks is wrong.
        options: By default those for CaffeNet.
        layers: Names of layers; by default all.
        seed: Decides which images are held out, and mini-batches.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Returns:
        By name of the layer.

    Raises:
        ConfigurationError: If there is no such layer.
        DataError: If images have no labels, too few or of one class only, or the features do not fit into memory.
        FloatingPointError: If features are not finite, or training diverges with every rate.
    """
    options = options or LinearOptions()
    device = torch.device(device)
    data = _Labelled.of(train, test)
    trunk = _copied(trunk, device)
    results = {}
    for layer, features in _frozen_features(
        trunk, data, layers or list(trunk.layers), options.numbers, device, progress
    ):
        shape = features.shape[1:]
        flat = features.flatten(1)
        _rescale(flat, data.train_number, centre=True)

        def make(inputs: int = flat.shape[1]) -> nn.Module:
            return linear_layer(inputs, len(data.classes), 0.0, torch.Generator())

        found = _probe(make, flat, data, options, layer, seed, device, progress)
        results[layer] = dataclasses.replace(found, shape=tuple(shape))
    return results


def nonlinear_probe(
    trunk: Trunk,
    train: StillImages,
    test: StillImages,
    options: NonLinearOptions | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """Train a network with a hidden layer on frozen features and measure its accuracy.

    Args:
        trunk: See `linear_probe`, as all other arguments. Layers before pool5 need a trunk that is a sequence.
        train: Training images.
        test: Test images.
        options: By default those for CaffeNet.
        seed: Decides which images are held out, initial weights, mini-batches and dropped units.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Raises:
        ConfigurationError: If there is no such layer.
        DataError: See `linear_probe`.
        FloatingPointError: See `linear_probe`.
    """
    options = options or NonLinearOptions()
    device = torch.device(device)
    data = _Labelled.of(train, test)
    trunk = _copied(trunk, device)
    ((layer, features),) = _frozen_features(trunk, data, [options.frozen], None, device, progress)
    _rescale(features, data.train_number, centre=False)

    images, rows = data.parts[0]
    inputs = trunk.maps(network_input(images.take(rows[:1], device), device), [POOL5])[POOL5].numel()

    def make() -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        return nn.Sequential(
            *_layers_after(trunk, options.frozen, generator),
            nn.Flatten(),
            linear_layer(inputs, options.hidden, None, generator),
            nn.ReLU(),
            SeededDropout(options.dropout, seed),
            linear_layer(options.hidden, len(data.classes), 0.01, generator),
        )

    return _probe(make, features, data, options, layer, seed, device, progress)


def pooled_side(channels: int, numbers: int) -> int:
    """Side of the square map of so many channels that has about so many numbers, at least 1."""
    return max(1, round(math.sqrt(numbers / channels)))


def held_out_rows(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw rows of each class.

    Args:
        labels: (N,) int.
        share: Of each class; at least one row, and at most all but one, so that a class of one row has none.
        rng: Source of the draws.

    Returns:
        Rows in ascending order.
    """
    drawn = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(rows[: min(len(rows) - 1, max(1, round(share * len(rows))))])
    return np.sort(np.concatenate(drawn))


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Training images and, after them, test images, with their labels; -1 of a class that is never trained."""

    parts: tuple[tuple[StillImages, np.ndarray], ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    train_number: int

    @classmethod
    def of(cls, train: StillImages, test: StillImages) -> _Labelled:
        parts, names = [], []
        for images in (train, test):
            if images.labels is None or not len(rows := np.flatnonzero(images.labels >= 0)):
                raise DataError(f"{images.name} has no labelled images: pass a folder with a folder for each class")
            parts.append((images, rows))
            names.append(class_names(images, rows))
        classes = np.unique(names[0])
        if len(classes) < 2:
            raise DataError(f"{train.name} has one class only, {classes[0]}: pass images of two or more")
        every = np.concatenate(names)
        indices = np.searchsorted(classes, every).clip(max=len(classes) - 1)
        labels = np.where(classes[indices] == every, indices, -1)
        return cls(tuple(parts), labels, tuple(map(str, classes)), len(names[0]))


def _copied(trunk: Trunk, device: torch.device) -> Trunk:
    """A copy on a device, whose weights are constants."""
    return dataclasses.replace(trunk, module=copy.deepcopy(trunk.module).to(device).requires_grad_(False))


def _frozen_features(
    trunk: Trunk, data: _Labelled, layers: Sequence[str], numbers: int | None, device: torch.device, progress: bool
) -> Iterator[tuple[str, Tensor]]:
    """Compute the maps of all images, layer by layer, of as many layers at once as fit into half of the free memory.

    Args:
        trunk: On the device.
        data: The images.
        layers: Names of layers.
        numbers: About how many numbers of a map stay; None for all.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Yields:
        A layer and (N, c, y, x) float16, on the device if they fit into half of its free memory.
    """

    def maps(images: StillImages, rows: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
        found = trunk.maps(network_input(images.take(rows, device), device), names)
        return {name: each if numbers is None else _pooled(each, numbers) for name, each in found.items()}

    images, rows = data.parts[0]
    shapes = {name: each.shape[1:] for name, each in maps(images, rows[:1], layers).items()}
    waiting = list(dict.fromkeys(layers))
    while waiting:
        group = _that_fit(waiting, {name: 2 * shape.numel() * len(data.labels) for name, shape in shapes.items()})
        waiting = waiting[len(group) :]
        features = {name: torch.empty((len(data.labels), *shapes[name]), dtype=torch.float16) for name in group}
        for start, images, rows in _of_all(data, progress):
            for name, each in maps(images, rows, group).items():
                if not each.abs().max() <= _LARGEST:
                    raise FloatingPointError(
                        f"features of {name} are not finite in half precision, up to {_LARGEST:g}; use another trunk"
                    )
                features[name][start : start + len(rows)] = each
        for name in group:
            each = features.pop(name)
            yield name, each.to(device) if each.nbytes < free_bytes(device) // 2 else each


def _of_all(data: _Labelled, progress: bool) -> Iterator[tuple[int, StillImages, np.ndarray]]:
    """Rows of images, and the place of the first among all."""
    first = 0
    with progress_bar(total=len(data.labels), label="features", unit="image", show=progress) as bar:
        for images, rows in data.parts:
            for chunk in chunks(rows, CHUNK):
                yield first, images, chunk
                first += len(chunk)
                bar.update(len(chunk))


def _that_fit(layers: Sequence[str], needed: dict[str, int]) -> list[str]:
    """The first layers that fit into half of the free memory, at least one."""
    free = free_bytes(torch.device("cpu"))
    if 0 < free < needed[layers[0]]:
        raise DataError(
            f"the features of {layers[0]} need {needed[layers[0]]:,} bytes of memory, but {free:,} are free; pass "
            "fewer images, or a layer with a smaller map"
        )
    group = [layers[0]]
    for layer in layers[1:]:
        if sum(needed[name] for name in [*group, layer]) > free // 2:
            break
        group.append(layer)
    return group


def _pooled(maps: Tensor, numbers: int) -> Tensor:
    side = pooled_side(maps.shape[1], numbers)
    return nn.functional.adaptive_avg_pool2d(maps, (min(maps.shape[2], side), min(maps.shape[3], side)))


def _rescale(features: Tensor, train_number: int, *, centre: bool) -> None:
    """Rescale features in place, by the statistics of the first `train_number` of them.

    Args:
        features: (N, ...) float16.
        train_number: At least 1.
        centre: Subtract the mean of each feature and divide all by one number, so that the mean of the squared lengths
            is 1; else divide by one number only, so that the mean of the squares is 1.
    """
    pieces, training = features.split(CHUNK), features[:train_number].split(CHUNK)
    mean = sum(piece.double().sum(0) for piece in training) / train_number if centre else 0
    squares = sum(float((piece.double() - mean).square().sum()) for piece in training) / train_number
    unit = math.sqrt(squares if centre else squares / features[0].numel()) or 1.0
    for piece in pieces:
        piece.copy_((piece.double() - mean) / unit)


def _layers_after(trunk: Trunk, layer: str, generator: torch.Generator) -> list[nn.Module]:
    """The layers of a trunk after one, with random weights, on the CPU; none after pool5."""
    if layer == POOL5:
        return []
    children = dict(trunk.module.named_children())
    first = list(children).index(trunk.layers[layer]) + 1
    rest = [copy.deepcopy(each).cpu() for each in list(children.values())[first:]]
    for each in nn.Sequential(*rest).requires_grad_().modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, nonlinearity="relu", generator=generator)
            if each.bias is not None:
                nn.init.zeros_(each.bias)
        elif isinstance(each, nn.BatchNorm2d):
            each.reset_parameters()
    return rest


def _probe(
    make: Callable[[], nn.Module],
    features: Tensor,
    data: _Labelled,
    options: ProbeOptions,
    layer: str,
    seed: int,
    device: torch.device,
    progress: bool,
) -> ProbeResult:
    """Choose the learning rate, train on all training images, test.

    Args:
        make: Makes an untrained classifier of features.
        features: (N, ...) of all images.
        data: Their labels.
        options: How to train.
        layer: Name of the layer.
        seed: Decides which images are held out, and mini-batches.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.
    """
    every = np.arange(len(data.labels))
    train, test = every[: data.train_number], every[data.train_number :]
    held_out = held_out_rows(data.labels[train], options.held_out, np.random.default_rng([seed, 0]))
    if not len(held_out):
        raise DataError("no class has two training images, so that none can be held out: pass more images")
    labels = torch.from_numpy(data.labels)

    def trained(rows: np.ndarray, rate: float, label: str) -> tuple[nn.Module, np.ndarray]:
        network = make().to(device)
        batches = epochs(np.random.default_rng([seed, 1]), len(rows), options.batch)

        def draw() -> Tensor:
            return torch.from_numpy(rows[next(batches)])

        def loss_of(batch: Tensor) -> Tensor:
            return nn.functional.cross_entropy(network(_taken(features, batch, device)), labels[batch].to(device))

        schedule, words = options.schedule(len(rows), rate), f"{layer}, {label}"
        return network, fine_tune(network, schedule, draw, loss_of, label=words, progress=progress)

    by_rate = {}
    for rate in options.rates:
        try:
            network, _ = trained(np.setdiff1d(train, held_out), rate, f"rate {rate:g}")
            by_rate[rate] = _accuracy(network, features, labels, held_out, device)
        except FloatingPointError:
            by_rate[rate] = math.nan
    if all(map(math.isnan, by_rate.values())):
        raise FloatingPointError(f"{layer}: training diverges with every rate of {options.rates}; lower them")
    best = max(by_rate, key=lambda rate: -1.0 if math.isnan(by_rate[rate]) else by_rate[rate])
    network, losses = trained(train, best, f"all, rate {best:g}")
    accuracy = _accuracy(network, features, labels, test, device)
    return ProbeResult(layer, tuple(features.shape[1:]), data.classes, by_rate, best, accuracy, losses)


@torch.no_grad()
def _accuracy(network: nn.Module, features: Tensor, labels: Tensor, rows: np.ndarray, device: torch.device) -> float:
    right = 0
    for batch in torch.from_numpy(rows).split(CHUNK):
        right += int((network(_taken(features, batch, device)).argmax(1).cpu() == labels[batch]).sum())
    return right / len(rows)


def _taken(features: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    return features[rows.to(features.device)].to(device, torch.float32)
