"""A trunk for others: a safetensors file that torch loads without permenv, and a model card beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from permenv.atomic import write_bytes
from permenv.checkpoint import CheckpointError
from permenv.config import ConfigurationError
from permenv.data.messages import printable
from permenv.saved_run import read_run
from permenv.transfer.plain import map_shape
from permenv.transfer.trunks import Trunk

_SUFFIX = ".safetensors"
_NORMALISATION = "per image and channel: mean 0, deviation 1 (at least 1/255), of values in [0, 1]"
_BLOCK = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)  # what `convolution` in the loader makes
_DEFAULTS: Mapping[type[nn.Module], tuple[tuple[str, ...], Mapping[str, Any]]] = {
    nn.Conv2d: (
        ("in_channels", "out_channels", "kernel_size"),
        {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    ),
    nn.BatchNorm2d: (("num_features",), {"eps": 1e-5}),
    nn.ReLU: ((), {}),
    nn.MaxPool2d: (("kernel_size",), {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}),
}
"""By layer, the arguments that the loader passes by position, and by name where they are not these."""

_PAPER = (
    'The method is that of Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement '
    'Learning", ECCV 2018.'
)

_IMAGES = """\
def normalised(images):  # (N, 3, {side}, {side}), RGB in [0, 1]
    deviation, mean = torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True)
    return (images - mean) / deviation.clamp_min(1 / 255)

features = trunk(normalised(images).contiguous(memory_format=torch.channels_last))  # (N, {shape})"""

_LOADER = """\
import torch
from safetensors.torch import load_file
from torch import nn

def convolution(*sizes, **options):
    return nn.Conv2d(*sizes, **options), nn.BatchNorm2d(sizes[1]), nn.ReLU()

trunk = nn.Sequential(
{layers}
)
trunk.load_state_dict(load_file({file}))
trunk = trunk.eval().to(memory_format=torch.channels_last)"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says of the run that trained a trunk.

    Attributes:
        data: By ordering task, what was shuffled, in words and without paths.
        iterations: Of SGD.
        seed: Of the run.
        errors: By ordering task, E of the last validation; empty if the checkpoint has none.
        validated_at: The iteration of that validation.
        diverged: Whether the run has diverged.
        settings: The numbers of the run, as `permenv.Config.as_dict` gives them, and the fingerprints of its data.
    """

    data: Mapping[str, str]
    iterations: int
    seed: int
    errors: Mapping[str, float]
    validated_at: int
    diverged: bool
    settings: Mapping[str, Any]


