"""The trunk that a protocol starts from.

Where its weights come from, at which size and stride it is evaluated, and the batch statistics of an untrained one.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from permenv import checkpoint
from permenv.checkpoint import CheckpointError
from permenv.config import PRESETS, Backbone, ConfigurationError
from permenv.data import StillImages, VideoClips
from permenv.data.decode import centre_square
from permenv.data.files import read_regular
from permenv.data.voc import VocImage, load_voc_image
from permenv.networks import BACKBONES, build_network, eval_mode
from permenv.saved_run import read_run, trunk_weights
from permenv.transfer.batches import CHUNK, chunks
from permenv.transfer.plain import network_input
from permenv.transfer.retrieval import spread_frames

POOL5 = "pool5"  # the output of any trunk
_CAFFENET_INPUT, _CAFFENET_STRIDE = 227, 4  # section 4.1 and appendix B: the stride is 2 in training
_OTHER_INPUT = 224  # of backbones that no preset has
_COUNTER = "num_batches_tracked"  # of batch normalisation; evaluation does not use it
_MOST_BYTES = 2**33
_MEASURED = 256  # images that give the batch statistics of an untrained trunk
_SHOWN = 6  # names in an error


@dataclass(frozen=True, eq=False)
class Trunk:
    """A trunk in evaluation mode.

    Attributes:
        module: Takes images (N, 3, h, w) to the map pool5 (N, c, y, x).
        name: Its backbone.
        source: Where its weights come from.
        loaded: Names of the weights that were loaded or trained; empty for random ones.
        left_out: Names in the source that belong to no trunk, such as those of heads.
        input_size: Side of the images that it is evaluated on, in pixels.
        layers: By the name of a layer, conv1, conv2, ..., pool5, the name of the submodule whose output is its map: of
            a convolution, after its batch normalisation and ReLU. A module that is no sequence has pool5 only.
    """

    module: nn.Module
    name: str
    source: str
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    input_size: int
    layers: Mapping[str, str]

    def maps(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Compute the maps of some layers in one pass, in evaluation mode.

        Args:
            images: (N, 3, h, w), normalised.
            layers: Names in `layers`.

        Returns:
            By name, (N, c, y, x).

        Raises:
            ConfigurationError: If there is no such layer.
        """
        unknown = [name for name in layers if name not in self.layers]
        if unknown:
            raise ConfigurationError(f"{self.name} has no layer {unknown[0]!r}; choose among {', '.join(self.layers)}")
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            # a copy: the next layer may work in place
            return lambda module, inputs, output: found.__setitem__(name, output.clone())

        hooks = []
        try:
            for name in set(layers) - {POOL5}:
                hooks.append(self.module.get_submodule(self.layers[name]).register_forward_hook(keep(name)))
            with eval_mode(self.module):
                found[POOL5] = self.module(images.contiguous(memory_format=torch.channels_last))
        finally:
            for hook in hooks:
                hook.remove()
        return {name: found[name] for name in layers}

    def describe(self) -> str:
        """Say what was loaded and left out, and at which size and stride the trunk is evaluated."""
        first = next((layer for layer in self.module.modules() if isinstance(layer, nn.Conv2d)), None)
        stride = "" if first is None else f", first convolution at stride {first.stride[0]}"
        left = f"; left out: {_some(self.left_out)}" if self.left_out else ""
        size = f"{self.input_size} × {self.input_size} pixels"
        return f"{self.name} from {self.source}, {size}{stride}; loaded: {len(self.loaded)} tensors{left}"


