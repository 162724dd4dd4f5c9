"""The network Φ: a convolutional trunk shared by all tasks, and one ordering head a task (section 3.1, appendix B).

A trunk takes pieces (N, 3, h, w) to a pool5 map (N, c, y, x). A head takes the flat pool5 features of a sample's
pieces, in their shuffled order, to one logit φ_l a permutation. All pieces of a batch, of whatever task, run through
the trunk as one folded batch.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from permenv.heads import HeadFactory, OrderingHead

Backbone = Callable[[], nn.Module]
Module = TypeVar("Module", bound=nn.Module)
_TIMM = "timm/"  # begins the name of a backbone that timm makes


def _convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def caffenet() -> nn.Sequential:
    """CaffeNet up to pool5 with batch normalisation between the convolutions (section 4.1).

    conv1 has stride 2, as during the paper's self-supervised training; conv2, conv4 and conv5 have two groups. A
    75 × 75 piece becomes 256 × 3 × 3.

    Returns:
        The trunk: 2,334,080 parameters of convolutions and 2,752 of batch normalisation.
    """
    return nn.Sequential(
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
    return nn.Sequential(
        *_convolution(3, 24, 7, stride=2, padding=3),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_convolution(24, 64, 3, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_convolution(64, 96, 3, padding=1),
        *_convolution(96, 96, 3, padding=1),
        *_convolution(96, 64, 3, padding=1),
        nn.MaxPool2d(2),
    )


BACKBONES: Mapping[str, Backbone] = {"caffenet": caffenet, "quarter-caffenet": quarter_caffenet}


class _TimmTrunk(nn.Module):
    """The last feature map of a timm model, without pretrained weights.

    Args:
        name: One of `timm.list_models()`.
    """

    def __init__(self, name: str):
        super().__init__()
        timm = _import_timm(name)
        # of all that timm offers, this alone is a map whatever the model, and leaves no unused classifier
        self.model: nn.Module = timm.create_model(name, pretrained=False, features_only=True, out_indices=(-1,))
        self._channels_at_the_end = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        for module in self.model.modules():  # what drops at random draws from the global generator: a few models do
            if isinstance(module, timm.layers.DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0

    def forward(self, pieces: Tensor) -> Tensor:
        """Feature map (N, c, y, x) of pieces (N, 3, h, w)."""
        (features,) = self.model(pieces)
        return features.permute(0, 3, 1, 2) if self._channels_at_the_end else features


def find_backbone(backbone: str | Backbone) -> Backbone:
    """What makes the trunk that a name stands for; timm is imported only for a name of its own.

    Args:
        backbone: A name in `BACKBONES`; "timm/NAME" with one of `timm.list_models()`; a function is returned as it is.

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
        trunk: Takes (N, 3, h, w) to (N, c, y, x).
        heads: One head a task.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, OrderingHead]):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, task: str, pieces: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pieces (B, n, 3, h, w) that are already permuted."""
        return self.heads[task](self.features(pieces))

    def together(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, |Ψ|) by task of permuted pieces (B, n, 3, h, w) by task.

        All pieces are one batch of the trunk, so that its batch statistics in training are those of the mixture that
        its running statistics describe, and not one task's at a time.
        """
        folded = torch.cat([batch.flatten(0, 1) for batch in pieces.values()])
        features = self._pool5(folded).split([batch.shape[0] * batch.shape[1] for batch in pieces.values()])
        return {
            task: self.heads[task](flat.unflatten(0, batch.shape[:2]))
            for (task, batch), flat in zip(pieces.items(), features, strict=True)
        }

    def features(self, pieces: Tensor) -> Tensor:
        """Flat pool5 features (B, n, features) of pieces (B, n, 3, h, w)."""
        return self._pool5(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2])

    def _pool5(self, folded: Tensor) -> Tensor:
        """Flat pool5 features (N, features) of pieces (N, 3, h, w)."""
        return self.trunk(folded.contiguous(memory_format=torch.channels_last)).flatten(1)


@contextlib.contextmanager
def evaluating(network: Module) -> Iterator[Module]:
    """Put a network into evaluation mode for the time of a `with` block: its batch statistics stand still."""
    training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(training)


def build_network(
    backbone: str | Backbone, heads: Mapping[str, HeadFactory], *, piece_size: int, seed: int
) -> OrderingNetwork:
    """Build Φ with its initial weights.

    Convolutions and hidden layers start with He's normal distribution, an LSTM as torch does; the classifiers start
    near zero, so that the first predictions are nearly uniform. The global generator of torch is left as it was.

    Args:
        backbone: What `find_backbone` knows: a name, or a function that returns a new trunk for
            (N, 3, piece_size, piece_size). What such a function or timm makes keeps its own initial weights.
        heads: By task, what makes its head.
        piece_size: h = w of a piece in pixels.
        seed: Decides all initial weights.

    Returns:
        The network, on the CPU, channels last.

    Raises:
        ValueError: If the backbone is unknown, or cannot take pieces of this size.
    """
    # modules draw their first weights from the global generator: seed it in here, and give it back as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = find_backbone(backbone)()
        if isinstance(backbone, str) and backbone in BACKBONES:
            trunk.apply(_he_initialise)
        features = _feature_length(trunk, piece_size)
        made: dict[str, OrderingHead] = {}
        for task, make_head in heads.items():
            made[task] = make_head(features).apply(_he_initialise)
            nn.init.normal_(made[task].classifier.weight, std=0.01)
    network = OrderingNetwork(trunk, made)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it


def _he_initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _feature_length(trunk: nn.Module, piece_size: int) -> int:
    try:
        with torch.no_grad(), evaluating(trunk):  # one sample more must not enter the batch statistics
            return trunk(torch.zeros(1, 3, piece_size, piece_size)).flatten(1).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:  # timm's models assert
        raise ValueError(
            f"the backbone cannot take pieces of {piece_size} × {piece_size}: {str(error) or repr(error)}; change "
            f"piece_size or the backbone"
        ) from error