def read_card(path: str | Path, data: Mapping[str, str] | None = None) -> Card:
    """Read what a card says from the checkpoint of a run.

    Args:
        path: The checkpoint.
        data: By ordering task, what was shuffled; a checkpoint has a fingerprint only.

    Raises:
        CheckpointError: If it is no checkpoint of a run.
    """
    run = read_run(path)["run"]
    try:
        tasks, records = run["identity"]["data"], run["records"]
        last: dict[str, Any] = records[-1] if records else {"errors": {}, "iteration": 0}
        return Card(
            data={str(task): (data or {}).get(task, "not stated") for task in tasks},
            iterations=int(run["trainer"]["iteration"]),
            seed=int(run["seed"]),
            errors={str(task): float(error) for task, error in last["errors"].items()},
            validated_at=int(last["iteration"]),
            diverged=bool(run["diverged"]),
            settings=dict(run["identity"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} does not say how its trunk was trained ({error!r}): use another checkpoint"
        ) from error


def export_trunk(trunk: Trunk, path: str | Path, *, card: Card | None = None) -> tuple[Path, Path]:
    """Write a trunk as it is evaluated, and its model card; each is whole or not there.

    `load_trunk` reads the file, and so does the code of about ten lines in the card, which needs torch and safetensors
    only. Both return the outputs of the trunk, bit for bit.

    Args:
        trunk: A sequence of `Conv2d`, `BatchNorm2d`, `ReLU` and `MaxPool2d`, as all of permenv's backbones are.
        path: NAME.safetensors; its folder is made if need be. The card is NAME.md beside it.
        card: What is known of the run, see `read_card`; None for a trunk of no run.

    Returns:
        The two files.

    Raises:
        ConfigurationError: If one of the files is there already, but for the same card, the path ends otherwise, or the
            trunk has other layers.
        OSError: If a file cannot be written, or a card that is there cannot be read.
    """
    path = Path(path)
    if path.suffix != _SUFFIX:
        raise ConfigurationError(f"{path} does not end in {_SUFFIX}: name such a file")
    beside = path.with_suffix(".md")
    text = model_card(trunk, path.name, card).encode()
    for each in (path, beside):
        # the same card is what a process has left that was killed before it wrote the weights
        if each.is_symlink() or (each.exists() and (each == path or each.read_bytes() != text)):
            raise ConfigurationError(f"{each} exists already: move it away, or choose another name")
    first = next(layer for layer in trunk.module.modules() if isinstance(layer, nn.Conv2d))
    metadata = {
        "format": "pt",  # safetensors' own word for tensors of torch
        "backbone": trunk.name,
        "input_size": str(trunk.input_size),
        "stride": str(first.stride[0]),
        "normalisation": _NORMALISATION,
        "source": _source(trunk),
        "permenv": _version(),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in trunk.module.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata)
    write_bytes(beside, text)
    write_bytes(path, content)
    return path, beside


def loader(trunk: Trunk, file: str) -> str:
    """Python code that makes `trunk` from an exported file with torch and safetensors only.

    Raises:
        ConfigurationError: If the trunk is no sequence of the layers that `export_trunk` knows.
    """
    if not isinstance(trunk.module, nn.Sequential):
        raise _unknown(trunk, trunk.module)
    layers, index = list(trunk.module), 0
    lines: list[list[str]] = []  # of the code: a convolution, and what follows it
    while index < len(layers):
        three = layers[index : index + len(_BLOCK)]
        calls = [_call(trunk, layer) for layer in three]
        is_block = tuple(type(layer) for layer in three) == _BLOCK and "=" not in calls[1]
        if isinstance(three[0], nn.Conv2d) or not lines:
            lines.append([])
        lines[-1].append("*convolution" + calls[0].removeprefix("nn.Conv2d") if is_block else calls[0])
        index += len(_BLOCK) if is_block else 1
    return _LOADER.format(layers="\n".join(f"    {', '.join(line)}," for line in lines), file=json.dumps(file))


def model_card(trunk: Trunk, file: str, card: Card | None = None) -> str:
    """The model card of an exported trunk, in Markdown.

    Args:
        trunk: The trunk.
        file: Name of the file of its weights.
        card: What is known of the run that trained it.

    Raises:
        ConfigurationError: See `loader`.
    """
    code = loader(trunk, file)
    shape = map_shape(trunk.module, trunk.input_size)
    parameters = sum(each.numel() for each in trunk.module.parameters())
    sizes = f"{trunk.input_size} × {trunk.input_size}"
    rows = {
        "backbone": f"{trunk.name}, {parameters:,} parameters",
        "input": f"RGB images of {sizes} pixels; larger ones give larger maps",
        "output": f"pool5, a map of {shape[0]} × {shape[1]} × {shape[2]}",
        **(_of_run(card) if card else {"source": _source(trunk)}),
        "made by": f"permenv {_version()}",
    }
    images = _IMAGES.format(side=trunk.input_size, shape=", ".join(map(str, shape)))
    parts = [
        f"# {_cell(file.removesuffix(_SUFFIX))}",
        _introduction(card),
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]),
        "## Loading\nWith torch and safetensors alone:",
        f"```python\n{code}\n```",
        f"With permenv: `permenv.transfer.trunks.load_trunk({json.dumps(file)})`.",
        "## Images\nEach channel of each image has mean 0 and deviation 1, as the pieces of the self-supervised task "
        "have. There is no mean colour of a data set.",
        f"```python\n{images}\n```",
        "## Limits\n" + "\n".join(f"- {limit}" for limit in _limits(trunk, card)),
    ]
    if card:
        settings = json.dumps(card.settings, indent=2, ensure_ascii=False, default=str)
        parts.append(f"## Configuration of the run\n```json\n{settings}\n```")
    return "\n\n".join(parts) + "\n"


