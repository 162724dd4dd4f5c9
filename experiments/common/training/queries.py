"""The evaluation of a training run: which data query the nearest-neighbour search, before and after training."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

import permenv
from experiments.common.training.options import JobOptions
from permenv import PermShuffleEnv, StillImages, VideoClips
from permenv.data.splits import official_split

_FRAMES_A_CLIP = 10  # section 4.1
_MOST = 10_000  # queries, and entries of the database: the search is repeated during a run

log = logging.getLogger("permenv")


@dataclass(frozen=True)
class Queries:
    """The queries of one task.

    Attributes:
        data: The images or clips; None if the task has neither, so that there is nothing to evaluate.
        name: Their name in words.
    """

    data: StillImages | VideoClips | None
    name: str

    @property
    def fingerprint(self) -> str | None:
        """Digest of the content; None without data."""
        return None if self.data is None else self.data.fingerprint


def find_queries(options: JobOptions, base_env: PermShuffleEnv) -> dict[str, Queries]:
    """Find the data that query the nearest-neighbour search, by task.

    Fresh scenes or clips query the embedded ones. Images are queried by `eval_images`, else by the folder `val` or
    `test` beside a folder called `train`; clips by the test list of their split. Else the validation set queries.

    Args:
        options: Where the data come from.
        base_env: The environment; the images or clips that it trains on are searched.

    Raises:
        DataError: If `eval_images` cannot be used.
    """
    return {name: _queries_of(options, base_env, name) for name in base_env.tasks}


def top1(base_env: PermShuffleEnv, queries: dict[str, Queries], *, untrained: bool = False) -> dict[str, float | None]:
    """Evaluate the network as it is now.

    Args:
        base_env: The environment; a run has begun. Samples of the training set are the database.
        queries: By task.
        untrained: Whether the batch statistics of the trunk are measured on the database first, without what is held
            out: an untrained one has none of its own.

    Returns:
        By task, Top-1 of pool5 features in [0, 1]; None without labels, or if the features are not finite.
    """
    return {name: _top1(base_env, name, query.data, untrained) for name, query in queries.items()}


def _top1(
    base_env: PermShuffleEnv, name: str, queries: StillImages | VideoClips | None, untrained: bool
) -> float | None:
    from permenv.transfer import retrieval  # these are slow to import
    from permenv.transfer.trunks import measure_statistics, some_of

    task, held_out = base_env.tasks[name], base_env.run.held_out[name]
    database, searched = task.data, task.trainable(held_out)
    if queries is None or not isinstance(database, StillImages | VideoClips):
        return None
    trunk = base_env.run.trainer.eval_network.trunk
    found = retrieval(
        measure_statistics(trunk, some_of(database, searched)) if untrained else trunk,
        queries,
        database,
        query_indices=np.unique(held_out[:, 0]) if queries is database else None,
        database_indices=searched,
        frames=_FRAMES_A_CLIP,
        most=_MOST,
    )
    return None if found is None else found[1]


def _queries_of(options: JobOptions, base_env: PermShuffleEnv, name: str) -> Queries:
    data = base_env.tasks[name].data
    if isinstance(data, StillImages):
        return _image_queries(options, base_env, data)
    if isinstance(data, VideoClips):
        return _clip_queries(options, base_env, data)
    return Queries(None, "none")


def _image_queries(options: JobOptions, base_env: PermShuffleEnv, trained: StillImages) -> Queries:
    config, images, folder = base_env.config, options.images, options.eval_images
    if images is None and folder is None and trained.name == "embedded scenes":
        count = max(1, config.num_scenes // 4)
        return Queries(permenv.embedded_scenes(count, trained.size, config.scenes_seed + 1), "fresh scenes")
    if images is not None and folder is None and images.name == "train":
        beside = (images.with_name(name) for name in ("val", "test"))
        folder = next((path for path in beside if path.is_dir()), None)
    if folder is not None:
        return Queries(permenv.image_folder(folder, trained.size).to(base_env.device), str(folder))
    return Queries(trained, "the held-out images")


def _clip_queries(options: JobOptions, base_env: PermShuffleEnv, trained: VideoClips) -> Queries:
    config, videos, size = base_env.config, options.videos, trained.frames.size
    if videos is None and trained.name == "embedded clips":
        count, frames = max(1, config.num_clips // 4), min(_FRAMES_A_CLIP, config.clip_frames)
        return Queries(permenv.embedded_clips(count, frames, size, config.scenes_seed + 1), "fresh clips")
    held_out = Queries(trained, "the held-out clips")
    if videos is None or config.split == 0:
        return held_out
    if not official_split(videos, config.split or 1, trained.names):
        return held_out
    try:
        clips = permenv.video_folder(videos, size, _FRAMES_A_CLIP, split=config.split, part="test")
    except permenv.DataError as fault:  # only the evaluation needs the test clips: training goes on without them
        log.warning("the held-out clips query, because the test clips cannot be used: %s", fault)
        return held_out
    return Queries(clips.to(base_env.device), clips.name)
