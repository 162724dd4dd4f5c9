"""Plain CaffeNet for fine-tuning: batch normalisation folded into the convolutions (section 4.2).

"The fine-tuning has been performed using the standard CaffeNet, without batch normalization and groups 2 for
conv[2,4,5]" (Table 4). In evaluation mode batch normalisation is an affine map of each channel, so that a convolution
followed by one equals a convolution with other weights: the folded trunk computes what the trained one does.

Three points follow from that equality. The trunk "caffenet" already has the two groups of conv2, conv4 and conv5, and
folding keeps them; a trunk without groups, such as "quarter-caffenet", stays without, since grouping would change what
it computes. There is no local response normalisation, which the published CaffeNet has after pool1 and pool2, since
the self-supervised trunk has none. And a plain trunk still has only convolutions, ReLUs and max pooling, so that it
can be made of any trunk of these layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from permenv.augment import normalise
from permenv.networks import eval_mode

_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of a feature map see of the input, in pixels of the input.

    Attributes:
        size: Side of the square that a unit sees.
        stride: Distance between neighbouring units.
        first: Centre of the square of the first unit, where 0 is the centre of the first pixel. It is negative if
            padding is larger than half of the square.
    """

    size: int = 1
    stride: int = 1
    first: float = 0.0

    def after(self, kernel: int, stride: int = 1, padding: int = 0) -> ReceptiveField:
        """The field of the units of one more layer."""
        return ReceptiveField(
            size=self.size + (kernel - 1) * self.stride,
            stride=self.stride * stride,
            first=self.first + ((kernel - 1) / 2 - padding) * self.stride,
        )