def _introduction(card: Card | None) -> str:
    if card is None:
        return f"A convolutional trunk of permenv. {_PAPER}"
    what = " and ".join({"spatial": "tiles of images", "temporal": "frames of videos"}.get(t, t) for t in card.data)
    return f"A convolutional trunk that was trained without labels to recognise permutations of {what}. {_PAPER}"


def _of_run(card: Card) -> dict[str, str]:
    rows = {
        "task": " and ".join(card.data),
        "data": "; ".join(f"{task}: {name}" for task, name in card.data.items()),
        "training": f"{card.iterations:,} iterations of SGD on batches of {card.settings.get('batch_size')}",
        "seed": str(card.seed),
    }
    if card.settings.get("ema_decay"):
        rows["weights"] = f"their moving average, of decay {card.settings['ema_decay']}"
    if card.errors:
        errors = ", ".join(f"{task} {error:.3f}" for task, error in card.errors.items())
        count, samples = (card.settings.get(name) for name in ("num_permutations", "num_validation"))
        rows["validation error"] = (
            f"{errors}, in iteration {card.validated_at:,}: share of {count} permutations of {samples} held-out "
            "samples that are not recognised"
        )
    return rows


def _limits(trunk: Trunk, card: Card | None) -> list[str]:
    limits = []
    if card is None and not trunk.loaded:
        limits.append("The weights are random: nothing was learned.")
    elif card is None:
        limits.append("It is not known here how the weights were trained: see their source.")
    elif card.iterations == 0:
        limits.append("The run had not begun: these are its initial weights.")
    if card and card.diverged:
        limits.append("The run diverged: do not use its features.")
    if trunk.name == "caffenet":
        limits.append("conv1 has stride 4 here, as the paper evaluates it; self-supervised training uses stride 2.")
    if card:
        limits += [
            "The validation error says how well permutations are recognised, not what the features are worth for "
            "another task: measure that on the task.",
            "Features are learned from the data above alone; what these lack or show too often, such as people, places "
            "or cameras of one kind, the features lack or show too often as well. The data's terms of use apply.",
        ]
    return [*limits, "It has no classifier: add one, and fine-tune."]


def _call(trunk: Trunk, layer: nn.Module) -> str:
    """The expression that makes a layer.

    Raises:
        ConfigurationError: If what it makes is another layer.
    """
    kind = type(layer)
    if kind not in _DEFAULTS:
        raise _unknown(trunk, layer)
    positional, defaults = _DEFAULTS[kind]
    values = [_side(getattr(layer, name)) for name in positional]
    named = {name: _side(getattr(layer, name)) for name in defaults}
    if kind is nn.MaxPool2d and named["stride"] == values[0]:
        named["stride"] = None
    options = {name: value for name, value in named.items() if value != defaults[name]}
    if kind is nn.Conv2d and layer.bias is None:
        options["bias"] = False
    made = nn.utils.skip_init(kind, *values, **options) if kind is nn.Conv2d else kind(*values, **options)
    if kind is not nn.ReLU and repr(made) != repr(layer):  # whether it works in place makes no difference
        raise _unknown(trunk, layer)
    return f"nn.{kind.__name__}({', '.join([*map(repr, values), *(f'{n}={v!r}' for n, v in options.items())])})"


def _side(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _unknown(trunk: Trunk, layer: nn.Module) -> ConfigurationError:
    known = ", ".join(kind.__name__ for kind in _DEFAULTS)
    return ConfigurationError(
        f"the trunk {trunk.name} has a layer {type(layer).__name__} for which no loader is known: only a sequence of "
        f"{known} is exported; save trunk.module.state_dict() of another one"
    )


def _source(trunk: Trunk) -> str:
    """Where the weights come from, without a path."""
    return printable(Path(trunk.source).name)


def _version() -> str:
    try:
        return version("permenv")
    except PackageNotFoundError:
        return "not installed"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
