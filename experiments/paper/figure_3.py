"""Figure 3: objects of VOC's test images and their five nearest neighbours in trainval, by several networks.

    python experiments/paper/figure_3.py runs/spatial-reinforce-seed0 random --voc VOCdevkit/VOC2007

Sources are those of `experiments/evaluate.py`. The queries are drawn by the seed, one of each class first, so that none
is chosen for its neighbours. Writes the picture `out`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.common.evaluation.sources import find_sources
from experiments.common.files import write_picture
from experiments.common.options import require_at_least
from experiments.common.script import run_script
from experiments.paper.shared import one_of_each_first
from permenv import ConfigurationError
from permenv.data.voc import voc_images
from permenv.transfer.pictures import neighbour_figure
from permenv.transfer.retrieval import nearest, pool_features
from permenv.transfer.trunks import some_of, with_measured_statistics
from permenv.transfer.voc_sets import object_crops


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders, checkpoints, state dicts, "random", "timm/NAME"."""
    voc: Path | None = None
    """VOCdevkit/VOC2007 or a folder above it."""
    queries: int = 6
    """Objects to search neighbours of."""
    neighbours: int = 5
    """Of each."""
    backbone: str | None = None
    """Of "random", and of a state dict that does not say its own."""
    seed: int = 0
    """Draws the queries, and the weights of "random"."""
    out: Path = Path("runs/figure-3.png")
    """Picture."""


def main(config: Config) -> dict[str, np.ndarray]:
    """Search and draw.

    Returns:
        By source, (queries, neighbours) rows of the objects of trainval.

    Raises:
        ConfigurationError, CheckpointError, DataError: With the remedy.
    """
    require_at_least(config, queries=1, neighbours=1, seed=0)
    sources = find_sources(config.sources, config.backbone)
    if config.voc is None:
        raise ConfigurationError("there is nothing to search: name VOCdevkit/VOC2007 with --voc")
    found, shown = {}, None
    for source in sources:
        trunk = source.load(config.seed)
        print(f"{source.name}: {trunk.describe()}", flush=True)
        database, queries = (
            object_crops(voc_images(config.voc, part), trunk.input_size) for part in ("trainval", "test")
        )
        assert queries.labels is not None, "objects have classes"
        rows = one_of_each_first(queries.labels, config.seed)[: config.queries]
        if source.is_untrained:
            trunk = with_measured_statistics(trunk, some_of(database))
        of_queries = pool_features(trunk.module, queries, rows)
        of_database = pool_features(trunk.module, database, np.arange(len(database)))
        found[source.name] = nearest(of_queries, of_database, min(config.neighbours, len(database)))[0]
        # the same objects whatever the size at which a trunk sees them; they are drawn at the largest
        shown = (queries, rows, database) if shown is None or queries.size > shown[0].size else shown
    assert shown is not None, "there is a source"
    queries, rows, database = shown
    write_picture(config.out, neighbour_figure(queries, rows, database, found))
    print(f"written to {config.out}")
    return found


if __name__ == "__main__":
    run_script(main, Config, __doc__)