def plain_trunk(trunk: nn.Module, *, stride: int | None = None) -> nn.Sequential:
    """Fold the batch normalisation of a trunk into its convolutions.

    Args:
        trunk: Layers in sequence, at any depth of `nn.Sequential`: `Conv2d`, `BatchNorm2d` directly after one, `ReLU`
            and `MaxPool2d`. It is left as it is.
        stride: Stride of the first convolution; by default the trunk's own. The paper trains CaffeNet at stride 2 and
            evaluates it at 4 (appendix B).

    Returns:
        A new trunk without batch normalisation, in training mode. At the trunk's own stride its outputs are those of
        the trunk in evaluation mode, to the precision of float32.

    Raises:
        ValueError: If the trunk has other layers, another order of them, or batch normalisation without running
            statistics.
    """
    folded: list[nn.Module] = []
    for layer in _leaves(trunk):
        if isinstance(layer, nn.BatchNorm2d):
            if not folded or not isinstance(folded[-1], nn.Conv2d):
                raise ValueError("batch normalisation can be folded into a convolution directly before it only")
            folded[-1] = _fold(folded[-1], layer)
        else:
            folded.append(copy.deepcopy(layer))
    first = next((layer for layer in folded if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        raise ValueError("the trunk has no convolution")
    if stride is not None:
        if stride < 1:
            raise ValueError(f"stride {stride} of the first convolution: pass at least 1")
        first.stride = (stride, stride)
    return nn.Sequential(*folded).requires_grad_().train()


def receptive_field(trunk: nn.Module) -> ReceptiveField:
    """Compute the receptive field of a trunk's outputs.

    Args:
        trunk: See `plain_trunk`; kernels, strides and paddings are those of squares.

    Raises:
        ValueError: If the trunk has other layers, or layers that are not square.
    """
    field = ReceptiveField()
    for layer in _leaves(trunk):
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding, dilation = (
                _side(value, layer) for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            )
            field = field.after((kernel - 1) * dilation + 1, stride, padding)
    return field


class FineTunedNetwork(nn.Module):
    """A trunk with new layers fc6 and fc7, and linear outputs: the network of Tables 3 and 4.

    Hidden layers start with He's normal distribution, outputs with normal weights; all biases with zero.

    Args:
        trunk: Such as a plain one, see `plain_trunk`; it becomes a part of this network.
        pool5: Rows and columns of the map that fc6 takes; CaffeNet's is (6, 6).
        outputs: By name, the number of outputs and the deviation of their initial weights.
        channels: Of the map; by default those of the last convolution, as is true of a plain trunk.
        hidden: Units of fc6 and fc7.
        dropout: Share of the units of fc6 and fc7 that are dropped in training.
        seed: Decides the initial weights and the dropped units.
    """

    def __init__(
        self,
        trunk: nn.Module,
        pool5: tuple[int, int],
        outputs: dict[str, tuple[int, float]],
        *,
        channels: int | None = None,
        hidden: int = 4096,
        dropout: float = 0.5,
        seed: int = 0,
    ):
        super().__init__()
        if channels is None:
            channels = [layer.out_channels for layer in trunk.modules() if isinstance(layer, nn.Conv2d)][-1]
        generator = torch.Generator().manual_seed(seed)
        self.trunk = trunk
        self.pool5 = pool5
        self.fc6 = linear_layer(channels * pool5[0] * pool5[1], hidden, None, generator)
        self.fc7 = linear_layer(hidden, hidden, None, generator)
        self.outputs = nn.ModuleDict(
            {name: linear_layer(hidden, number, deviation, generator) for name, (number, deviation) in outputs.items()}
        )
        self.dropout = SeededDropout(dropout, seed)

    def hidden(self, features: Tensor) -> Tensor:
        """Units of fc7 (N, hidden) of pool5 features (N, c, y, x)."""
        fc6 = self.dropout(torch.relu(self.fc6(features.flatten(1))))
        return self.dropout(torch.relu(self.fc7(fc6)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs (N, number) by name of images (N, 3, h, w) whose pool5 map has the size that fc6 takes."""
        units = self.hidden(self.trunk(images))
        return {name: layer(units) for name, layer in self.outputs.items()}


class SeededDropout(nn.Module):
    """Dropout with random numbers of its own, which leaves the global generators alone.

    Args:
        share: Probability that a unit is dropped.
        seed: Decides which.
    """

    def __init__(self, share: float, seed: int):
        super().__init__()
        self.share = share
        self._seed = seed
        self._generator: torch.Generator | None = None

    def forward(self, units: Tensor) -> Tensor:
        """Drop units in training and enlarge the others, so that the expectation stays."""
        if not self.training or not self.share:
            return units
        if self._generator is None or self._generator.device != units.device:
            self._generator = torch.Generator(units.device).manual_seed(self._seed)
        kept = torch.empty_like(units).bernoulli_(1 - self.share, generator=self._generator)
        return units * kept / (1 - self.share)


def map_size(trunk: nn.Module, side: int) -> tuple[int, int]:
    """Rows and columns of a trunk's feature map of a square image, see `map_shape`."""
    return map_shape(trunk, side)[1:]


def map_shape(trunk: nn.Module, side: int) -> tuple[int, int, int]:
    """Channels, rows and columns of a trunk's feature map of a square image.

    Raises:
        ValueError: If the image is too small for the trunk.
    """
    device = next(trunk.parameters()).device
    try:
        with torch.no_grad(), eval_mode(trunk):  # this image must not enter the batch statistics
            _, channels, rows, columns = trunk(torch.zeros(1, 3, side, side, device=device)).shape
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"images of {side} × {side} pixels are too small for this trunk: {error}") from error
    return channels, rows, columns


def network_input(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Normalise images as the pieces of the self-supervised task are, each on its own (appendix B).

    Args:
        images: (N, H, W, 3) uint8 RGB.
        device: Device of the result.

    Returns:
        (N, 3, H, W) float32, channels last.
    """
    # a copy, since arrays may be read-only or mirrored views
    pixels = (images if isinstance(images, Tensor) else torch.from_numpy(np.array(images, order="C"))).to(device)
    return normalise(pixels[:, None])[:, 0].contiguous(memory_format=torch.channels_last)


def linear_layer(inputs: int, outputs: int, deviation: float | None, generator: torch.Generator) -> nn.Linear:
    """A linear layer with normal weights and without biases at the start. The global generator is not used.

    Args:
        inputs: Numbers that it takes.
        outputs: Numbers that it gives.
        deviation: Of the weights; None for He's.
        generator: Source of the draws, on the CPU.
    """
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.normal_(std=(2 / inputs) ** 0.5 if deviation is None else deviation, generator=generator)
        layer.bias.zero_()
    return layer


def _leaves(trunk: nn.Module) -> list[nn.Module]:
    """The layers of a trunk in their order."""
    if isinstance(trunk, nn.Sequential):
        return [leaf for child in trunk for leaf in _leaves(child)]
    if not isinstance(trunk, _LAYERS):
        known = ", ".join(layer.__name__ for layer in _LAYERS)
        raise ValueError(f"a layer {type(trunk).__name__} in the trunk: only sequences of {known} are understood here")
    return [trunk]


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that computes what the two do in sequence. The arithmetic is in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch normalisation without running statistics cannot be folded")
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -norm.running_mean.double()
        shift = shift if convolution.bias is None else shift + convolution.bias.double()
        bias = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
        folded = copy.deepcopy(convolution)
        folded.weight = nn.Parameter((convolution.weight.double() * scale[:, None, None, None]).float())
        folded.bias = nn.Parameter(bias.float())
    return folded


def _side(value: object, layer: nn.Module) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, tuple) and all(isinstance(each, int) and each == value[0] for each in value):
        return value[0]
    raise ValueError(f"the receptive field of {layer} is not a square")
