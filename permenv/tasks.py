"""The two ordering tasks: what a sample is, how it falls into pieces, which permutations there are (section 3.1).

A *sample* is a row of integers: the number of an image or clip, and for a clip the places of its frames. So X_val fits
into a checkpoint, and whoever draws samples needs no pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from permenv.augment import (
    ColourJitter,
    centre_offsets,
    crop_frames,
    cut_tiles,
    jitter_parameters,
    normalise,
    random_offsets,
)
from permenv.config import Config, ConfigurationError
from permenv.data import (
    DataError,
    StillImages,
    VideoClips,
    embedded_clips,
    embedded_scenes,
    image_folder,
    video_folder,
)
from permenv.heads import OrderingHead, SpatialHead, TemporalHead
from permenv.permutations import maximally_different

_HELD_OUT_CLIPS = 1 / 5  # at most, of all: where clips are few, training needs them more than X_val does


class Task(ABC):
    """An ordering task.

    Attributes:
        config: All numbers.
        permutations: (|Ψ|, n) int64, Ψ.
        device: Where pieces are wanted.

    Args:
        config: All numbers.
        permutations: (|Ψ|, n) int64, Ψ.
        device: Where pieces are wanted.
    """

    data: StillImages | VideoClips

    def __init__(self, config: Config, permutations: np.ndarray, device: torch.device):
        self.config = config
        self.permutations = permutations
        self.device = device
        self._jitter = ColourJitter(config.jitter, config.grey_probability)

    @property
    def num_pieces(self) -> int:
        """n, pieces of a sample."""
        return self.permutations.shape[1]

    @abstractmethod
    def head(self, features: int) -> OrderingHead:
        """Make a head for pieces with that many pool5 features."""

    @abstractmethod
    def hold_out(self, rng: np.random.Generator) -> np.ndarray:
        """Draw X_val.

        Returns:
            (V, k) int64 samples.
        """

    def trainable(self, held_out: np.ndarray) -> np.ndarray:
        """Numbers of the images or clips that are in no sample (V, k) of X_val, ascending."""
        return np.setdiff1d(np.arange(len(self.data)), held_out[:, 0])

    @abstractmethod
    def draw(self, among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw training samples.

        Args:
            among: (N,) int, numbers of images or clips.
            count: B, how many samples.
            rng: Source of the draws.

        Returns:
            (B, k) int64 samples, any image or clip as likely as any other.
        """

    def training_pieces(self, samples: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Shuffle and augment samples.

        Args:
            samples: (B, k) int.
            labels: (B,) int, the permutation of each sample as an index into Ψ.
            rng: Source of the augmentation.

        Returns:
            (B, n, 3, h, w) float32 on the device, normalised.
        """
        offsets = self._random_offsets(len(samples), rng)
        colours = jitter_parameters(rng, len(samples), self.num_pieces, self._jitter)
        return normalise(self._cut(samples, self.permutations[labels], offsets), colours)

    def validation_pieces(self, samples: np.ndarray) -> Tensor:
        """Centre crops (V, n, 3, h, w) float32 of samples (V, k), in their true order, normalised, not augmented."""
        return normalise(self.centre_pieces(samples, np.tile(np.arange(self.num_pieces), (len(samples), 1))))

    def centre_pieces(self, samples: np.ndarray, orders: np.ndarray) -> Tensor:
        """Centre crops (B, n, h, w, 3) uint8 of samples (B, k) in the orders (B, n)."""
        return self._cut(samples, orders, centre_offsets(len(samples), self.num_pieces, self._slack))

    @abstractmethod
    def originals(self, samples: np.ndarray) -> Tensor:
        """What samples (B, k) look like before they are cut, uint8: images (B, S, S, 3) or frames (B, n, S, S, 3)."""

    def _random_offsets(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Where to crop the pieces of that many samples in training, (B, n, 2)."""
        return random_offsets(rng, count, self.num_pieces, self._slack)

    @property
    @abstractmethod
    def _slack(self) -> int:
        """Pixels by which a piece may be moved in what it is cropped from."""

    @abstractmethod
    def _cut(self, samples: np.ndarray, orders: np.ndarray, offsets: np.ndarray) -> Tensor:
        """Pieces (B, n, h, w, 3) uint8 of samples (B, k) in the orders (B, n), cropped at offsets (B, n, 2)."""


class SpatialTask(Task):
    """Order the tiles of an image. A sample is [image].

    Args:
        config: All numbers.
        permutations: (|Ψ|, n) int64, Ψ.
        images: X, of `config.image_size`; moved to the device if they fit.
        device: Where pieces are wanted.

    Raises:
        DataError: If there are too few images.
    """

    data: StillImages

    def __init__(self, config: Config, permutations: np.ndarray, images: StillImages, device: torch.device):
        super().__init__(config, permutations, device)
        if config.num_validation >= len(images):
            raise DataError(
                f"num_validation={config.num_validation}, but {images.name} has only {len(images)} images "
                f"and at least one must be left for training: lower num_validation or add images"
            )
        self.data = images.to(device)

    def head(self, features: int) -> SpatialHead:
        """Make a head for tiles with that many pool5 features."""
        config = self.config
        return SpatialHead(features, self.num_pieces, len(self.permutations), config.fc6, config.fc7)

    def hold_out(self, rng: np.random.Generator) -> np.ndarray:
        """Draw X_val: (V, 1) int64, `num_validation` different images."""
        return rng.choice(len(self.data), self.config.num_validation, replace=False)[:, None]

    def draw(self, among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw training samples (B, 1), see `Task.draw`."""
        return among[rng.integers(len(among), size=count)][:, None]

    def originals(self, samples: np.ndarray) -> Tensor:
        """Images (B, S, S, 3) uint8."""
        return self.data.take(samples[:, 0], self.device)

    @property
    def _slack(self) -> int:
        return self.config.cell_size - self.config.piece_size

    def _cut(self, samples: np.ndarray, orders: np.ndarray, offsets: np.ndarray) -> Tensor:
        return cut_tiles(self.originals(samples), orders, offsets, self.config.grid, self.config.piece_size)


class TemporalTask(Task):
    """Order frames of a clip. A sample is [clip, place of the first frame, ..., of the last].

    The frames of a sample are `num_frames` different ones of its clip, any set as likely as any other, in the order
    of time; with `merge_reversed` half of the samples are in the opposite order.

    Args:
        config: All numbers.
        permutations: (|Ψ|, n) int64, Ψ.
        clips: X, of `config.frame_size`, each of at least `num_frames` frames; moved to the device if they fit.
        device: Where pieces are wanted.

    Raises:
        DataError: If there are fewer than two clips, or one is too short.
    """

    data: VideoClips

    def __init__(self, config: Config, permutations: np.ndarray, clips: VideoClips, device: torch.device):
        super().__init__(config, permutations, device)
        if len(clips) < 2:
            raise DataError(
                f"{clips.frames.name} has {len(clips)} clip, but one is held out for validation and at least one must "
                f"be left for training: add clips"
            )
        if clips.lengths.min() < config.num_frames:
            short = int(clips.lengths.argmin())
            raise DataError(
                f"clip {clips.names[short]} has {clips.lengths[short]} frames, a sample needs "
                f"num_frames={config.num_frames}: lower num_frames or leave the clip out"
            )
        self.data = clips.to(device)

    def head(self, features: int) -> TemporalHead:
        """Make a head for frames with that many pool5 features."""
        config = self.config
        return TemporalHead(features, len(self.permutations), config.temporal_fc6, config.lstm, config.relative_frames)

    def hold_out(self, rng: np.random.Generator) -> np.ndarray:
        """Draw X_val: (V, 1 + n) int64, `num_validation` samples of at most a fifth of the clips, each as often."""
        num_samples = self.config.num_validation
        num_clips = min(num_samples, max(1, int(len(self.data) * _HELD_OUT_CLIPS)))
        clips = rng.choice(len(self.data), num_clips, replace=False)
        return self._with_places(np.resize(clips, num_samples), rng)

    def draw(self, among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw training samples (B, 1 + n), see `Task.draw`."""
        return self._with_places(among[rng.integers(len(among), size=count)], rng)

    def originals(self, samples: np.ndarray) -> Tensor:
        """Frames (B, n, S, S, 3) uint8, in the order of the sample."""
        return self.data.take(samples[:, 0], samples[:, 1:], self.device)

    @property
    def _slack(self) -> int:
        return self.config.frame_size - self.config.piece_size

    def _cut(self, samples: np.ndarray, orders: np.ndarray, offsets: np.ndarray) -> Tensor:
        places = np.take_along_axis(samples[:, 1:], orders, axis=1)
        return crop_frames(self.data.take(samples[:, 0], places, self.device), offsets, self.config.piece_size)

    def _random_offsets(self, count: int, rng: np.random.Generator) -> np.ndarray:
        if self.config.shared_crop:
            return random_offsets(rng, count, 1, self._slack).repeat(self.num_pieces, axis=1)
        return super()._random_offsets(count, rng)

    def _with_places(self, clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of samples from the clips (B,): (B, 1 + n)."""
        lengths = self.data.lengths[clips]
        # the n frames with the smallest of random keys are a random set of n
        keys = rng.random((len(clips), lengths.max()))
        keys[np.arange(lengths.max()) >= lengths[:, None]] = np.inf
        places = np.sort(np.argpartition(keys, self.num_pieces - 1, axis=1)[:, : self.num_pieces], axis=1)
        if self.config.merge_reversed:
            backwards = rng.random(len(clips)) < 0.5
            places[backwards] = places[backwards, ::-1]
        return np.concatenate([clips[:, None], places], axis=1)


def make_tasks(
    task: str, config: Config, images: str | Path | None, videos: str | Path | None, device: torch.device
) -> dict[str, Task]:
    """Make what a name in `permenv.config.TASKS` stands for, with its data.

    Args:
        task: The name.
        config: All numbers.
        images: Folder of images for a task that has stills, or None for the embedded scenes.
        videos: Folder of videos for a task that has clips, or None for the embedded clips.
        device: Where pieces are wanted.

    Returns:
        The tasks by name, the spatial one first.

    Raises:
        ConfigurationError: If there are not as many permutations as asked for, or a folder is given that the task
            does not use.
        DataError: If a folder cannot be used.
    """
    has_stills, has_clips = task in ("spatial", "spatiotemporal"), task in ("temporal", "spatiotemporal")
    if videos is not None and not has_clips:
        raise ConfigurationError(f"videos={str(videos)!r}: task {task!r} shuffles stills; pass images instead")
    if images is not None and not has_stills:
        raise ConfigurationError(f"images={str(images)!r}: task {task!r} shuffles frames; pass videos instead")
    # all permutations before any data: they are checked at once, and a folder may take minutes to read
    psi = {}
    if has_stills:
        psi["spatial"] = _permutations(config, config.num_tiles, merge_reversed=False)
    if has_clips:
        psi["temporal"] = _permutations(config, config.num_frames, config.merge_reversed)
    tasks: dict[str, Task] = {}
    if has_stills:
        tasks["spatial"] = SpatialTask(config, psi["spatial"], _images(images, config), device)
    if has_clips:
        tasks["temporal"] = TemporalTask(config, psi["temporal"], _clips(videos, config), device)
    return tasks


def _permutations(config: Config, num_pieces: int, merge_reversed: bool) -> np.ndarray:
    try:
        return maximally_different(
            num_pieces, config.num_permutations, config.permutation_seed, merge_reversed=merge_reversed
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _images(folder: str | Path | None, config: Config) -> StillImages:
    if folder is None:
        return embedded_scenes(config.num_scenes, config.image_size, config.scenes_seed)
    return image_folder(folder, config.image_size)


def _clips(folder: str | Path | None, config: Config) -> VideoClips:
    if folder is None:
        return embedded_clips(config.num_clips, config.clip_frames, config.frame_size, config.scenes_seed)
    return video_folder(folder, config.frame_size, config.clip_frames, min_frames=config.num_frames, split=config.split)