def load_trunk(source: str | Path, *, backbone: str | Backbone | None = None, seed: int = 0) -> Trunk:
    """Load a trunk as the protocols evaluate it.

    "caffenet" takes images of 227 × 227 pixels at stride 4 of conv1, as the paper evaluates it (section 4.1, appendix
    B). Trunks of the other presets are evaluated as they were trained, at the images' size of their preset.

    Args:
        source: "random", initial weights of `backbone`; "timm/NAME", initial weights of a model of timm; else a file: a
            checkpoint of a run of any task, or a state dict of torch or safetensors, whose names may have a prefix.
        backbone: Name or function, see `permenv.networks.find_backbone`. None is "caffenet" for random weights, what a
            checkpoint says, and for a state dict the one backbone of `BACKBONES` whose names and shapes it has.
        seed: Of random weights.

    Returns:
        The trunk, on the CPU.

    Raises:
        CheckpointError: If the file cannot be read, or its weights do not fit or are not finite.
        ConfigurationError: If the backbone is unknown.
    """
    text = str(source)
    if text == "random" or text.startswith("timm/"):
        if text != "random" and backbone not in (None, text):
            raise ConfigurationError(f"trunk {text!r} with backbone={backbone!r}: leave out one of them")
        initial = text if text != "random" else backbone or "caffenet"
        return _as_evaluated(_make(initial, seed), initial, f"random weights, seed {seed}", (), ())
    path = Path(source).expanduser()
    given, stated = _read(path)
    chosen = backbone or stated
    with checkpoint.naming(path):
        if isinstance(chosen, str) and stated == chosen and chosen not in BACKBONES and not chosen.startswith("timm/"):
            raise CheckpointError(f"its trunk was made by the function {chosen}: pass that function as `backbone`")
        if backbone and stated and isinstance(backbone, str) and backbone != stated:
            raise CheckpointError(f"its trunk is backbone={stated!r}, not {backbone!r}: leave out `backbone`")
        if chosen is None:
            chosen = _recognise(given)
        module = _make(chosen, seed)
        prefix = _prefix(given, module)
        fault = _misfit(given, module, prefix)
        if fault:
            raise CheckpointError(f"its weights do not fit the backbone {_name(chosen)}: {fault}; {_remedy()}")
        weights = {name: given[prefix + name] for name in module.state_dict() if prefix + name in given}
        bad = [name for name, value in weights.items() if not torch.isfinite(value).all()]
        if bad:
            raise CheckpointError(f"{_some(bad)} of the trunk are not finite: use an earlier file")
        module.load_state_dict(weights, strict=False)
    used = {prefix + name for name in weights}
    left_out = tuple(name for name in given if name not in used)
    return _as_evaluated(module, chosen, str(path), tuple(weights), left_out)


def with_measured_statistics(trunk: Trunk, images: np.ndarray) -> Trunk:
    """Replace the running statistics of a trunk's batch normalisation, see `measure_statistics`.

    Args:
        trunk: It is left as it is.
        images: (N, S, S, 3) uint8, at the size at which the trunk is evaluated; N at least 1.
    """
    module = measure_statistics(trunk.module, images)
    return dataclasses.replace(trunk, module=module, source=f"{trunk.source}, batch statistics of {len(images)} images")


