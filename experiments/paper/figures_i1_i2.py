"""Figures I.1 and I.2: what activates units of a convolution most, in several sets of images.

    python experiments/paper/figures_i1_i2.py runs/spatial-reinforce-seed0 --images set/val VOCdevkit/VOC2007/JPEGImages
    python experiments/paper/figures_i1_i2.py runs/spatial-reinforce-seed0 --images set/val --units 3 17 --convolution 4

A row is a unit in one set; what is drawn is the unit's receptive field in the image, with the activation. By default
the units are those whose highest activation stands out most from their mean over the first set, which is how units that
respond to something particular are found without looking. Writes the picture `out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from torch import nn

from experiments.common.evaluation.sources import find_sources
from experiments.common.files import write_picture
from experiments.common.options import require_at_least
from experiments.common.script import run_script
from permenv import ConfigurationError, StillImages, image_folder
from permenv.transfer.pictures import Activations, activation_figure, top_activations
from permenv.transfer.plain import plain_trunk


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    source: tyro.conf.Positional[str] = ""
    """Run folder, checkpoint or state dict."""
    images: tuple[Path, ...] = ()
    """Folders of images; each is a set."""
    convolution: int | None = None
    """Number of the convolution, from 1; by default the last, conv5 of CaffeNet."""
    units: tuple[int, ...] = ()
    """Its channels."""
    count: int = 3
    """How many units, if none are named."""
    top: int = 9
    """Images of each."""
    backbone: str | None = None
    """Of a state dict that does not say its own."""
    out: Path = Path("runs/figures-i1-i2.png")
    """Picture."""


def main(config: Config) -> Activations:
    """Search and draw.

    Returns:
        A row for each unit in each set; images are numbered through all sets.

    Raises:
        ConfigurationError, CheckpointError, DataError: With the remedy.
    """
    require_at_least(config, count=1, top=1)
    if not config.images:
        raise ConfigurationError("there are no images: name one or more folders with --images")
    (source,) = find_sources((config.source,) if config.source else (), config.backbone)
    trunk = source.load(0)
    print(f"{source.name}: {trunk.describe()}", flush=True)
    last = sum(layer.startswith("conv") for layer in trunk.layers)
    number = last if config.convolution is None else config.convolution
    sets = [image_folder(folder, trunk.input_size) for folder in config.images]
    try:
        plain = plain_trunk(trunk.module).eval()
        units = config.units or outstanding(plain, sets[0], number, config.count, config.top)
        each = [
            top_activations(plain, pixels_of(images), convolution=number, units=units, top=config.top)
            for images in sets
        ]
    except ValueError as error:  # a trunk that cannot be folded, an unknown convolution or unit
        raise ConfigurationError(f"{source.name}: {error}") from error
    found = _one_below_the_other(each, [len(images) for images in sets])
    names = [f"unit {unit}\n{folder.resolve().name}" for unit in units for folder in config.images]
    pictures = [pixels for images in sets for pixels in pixels_of(images)]
    write_picture(config.out, activation_figure(pictures, found, names))
    print(f"units {', '.join(map(str, units))} of convolution {number}: written to {config.out}")
    return found


def outstanding(trunk: nn.Sequential, images: StillImages, convolution: int, count: int, top: int) -> tuple[int, ...]:
    """Choose the units whose `top` highest activations lie furthest above the mean of all, in deviations."""
    values = top_activations(trunk, pixels_of(images), convolution=convolution, top=len(images)).values  # [u, N]
    deviation = values.std(axis=1)
    scores = (values[:, :top].mean(axis=1) - values.mean(axis=1)) / np.where(deviation > 0, deviation, np.inf)
    return tuple(np.argsort(-scores, kind="stable")[:count].tolist())


def pixels_of(images: StillImages) -> list[np.ndarray]:
    """The pixels (S, S, 3) uint8 of each image, not copied."""
    return list(np.asarray(images.pixels))


def _one_below_the_other(each: Sequence[Activations], lengths: Sequence[int]) -> Activations:
    """Put the rows of the same unit below each other; they have as many columns as all sets have images."""
    columns = min(found.images.shape[1] for found in each)
    offsets = np.cumsum([0, *lengths[:-1]])

    def rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
        stacked = np.stack([array[:, :columns] for array in arrays], axis=1)  # [u, sets, ...]
        return stacked.reshape(-1, *stacked.shape[2:])

    return Activations(
        units=np.repeat(each[0].units, len(each)),
        values=rows([found.values for found in each]),
        images=rows([found.images + offset for found, offset in zip(each, offsets, strict=True)]),
        boxes=rows([found.boxes for found in each]),
    )


if __name__ == "__main__":
    run_script(main, Config, __doc__)
