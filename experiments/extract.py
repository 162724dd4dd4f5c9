"""Features of your own images: a row for each file of a folder, by the trunk of a run.

    python experiments/extract.py runs/spatial-reinforce-seed0 --images path/to/photos
    python experiments/extract.py random --backbone caffenet --images path/to/photos --out untrained

A source is a run folder or checkpoint of any task, a state dict of torch or safetensors of such a trunk, "random" for
initial weights, or "timm/NAME". Of each image the centre square is resized to what the trunk is evaluated on, and the
map pool5 is the feature, as in the nearest-neighbour search (`permenv.transfer.retrieval.pool_features`). Files that
cannot be read, and copies of others, are left out and named.

Writes OUT.npy, (N, features) float32, which has to fit into memory, and OUT.json with the source and "files", the path
of each row's file within the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.common.files import require_writable, write_json, write_with
from experiments.common.script import run_script
from experiments.common.sources import find_sources
from permenv import ConfigurationError, image_folder
from permenv.data.files import summary
from permenv.data.folder import file_names
from permenv.device import resolve_device
from permenv.transfer.retrieval import pool_features


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    source: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """Run folder, checkpoint, state dict, "random" or "timm/NAME"."""
    images: Path = tyro.MISSING
    """Folder of images, at any depth."""
    backbone: str | None = None
    """Of "random", and of a state dict that does not say its own."""
    seed: int = 0
    """Decides the weights of "random"."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = Path("features")
    """Where to write the .npy and .json."""


def main(config: Config) -> tuple[Path, Path]:
    """Compute the features, write them and say what was written.

    Returns:
        The two files.

    Raises:
        CheckpointError: If the source cannot be read.
        ConfigurationError: If there is no such backbone or device, the features are not finite, or a file is there
            already.
        DataError: If the folder has no readable image.
    """
    files = config.out.with_name(f"{config.out.name}.npy"), config.out.with_name(f"{config.out.name}.json")
    for file in files:
        if file.exists():
            raise ConfigurationError(f"{file} exists already: name other files with --out, or remove it")
    require_writable(config.out.parent, "--out")
    device = resolve_device(config.device)
    (source,) = find_sources((config.source,), config.backbone)
    trunk = source.load(config.seed)
    images = image_folder(config.images, trunk.input_size)
    names = file_names(config.images, images)
    features = pool_features(trunk.module.to(device), images, np.arange(len(images)), progress=True)
    if not np.isfinite(features).all():
        raise ConfigurationError(f"{config.source}: its features are not finite, its run diverged: use an earlier one")
    write_with(files[0], lambda file: np.save(file, features))
    write_json(files[1], {"source": config.source, "trunk": trunk.describe(), "files": names})
    skipped = f"; left out: {len(images.skipped)}: {summary(images.skipped)}" if images.skipped else ""
    print(f"{trunk.describe()}: {len(features)} images, {features.shape[1]} features each{skipped}.")
    print(f"written to {files[0]} and {files[1]}")
    return files


if __name__ == "__main__":
    run_script(main, Config, __doc__)
