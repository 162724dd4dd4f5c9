"""The network Φ: a convolutional trunk shared by all tasks, and one ordering head a task (section 3.1, appendix B).

A trunk takes pieces to feature maps: images (N, 3, h, w) to pool5 (N, c, y, x). A head takes the flat features of a
sample's pieces, in their shuffled order, to one logit φ_l per permutation. All pieces of a batch, from all tasks, go
through the trunk as one folded batch.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from permenv.config import Backbone
from permenv.heads import HeadFactory, OrderingHead

Module = TypeVar("Module", bound=nn.Module)
_TIMM = "timm/"  # prefix of the names of backbones that timm makes
_CHANNELS_AT_ONCE = 32  # GPUs multiply matrices in blocks of such a length


def _convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class ConvolutionalTrunk(nn.Sequential):
    """Convolutions, batch normalisation, ReLU and max pooling in sequence; the first convolution has square kernels.

    In training a ReLU before a max pooling is applied after it, to a quarter of the numbers. Outputs and gradients are
    the same to the bit, since a ReLU keeps the order of numbers. On a GPU the first convolution is computed by
    `convolve_rows` if it trains in bf16; in float32 cuDNN's own way is faster. In evaluation every layer's output is
    what its place in the sequence says, for whoever looks at it.
    """

    def forward(self, pieces: Tensor) -> Tensor:
        """Feature map (N, c, y, x) of pieces (N, 3, h, w)."""
        if not self.training:
            return super().forward(pieces)
        layers = list(self)
        for index in range(1, len(layers)):
            before, layer = layers[index - 1 : index + 1]
            if isinstance(before, nn.ReLU) and isinstance(layer, nn.MaxPool2d):
                layers[index - 1 : index + 1] = layer, before
        if pieces.is_cuda and torch.is_autocast_enabled("cuda"):
            first = layers.pop(0)
            assert isinstance(first, nn.Conv2d)
            pieces = pieces.to(torch.get_autocast_dtype("cuda"))
            pieces = convolve_rows(pieces, first.weight, first.bias, first.stride[0], int(first.padding[0]))
        for layer in layers:
            pieces = layer(pieces)
        return pieces


def convolve_rows(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Compute `torch.nn.functional.conv2d` of images, channels last.

    cuDNN pads an image's 3 channels to 8 and multiplies mostly zeros. Here all that a row of the kernel sees at once
    counts as the channels of one pixel: 33 for a kernel of 11 × 11. The bias is the weight of one more channel, which
    is 1 everywhere: adding it afterwards would read and write the whole output again.

    Args:
        images: (N, c, h, w).
        weight: (outputs, c, k, k).
        bias: (outputs,), or None.
        stride: Pixels between the kernel's places.
        padding: Pixels of zeros around an image.

    Returns:
        (N, outputs, y, x), the same up to rounding.
    """
    channels, kernel = weight.shape[1:3]
    rows = nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)).flatten(2)
    windows = rows.unfold(2, kernel * channels, stride * channels)  # [N, h, x, k · c]
    length = windows.shape[3]
    spare = -(length + 1) % _CHANNELS_AT_ONCE + 1
    weights = nn.functional.pad(weight.permute(0, 2, 3, 1).flatten(2), (0, spare))  # [outputs, k, k · c + spare]
    if bias is not None:
        weights[:, 0, length] = bias
    return nn.functional.conv2d(
        nn.functional.pad(windows, (0, spare), value=1.0).permute(0, 3, 1, 2),
        weights[:, :, None].permute(0, 3, 1, 2),
        stride=(stride, 1),
    )


def caffenet() -> nn.Sequential:
    """CaffeNet up to pool5 with batch normalisation between the convolutions (section 4.1).

    conv1 has stride 2, as during the paper's self-supervised training; conv2, conv4 and conv5 have two groups. A
    75 × 75 piece becomes 256 × 3 × 3.

    Returns:
        The trunk: 2,334,080 parameters of convolutions and 2,752 of batch normalisation.
    """
    return ConvolutionalTrunk(
        *_convolution(3, 96, 11, stride=2),
        nn.MaxPool2d(3, stride=2),
        *_convolution(96, 256, 5, padding=2, groups=2),
        nn.MaxPool2d(3, stride=2),
        *_convolution(256, 384, 3, padding=1),
        *_convolution(384, 384, 3, padding=1, groups=2),
        *_convolution(384, 256, 3, padding=1, groups=2),
        nn.MaxPool2d(3, stride=2),
    )


