"""Figure I.3: class saliency of networks that were fine-tuned on VOC's classification from several initialisations.

    python experiments/paper/figure_i3.py runs/spatial-reinforce-seed0 random --voc VOCdevkit/VOC2007

Sources are those of `experiments/evaluate.py`; each is fine-tuned as by its protocol "classification". The images are
drawn by the seed from those of the test list that have a single class, one of each class first. Writes the picture
`out`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.common.evaluation.protocols import Data, GivenSetting, Job, resolve_setting
from experiments.common.evaluation.sources import find_sources
from experiments.common.files import write_picture
from experiments.common.options import require_at_least
from experiments.common.script import run_script
from experiments.paper.shared import one_of_each_first
from permenv import ConfigurationError
from permenv.data.voc import VOC_CLASSES, voc_images
from permenv.device import resolve_device
from permenv.transfer.classification import ClassificationOptions, classification
from permenv.transfer.pictures import class_saliency, saliency_figure
from permenv.transfer.trunks import some_squares
from permenv.transfer.voc_sets import labelled_images


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders, checkpoints, state dicts, "random"."""
    voc: Path | None = None
    """VOCdevkit/VOC2007 or a folder above it."""
    count: int = 5
    """Images."""
    setting: GivenSetting = "auto"
    """Sizes of the fine-tuning: the paper's, or for two CPU cores; "auto" is the paper's for CaffeNet only."""
    share: float = 1.0
    """Share of its iterations, in (0, 1]: to try it out."""
    backbone: str | None = None
    """Of "random", and of a state dict that does not say its own."""
    seed: int = 0
    """Draws the images, and decides the fine-tuning."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = Path("runs/figure-i3.png")
    """Picture."""


def main(config: Config) -> dict[str, list[np.ndarray]]:
    """Fine-tune and draw.

    Returns:
        By source, the map of each image.

    Raises:
        ConfigurationError, CheckpointError, DataError: With the remedy.
    """
    require_at_least(config, count=1, seed=0)
    if not 0 < config.share <= 1:
        raise ConfigurationError(f"--share {config.share}: must be above 0 and at most 1")
    sources = find_sources(config.sources, config.backbone)
    if config.voc is None:
        raise ConfigurationError("there are no images: name VOCdevkit/VOC2007 with --voc")
    records = [voc_images(config.voc, part) for part in ("trainval", "test")]
    train, test = (labelled_images(each) for each in records)
    single = np.flatnonzero(((test.labels >= 0).sum(axis=1) == 1) & (test.labels.max(axis=1) == 1))
    rows = single[one_of_each_first(test.labels[single].argmax(axis=1), config.seed)[: config.count]]
    labels = test.labels[rows].argmax(axis=1)
    images = [test.images[row] for row in rows]
    maps: dict[str, list[np.ndarray]] = {}
    for source in sources:
        trunk = source.load(config.seed)
        print(f"{source.name}: {trunk.describe()}", flush=True)
        setting = resolve_setting(config.setting, trunk)
        job = Job(trunk, Data(), setting, config.seed, resolve_device(config.device), config.share, source.is_untrained)
        options: ClassificationOptions = job.options(ClassificationOptions)
        prepared = job.prepared(functools.partial(some_squares, records[0], trunk.input_size))
        try:
            network = classification(
                prepared.module, train, test, VOC_CLASSES, options, seed=config.seed, device=job.device
            ).network
        except ValueError as error:  # a trunk that cannot be folded, or is too deep for the crops
            raise ConfigurationError(f"{source.name}: {error}") from error
        maps[source.name] = [
            class_saliency(network, image, int(label), options.crop)
            for image, label in zip(images, labels, strict=True)
        ]
    write_picture(config.out, saliency_figure(images, [VOC_CLASSES[label] for label in labels], maps))
    print(f"written to {config.out}")
    return maps


if __name__ == "__main__":
    run_script(main, Config, __doc__)