@torch.no_grad()
def measure_statistics(module: nn.Module, images: np.ndarray) -> nn.Module:
    """Replace the running statistics of a module's batch normalisation by those of some images.

    Untrained batch normalisation has a mean of 0 and a variance of 1, whatever its convolution returns, so that an
    untrained trunk would be evaluated at a disadvantage that has nothing to do with its weights.

    Args:
        module: Takes images (N, 3, S, S); it is left as it is.
        images: (N, S, S, 3) uint8; N at least 1.

    Returns:
        A copy with other statistics, of each layer the mean over chunks of images, in evaluation mode.
    """
    module = copy.deepcopy(module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    module.train()
    device = next(module.parameters()).device
    for chunk in chunks(images, CHUNK):
        module(network_input(chunk, device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return module.eval()


def some_of(data: StillImages | VideoClips, among: np.ndarray | None = None) -> np.ndarray:
    """Return evenly spread images, or frames, to measure batch statistics on.

    Args:
        data: Images or clips.
        among: (n,) int, which of them; by default all.

    Returns:
        (N, S, S, 3) uint8.
    """
    rows = np.arange(len(data)) if among is None else among
    if isinstance(data, VideoClips):
        images, rows = data.frames, spread_frames(data, rows, int(data.lengths.max()))
    else:
        images = data
    return images.take(rows[_some_rows(len(rows))], torch.device("cpu")).numpy()


def some_squares(records: Sequence[VocImage], side: int) -> np.ndarray:
    """Return the centre squares of evenly spread images of VOC, resized to `side`: (N, side, side, 3) uint8."""
    pixels = [load_voc_image(records[row]) for row in _some_rows(len(records))]
    return np.stack([centre_square(each, side) for each in pixels if not isinstance(each, str)])


def _some_rows(number: int) -> np.ndarray:
    # not `evenly_spaced`: linspace rounds, so that for some numbers a row is one less; reported figures are of these
    return np.unique(np.linspace(0, number - 1, _MEASURED).astype(np.int64))


def _make(backbone: str | Backbone, seed: int) -> nn.Module:
    side = _input_size(backbone)
    try:
        return build_network(backbone, {}, piece_shape=(3, side, side), seed=seed).trunk
    except ValueError as error:
        raise ConfigurationError(f"trunk: {error}") from error


def _as_evaluated(
    module: nn.Module, backbone: str | Backbone, source: str, loaded: tuple[str, ...], left_out: tuple[str, ...]
) -> Trunk:
    if backbone == "caffenet":
        first = module.get_submodule("0")
        assert isinstance(first, nn.Conv2d)
        first.stride = (_CAFFENET_STRIDE, _CAFFENET_STRIDE)
    size = _input_size(backbone)
    return Trunk(module.eval(), _name(backbone), source, loaded, left_out, size, _layers(module))


def _input_size(backbone: str | Backbone) -> int:
    if backbone == "caffenet":
        return _CAFFENET_INPUT
    sizes = {preset.backbone: preset.image_size for preset in PRESETS.values()}
    return sizes.get(backbone, _OTHER_INPUT)


def _layers(module: nn.Module) -> dict[str, str]:
    layers: dict[str, str] = {}
    count, inside = 0, False
    for name, layer in module.named_children() if isinstance(module, nn.Sequential) else ():
        if isinstance(layer, nn.Conv2d):
            count, inside = count + 1, True
        elif not isinstance(layer, nn.BatchNorm2d | nn.ReLU):
            inside = False
        if inside:
            layers[f"conv{count}"] = name
    return {**layers, POOL5: ""}


def _name(backbone: str | Backbone) -> str:
    return backbone if isinstance(backbone, str) else getattr(backbone, "__qualname__", type(backbone).__qualname__)


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a file, and the backbone if it says one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): name a checkpoint or a state dict") from error
    # a zip, or the pickle of an old version of torch; the size that a safetensors file begins with may look like either
    if content.startswith((b"PK", b"\x80")) and content[8:9] != b"{":
        return _torch_tensors(path, content), None
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        if "tree" in metadata:  # written by `permenv.checkpoint`, whose version it checks
            return _run_tensors(path)
        return load(content), metadata.get("backbone")
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is neither a checkpoint nor a state dict of torch or safetensors ({error}): {_remedy()}"
        ) from error


def _run_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The whole network of a run, as validated: names of the trunk without a prefix, of the rest with theirs."""
    run = read_run(path)["run"]
    with checkpoint.naming(path):
        trunk = trunk_weights(run)
    backbone = run["identity"].get("backbone")
    heads = {name: value for name, value in run["trainer"]["network"].items() if not name.startswith("trunk.")}
    tensors = {**heads, **trunk}
    if not isinstance(backbone, str) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no trunk of tensors: use another checkpoint")
    return tensors, backbone


def _torch_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # about the version of the pickle: it is read, or refused below
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        # not torch's own words, which advise to execute what the file holds
        raise CheckpointError(
            f"{path} is not a state dict that torch.load(weights_only=True) reads: save module.state_dict()"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, no state dict: save module.state_dict()")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _recognise(given: Mapping[str, Tensor]) -> str:
    faults = {}
    for name in BACKBONES:
        module = _make(name, 0)
        faults[name] = _misfit(given, module, _prefix(given, module))
    fitting = [name for name, fault in faults.items() if not fault]
    if len(fitting) != 1:
        what = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise CheckpointError(f"its weights fit no backbone ({what}); {_remedy()}")
    return fitting[0]


def _prefix(given: Mapping[str, Tensor], module: nn.Module) -> str:
    """The prefix with which most names of the trunk occur, the shortest of several."""
    names = module.state_dict().keys()
    first = next(iter(names))
    prefixes = {name.removesuffix(first) for name in given if name == first or name.endswith(f".{first}")} | {""}
    return min(prefixes, key=lambda prefix: (-sum(prefix + name in given for name in names), len(prefix), prefix))


def _misfit(given: Mapping[str, Tensor], module: nn.Module, prefix: str) -> str:
    """Say what is missing or of another shape; "" if nothing."""
    ours = {name: value for name, value in module.state_dict().items() if not name.endswith(_COUNTER)}
    missing = [name for name in ours if prefix + name not in given]
    if missing:
        return f"{len(missing)} of {len(ours)} tensors are missing: {_some(missing)}"
    other = [
        f"{prefix}{name} {tuple(given[prefix + name].shape)} instead of {tuple(value.shape)}"
        for name, value in ours.items()
        if given[prefix + name].shape != value.shape
    ]
    return f"{len(other)} shapes differ: {_some(other)}" if other else ""


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _remedy() -> str:
    return "name a checkpoint of a run, or the state dict of a trunk of permenv, and its `backbone`"
