"""Features of your own images: a row for each file of a folder, by the trunk of a run.

    python experiments/extract.py runs/spatial-reinforce-seed0 --images path/to/photos
    python experiments/extract.py random --backbone caffenet --images path/to/photos --out untrained

A source is a run folder or checkpoint of any task, a state dict of torch or safetensors of such a trunk, "random" for
initial weights, or "timm/NAME". Of each image the centre square is resized to what the trunk is evaluated on, and the
map pool5 is the feature, as in the nearest-neighbour search (`permenv.transfer.retrieval.pool_features`). Files that
cannot be read, and copies of others, are left out and named.

The squares of a folder are kept in the user's cache, as for training. Those of a large folder, of more than 4 GiB of
pixels, are kept as JPEG, so that the features are of images that were encoded anew.

The batch statistics of an untrained trunk are measured on the images first, as everywhere here.

Writes OUT.npy, (N, features) float32, row by row, and OUT.json with the source and "files", the path of each row's file
within the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import tyro
from torch import nn

from experiments.common.evaluation.sources import find_sources
from experiments.common.files import as_json, require_writable, with_ending, write_json
from experiments.common.script import run_script
from permenv import ConfigurationError, StillImages, image_folder
from permenv.atomic import written
from permenv.data.files import list_some
from permenv.data.folder import file_names
from permenv.device import resolve_device
from permenv.progress import progress_bar
from permenv.transfer.batches import chunks
from permenv.transfer.retrieval import pool_features
from permenv.transfer.trunks import some_of, with_measured_statistics

_PART = 1024  # images whose features are in memory at once


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
    """Where to write the .npy and .json; without an ending."""


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
    if not config.out.name:
        raise ConfigurationError(f"--out {config.out}: names a folder; name the files, without an ending")
    rows, about = (with_ending(config.out, ending) for ending in (".npy", ".json"))
    require_writable(rows.parent, "--out")
    device = resolve_device(config.device)
    (source,) = find_sources((config.source,), config.backbone)
    trunk = source.load(config.seed)
    images = image_folder(config.images, trunk.input_size)
    if source.is_untrained:
        trunk = with_measured_statistics(trunk, some_of(images))
    content = as_json({"source": config.source, "trunk": trunk.describe(), "files": file_names(images)})
    # of a run that was killed between the two files there is the second one, as it would be written
    _require_none(rows, about, content)
    with written(rows) as file:
        width = _write(file, trunk.module.to(device), images, config.source)
        _require_none(rows, about, content)  # another process may have written them meanwhile
        write_json(about, content)
    skipped = f"; left out: {len(images.skipped)}: {list_some(images.skipped)}" if images.skipped else ""
    print(f"{trunk.describe()}: {len(images)} images, {width} features each{skipped}.")
    print(f"written to {rows} and {about}")
    return rows, about


def _require_none(rows: Path, about: Path, content: Any) -> None:
    """Check that no files would be replaced.

    Raises:
        ConfigurationError: If one is there and is not as it would be written.
    """
    if rows.exists() or (about.exists() and not _holds(about, content)):
        existing = rows if rows.exists() else about
        raise ConfigurationError(f"{existing} exists already: name other files with --out, or remove it")


def _write(file: BinaryIO, trunk: nn.Module, images: StillImages, name: str) -> int:
    """Write the features of all images, a part at a time; return how many an image has.

    The file is no memory map: on a full disk, writing to one ends the process instead of raising an error.
    """
    width = 0
    parts = chunks(np.arange(len(images)), _PART)
    for part in progress_bar(parts, label="features", unit="part"):
        features = pool_features(trunk, images, part)
        if not np.isfinite(features).all():
            raise ConfigurationError(f"{name}: its features are not finite, its run diverged: use an earlier one")
        if not width:
            width = features.shape[1]
            descr = np.lib.format.dtype_to_descr(features.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (len(images), width)}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(features.tobytes())
    return width


def _holds(path: Path, content: Any) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == content)
    except ValueError:
        return False


if __name__ == "__main__":
    run_script(main, Config, __doc__)