def quarter_caffenet() -> nn.Sequential:
    """CaffeNet's five convolutions at a quarter of its width, for 32 × 32 pieces on a CPU.

    Kernels are scaled down with the pieces and there are no groups: at this width they cost more time than they
    save. A 32 × 32 piece becomes 64 × 2 × 2.

    Returns:
        The trunk.
    """
    return ConvolutionalTrunk(
        *_convolution(3, 24, 7, stride=2, padding=3),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_convolution(24, 64, 3, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_convolution(64, 96, 3, padding=1),
        *_convolution(96, 96, 3, padding=1),
        *_convolution(96, 64, 3, padding=1),
        nn.MaxPool2d(2),
    )


def two_convolutions() -> nn.Sequential:
    """Two convolutions for 16 × 16 pieces: an iteration on 32 images takes some milliseconds of one CPU core.

    A 16 × 16 piece becomes 32 × 2 × 2.

    Returns:
        The trunk.
    """
    return ConvolutionalTrunk(
        *_convolution(3, 16, 5, stride=2, padding=2),
        nn.MaxPool2d(2),
        *_convolution(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
    )


BACKBONES: Mapping[str, Backbone] = {
    "caffenet": caffenet,
    "quarter-caffenet": quarter_caffenet,
    "two-convolutions": two_convolutions,
}


class _TimmTrunk(nn.Module):
    """The last feature map of a timm model, without pretrained weights.

    Args:
        name: One of `timm.list_models()`.
    """

    def __init__(self, name: str):
        super().__init__()
        timm = _import_timm(name)
        # the one mode of timm that gives a feature map for every model, without an unused classifier
        self.model: nn.Module = timm.create_model(name, pretrained=False, features_only=True, out_indices=(-1,))
        self._channels_at_the_end = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        for module in self.model.modules():  # dropout would draw from the global generator
            if isinstance(module, timm.layers.DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0

    def forward(self, pieces: Tensor) -> Tensor:
        """Feature map (N, c, y, x) of pieces (N, 3, h, w)."""
        (features,) = self.model(pieces)
        return features.permute(0, 3, 1, 2) if self._channels_at_the_end else features


def find_backbone(backbone: str | Backbone) -> Backbone:
    """Find the function that makes a trunk; timm is imported only for names that begin with "timm/".

    Args:
        backbone: A name in `BACKBONES`, or "timm/NAME" with one of `timm.list_models()`; a function is returned as it
            is.

    Returns:
        A function that returns a new trunk.

    Raises:
        ValueError: If there is no such name, or timm is needed and does not import.
    """
    if not isinstance(backbone, str):
        return backbone
    if backbone in BACKBONES:
        return BACKBONES[backbone]
    if not backbone.startswith(_TIMM):
        known = ", ".join(BACKBONES)
        raise ValueError(f"unknown backbone {backbone!r}; choose one of {known}, 'timm/NAME' or pass a function")
    name = backbone.removeprefix(_TIMM)
    names = _import_timm(name).list_models()
    if name not in names:
        close = ", ".join(repr(_TIMM + other) for other in difflib.get_close_matches(name, names))
        raise ValueError(
            f"unknown backbone {backbone!r}: timm has no model {name!r} (weights are random, so a name has no tag); "
            + (f"the nearest are {close}" if close else "timm.list_models() lists them")
        )
    return functools.partial(_TimmTrunk, name)


def _import_timm(name: str) -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter where torchvision is not of torch's build
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise ValueError(f'backbone {_TIMM + name!r} needs timm: pip install "permenv[timm]"') from error
        raise ValueError(
            f"backbone {_TIMM + name!r}: timm does not import ({error}); it needs a torchvision of the same build as "
            f"torch {torch.__version__}: install both from one index"
        ) from error
    return timm


class OrderingNetwork(nn.Module):
    """Trunk and heads: φ = head(trunk(pieces)).

    Args:
        trunk: Takes pieces (N, *piece) to feature maps of any shape.
        heads: One head per task.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, OrderingHead]):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, task: str, pieces: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pieces (B, n, *piece) that are already permuted."""
        return self.heads[task](self.features(pieces))

    def together(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, |Ψ|) by task of permuted pieces (B, n, *piece) by task.

        All pieces form one batch of the trunk, so that its batch statistics in training are those of the mixture of
        tasks, as its running statistics are.
        """
        parts = [batch.flatten(0, 1) for batch in pieces.values()]
        folded = torch.cat(parts) if len(parts) > 1 else parts[0]  # which would copy a single one
        features = self._pool5(folded).split([batch.shape[0] * batch.shape[1] for batch in pieces.values()])
        return {
            task: self.heads[task](flat.unflatten(0, batch.shape[:2]))
            for (task, batch), flat in zip(pieces.items(), features, strict=True)
        }

    def features(self, pieces: Tensor) -> Tensor:
        """Flat pool5 features (B, n, features) of pieces (B, n, *piece)."""
        return self._pool5(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2])

    def _pool5(self, folded: Tensor) -> Tensor:
        """Flat pool5 features (N, features) of pieces (N, *piece)."""
        if folded.dim() == 4:  # images
            folded = folded.contiguous(memory_format=torch.channels_last)
        return self.trunk(folded).flatten(1)


@contextlib.contextmanager
def eval_mode(network: Module) -> Iterator[Module]:
    """Put a network into evaluation mode inside a `with` block: batch normalization uses its running statistics.

    Afterwards each module has its own mode again: a backbone may keep some of them in evaluation mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield network
    finally:
        network.train(modes[0][1])  # modules may do more than set their mode
        for module, training in modes:
            module.training = training


def build_network(
    backbone: str | Backbone, heads: Mapping[str, HeadFactory], *, piece_shape: Sequence[int], seed: int
) -> OrderingNetwork:
    """Build Φ with its initial weights.

    Convolutions and hidden layers start with He's normal distribution, an LSTM as torch does; the classifiers start
    near zero, so that the first predictions are nearly uniform. This holds for heads of your own too. The global
    generator of torch is left as it was.

    Args:
        backbone: A name that `find_backbone` knows, or a function that returns a new trunk for pieces
            (N, *piece_shape). A trunk made by a function or by timm keeps its own initial weights.
        heads: By task, a function that makes its head.
        piece_shape: Shape of one piece, such as (3, h, w).
        seed: Decides all initial weights.

    Returns:
        The network, on the CPU, channels last.

    Raises:
        ValueError: If the backbone is unknown, or cannot take pieces of this shape.
    """
    # modules draw their initial weights from the global generator: seed it here and restore it afterwards
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators too, for good
        trunk = find_backbone(backbone)()
        if not isinstance(trunk, nn.Module):
            raise ValueError(f"backbone={backbone!r} returned {trunk!r}: return a new torch.nn.Module")
        if isinstance(backbone, str) and backbone in BACKBONES:
            trunk.apply(_he_initialise)
        features = _feature_length(trunk, piece_shape)
        made: dict[str, OrderingHead] = {}
        for task, make_head in heads.items():
            made[task] = make_head(features)
            if not isinstance(getattr(made[task], "classifier", None), nn.Linear):
                raise ValueError(f"the head of task {task!r} has no linear layer `classifier`, see OrderingHead")
            made[task].apply(_he_initialise)
            nn.init.normal_(made[task].classifier.weight, std=0.01)
    network = OrderingNetwork(trunk, made)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it


def _he_initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _feature_length(trunk: nn.Module, piece_shape: Sequence[int]) -> int:
    try:
        with torch.no_grad(), eval_mode(trunk):  # this piece must not enter the batch statistics
            found = trunk(torch.zeros(1, *piece_shape))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm's models assert
        raise ValueError(
            f"the backbone cannot take pieces of {' × '.join(map(str, piece_shape))}: {str(error) or repr(error)}; "
            f"change the pieces (piece_size) or the backbone"
        ) from error
    if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != 1:
        shown = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(type(found).__name__)
        raise ValueError(f"the backbone returned {shown} for one piece: return its feature maps, a tensor (1, ...)")
    return found.flatten(1).shape[1]
