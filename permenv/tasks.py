"""Ordering tasks: what a sample is, how it divides into pieces, which permutations there are (section 3.1).

A *sample* is a row of integers: the number of an image or clip, and for a clip the positions of its frames. So X_val is
small enough for a checkpoint, and samples can be drawn without reading pixels.

A task of your own subclasses `Task` and is made known by `register_task`; see `Task` for an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

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
from permenv.data import DataError, StillImages, VideoClips
from permenv.data.arrays import as_clips, as_images
from permenv.data.scenes import SMALLEST
from permenv.heads import OrderingHead, SpatialHead, TemporalHead
from permenv.permutations import maximally_different

_HELD_OUT_CLIPS = 1 / 5  # at most, of all: where clips are few, training needs them more than validation


class Data(Protocol):
    """What every data set has, whatever its items are."""

    @property
    def name(self) -> str:
        """What logs call the set."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content: equal fingerprints mean equal items in equal order."""

    def __len__(self) -> int: ...


class Task(ABC):
    """An ordering task: samples of its data are cut into pieces, and a network learns to recognise their permutation.

    A subclass defines the class attributes, `load`, `count_pieces`, `piece_shape` and `pieces`. By default any item of
    the data is a sample of its own, and the head is the paper's spatial one.

    Example:
        `tests/permenv/series_task.py` orders the segments of one-dimensional series:

        >>> permenv.register_task("series", SeriesTask)
        >>> env = gym.make("PermShuffle-v0", task="series", series=numbers)

    Attributes:
        name: Key of the task in `info`, in checkpoints, and in attributes by task such as `env.unwrapped.groups`.
        data_keyword: Keyword of `gym.make` that the data are passed by.
        preset_changes: By preset, the numbers of `Config` that this task changes.
        config: All numbers of the run.
        permutations: (|Ψ|, n) int64, Ψ.
        data: What samples are drawn from.
        device: Where pieces are returned.

    Args:
        config: All numbers of the run.
        permutations: (|Ψ|, n) int64, Ψ.
        data: What `load` returned.
        device: Where pieces are returned.

    Raises:
        DataError: If there are too few items.
    """

    name: ClassVar[str]
    data_keyword: ClassVar[str]
    preset_changes: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def __init__(self, config: Config, permutations: np.ndarray, data: Any, device: torch.device):
        self.config = config
        self.permutations = permutations
        self.data = data
        self.device = device
        self._check_size()

    # What a subclass defines

    @classmethod
    @abstractmethod
    def load(cls, given: Any, config: Config) -> Data:
        """Load the data.

        Args:
            given: Value of the keyword `data_keyword` of `gym.make`; None if it was not passed.
            config: All numbers of the run.

        Returns:
            What the task is made with as `data`, and what samples are drawn from.

        Raises:
            DataError: If the data cannot be used.
        """

    @classmethod
    @abstractmethod
    def count_pieces(cls, config: Config) -> int:
        """n, pieces of a sample."""

    @property
    @abstractmethod
    def piece_shape(self) -> tuple[int, ...]:
        """Shape of one piece as the trunk receives it, such as (3, h, w)."""

    @abstractmethod
    def pieces(
        self, samples: np.ndarray, orders: np.ndarray | None = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Cut samples into normalised pieces.

        Args:
            samples: (B, k) int.
            orders: (B, n) int: position k of sample b receives piece orders[b, k] (Eq. 1). None for the true order.
            rng: Source of the augmentation; None for none, as in validation.

        Returns:
            (B, n, *piece_shape) float32 on the device.
        """

    # What a subclass may replace

    def shard_of_pieces(
        self, rows: slice, samples: np.ndarray, orders: np.ndarray | None, rng: np.random.Generator | None
    ) -> Tensor:
        """Cut some of the samples into the pieces that `pieces` makes of them among all; by default it makes all.

        Args:
            rows: Which of the samples.
            samples: (B, k) int, see `pieces`.
            orders: (B, n) int, or None.
            rng: Source of the augmentation of all B samples, or None.

        Returns:
            (rows, n, *piece_shape) float32 on the device.
        """
        return self.pieces(samples, orders, rng)[rows]

    @classmethod
    def choose_permutations(cls, config: Config) -> np.ndarray:
        """Choose Ψ, (|Ψ|, n) int64.

        Raises:
            ValueError: If there are fewer than `num_permutations` permutations.
        """
        return maximally_different(cls.count_pieces(config), config.num_permutations, config.permutation_seed)

    def head(self, features: int) -> OrderingHead:
        """Make a head for pieces with this number of features."""
        config = self.config
        return SpatialHead(features, self.num_pieces, len(self.permutations), config.fc6, config.fc7)

    def hold_out(self, rng: np.random.Generator) -> np.ndarray:
        """Draw X_val: (V, k) int64 samples; by default `num_validation` different items."""
        return rng.choice(len(self.data), self.config.num_validation, replace=False)[:, None]

    def draw(self, among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw training samples, each item equally likely.

        Args:
            among: (N,) int, the items to draw from.
            count: B, number of samples.
            rng: Source of the draws.

        Returns:
            (B, k) int64.
        """
        return among[rng.integers(len(among), size=count)][:, None]

    @property
    def read_ahead(self) -> int:
        """How many mini-batches it is worth announcing; by default none."""
        return 0

    def announce(self, samples: np.ndarray) -> None:  # noqa: B027 - a task may have nothing to read
        """Begin to read samples (B, k) that `pieces` will be asked for. No result may depend on it."""

    def raw_pieces(self, samples: np.ndarray, orders: np.ndarray | None = None) -> np.ndarray:
        """Cut samples into pieces for pictures.

        Args:
            samples: (B, k) int.
            orders: (B, n) int; None for the true order.

        Returns:
            (B, n, h, w, 3) images, uint8 or in [0, 1], or (B, n, channels, length) numbers in [0, 1], which are drawn
            as lines. By default the pieces without augmentation, scaled by the range of their sample: images if their
            shape is (3, h, w) or (1, h, w), else lines.
        """
        pieces = self.pieces(samples, orders).cpu().numpy()
        low, high = (extreme(pieces, axis=tuple(range(1, pieces.ndim)), keepdims=True) for extreme in (np.min, np.max))
        scaled = (pieces - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
        if scaled.ndim == 5 and scaled.shape[2] in (1, 3):
            return np.broadcast_to(np.moveaxis(scaled, 2, -1), (*scaled.shape[:2], *scaled.shape[3:], 3))
        channels = scaled.shape[2] if scaled.ndim > 3 else 1
        return scaled.reshape(*scaled.shape[:2], channels, -1)

    def originals(self, samples: np.ndarray) -> np.ndarray:
        """Samples (B, k) before they are cut, for pictures; by default their pieces in the true order."""
        return self.raw_pieces(samples)

    @property
    def picture_columns(self) -> int:
        """Pieces in a row of a picture."""
        return (self.num_pieces + 1) // 2

    def are_samples(self, samples: np.ndarray) -> bool:
        """Whether (V, k) int64 from a checkpoint, of the shape that `hold_out` returns, are samples of the data.

        By default the first column must hold numbers of items.
        """
        return bool((samples[:, 0] >= 0).all() and (samples[:, 0] < len(self.data)).all())

    # What all tasks share

    @property
    def num_pieces(self) -> int:
        """n, pieces of a sample."""
        return self.permutations.shape[1]

    def true_orders(self, count: int) -> np.ndarray:
        """(count, n) int64, the identity for every sample."""
        return np.tile(np.arange(self.num_pieces), (count, 1))

    def trainable(self, held_out: np.ndarray) -> np.ndarray:
        """Items that occur in no sample (V, k) of X_val, ascending."""
        return np.setdiff1d(np.arange(len(self.data)), held_out[:, 0])

    def _check_size(self) -> None:
        if self.config.num_validation >= len(self.data):
            raise DataError(
                f"num_validation={self.config.num_validation}, but {self.data.name} has only {len(self.data)} items "
                f"and at least one must be left for training: lower num_validation or add data"
            )


class ImageTask(Task):
    """A task whose pieces are images: random crops, colour jitter and normalisation per piece (appendix B)."""

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """(3, piece_size, piece_size)."""
        return (3, self.config.piece_size, self.config.piece_size)

    def pieces(
        self, samples: np.ndarray, orders: np.ndarray | None = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Cut samples into pieces (B, n, 3, h, w), see `Task.pieces`; without augmentation from the centre."""
        return self._augmented(slice(None), samples, orders, rng)

    def shard_of_pieces(
        self, rows: slice, samples: np.ndarray, orders: np.ndarray | None, rng: np.random.Generator | None
    ) -> Tensor:
        """Cut some of the samples and leave the others alone, see `Task.shard_of_pieces`."""
        if type(self).pieces is not ImageTask.pieces:  # a subclass makes pieces of its own
            return super().shard_of_pieces(rows, samples, orders, rng)
        return self._augmented(rows, samples, orders, rng)

    def raw_pieces(self, samples: np.ndarray, orders: np.ndarray | None = None) -> np.ndarray:
        """Cut the centre crops (B, n, h, w, 3) uint8, see `Task.raw_pieces`."""
        return self._cut(samples, self._or_true(samples, orders), self._centre(len(samples))).cpu().numpy()

    def _augmented(
        self, rows: slice, samples: np.ndarray, orders: np.ndarray | None, rng: np.random.Generator | None
    ) -> Tensor:
        """The pieces of some of the samples; the augmentation is drawn for all."""
        orders = self._or_true(samples, orders)
        if rng is None:
            return normalise(self._cut(samples[rows], orders[rows], self._centre(len(samples))[rows]))
        offsets = self._random_offsets(len(samples), rng)
        jitter = ColourJitter(self.config.jitter, self.config.grey_probability)
        colours = jitter_parameters(rng, len(samples), self.num_pieces, jitter)
        return normalise(self._cut(samples[rows], orders[rows], offsets[rows]), colours[rows])

    def _or_true(self, samples: np.ndarray, orders: np.ndarray | None) -> np.ndarray:
        return self.true_orders(len(samples)) if orders is None else orders

    def _centre(self, count: int) -> np.ndarray:
        return centre_offsets(count, self.num_pieces, self._slack)

    def _random_offsets(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Crop positions in training, (B, n, 2)."""
        return random_offsets(rng, count, self.num_pieces, self._slack)

    @property
    @abstractmethod
    def _slack(self) -> int:
        """Pixels by which the image that a piece is cropped from is larger than the piece."""

    @abstractmethod
    def _cut(self, samples: np.ndarray, orders: np.ndarray, offsets: np.ndarray) -> Tensor:
        """Pieces (B, n, h, w, 3) uint8 of samples (B, k) in the orders (B, n), cropped at offsets (B, n, 2)."""


def _require_scenes(given: Any, size: int, setting: str) -> None:
    """Refuse embedded scenes that are too small to be rendered."""
    if given is None and size < SMALLEST:
        raise ConfigurationError(
            f"{setting}: embedded scenes would have {size} pixels a side; raise it until they have {SMALLEST}, or pass "
            f"data of your own"
        )


class SpatialTask(ImageTask):
    """Order the tiles of an image. A sample is [image].

    Args:
        config: All numbers of the run.
        permutations: (|Ψ|, n) int64, Ψ.
        data: X, of `config.image_size`; moved to the device if it fits.
        device: Where pieces are returned.

    Raises:
        DataError: If there are too few images.
    """

    name = "spatial"
    data_keyword = "images"
    data: StillImages

    def __init__(self, config: Config, permutations: np.ndarray, data: StillImages, device: torch.device):
        super().__init__(config, permutations, data, device)
        self.data = data.to(device)

    @classmethod
    def load(cls, given: Any, config: Config) -> StillImages:
        """Load images: a folder, arrays, a dataset or `StillImages`; the embedded scenes for None."""
        _require_scenes(given, config.image_size, f"cell_size={config.cell_size}")
        return as_images(given, config.image_size, num_scenes=config.num_scenes, scenes_seed=config.scenes_seed)

    @classmethod
    def count_pieces(cls, config: Config) -> int:
        """Number of tiles."""
        return config.num_tiles

    def are_samples(self, samples: np.ndarray) -> bool:
        """Whether they are different images, see `Task.are_samples`."""
        return super().are_samples(samples) and len(np.unique(samples)) == len(samples)

    @property
    def read_ahead(self) -> int:
        """See `Task.read_ahead`: some where images must be decoded."""
        return self.data.read_ahead

    def announce(self, samples: np.ndarray) -> None:
        """See `Task.announce`."""
        self.data.announce(samples[:, 0], self.device)

    def originals(self, samples: np.ndarray) -> np.ndarray:
        """Images (B, S, S, 3) uint8."""
        return self._images(samples).cpu().numpy()

    @property
    def picture_columns(self) -> int:
        """Tiles in a row of the image."""
        return self.config.grid

    @property
    def _slack(self) -> int:
        return self.config.cell_size - self.config.piece_size

    def _images(self, samples: np.ndarray) -> Tensor:
        return self.data.take(samples[:, 0], self.device)

    def _cut(self, samples: np.ndarray, orders: np.ndarray, offsets: np.ndarray) -> Tensor:
        return cut_tiles(self._images(samples), orders, offsets, self.config.grid, self.config.piece_size)


class TemporalTask(ImageTask):
    """Order frames of a clip. A sample is [clip, position of the first frame, ..., of the last].

    The frames of a sample are `num_frames` different frames of its clip, every set equally likely, in temporal order;
    with `merge_reversed` half of the samples are in the reverse order.

    Args:
        config: All numbers of the run.
        permutations: (|Ψ|, n) int64, Ψ.
        data: X, of `config.frame_size`, each clip of at least `num_frames` frames; moved to the device if it fits.
        device: Where pieces are returned.

    Raises:
        DataError: If there are fewer than two clips, or one is too short.
    """

    name = "temporal"
    data_keyword = "videos"
    preset_changes = MappingProxyType({"nano": {"learning_rate": 0.1}, "tiny": {"learning_rate": 0.1}})
    data: VideoClips

    def __init__(self, config: Config, permutations: np.ndarray, data: VideoClips, device: torch.device):
        super().__init__(config, permutations, data, device)
        self.data = data.to(device)

    @classmethod
    def load(cls, given: Any, config: Config) -> VideoClips:
        """Load videos: a folder, arrays, a dataset or `VideoClips`; the embedded clips for None."""
        _require_scenes(given, config.frame_size, f"piece_size={config.piece_size}")
        return as_clips(
            given,
            config.frame_size,
            config.clip_frames,
            min_frames=config.num_frames,
            split=config.split,
            num_clips=config.num_clips,
            scenes_seed=config.scenes_seed,
        )

    @classmethod
    def count_pieces(cls, config: Config) -> int:
        """Number of frames."""
        return config.num_frames

    @classmethod
    def choose_permutations(cls, config: Config) -> np.ndarray:
        """Choose Ψ, see `Task.choose_permutations`; with `merge_reversed` without reverses."""
        count, seed = config.num_permutations, config.permutation_seed
        return maximally_different(config.num_frames, count, seed, merge_reversed=config.merge_reversed)

    def head(self, features: int) -> TemporalHead:
        """Make a head for frames with this number of pool5 features."""
        config = self.config
        return TemporalHead(features, len(self.permutations), config.temporal_fc6, config.lstm, config.relative_frames)

    def hold_out(self, rng: np.random.Generator) -> np.ndarray:
        """Draw X_val: (V, 1 + n) int64, `num_validation` samples, spread evenly over the clips that are held out.

        These are at most a fifth of the clips, but at least one.
        """
        clips = rng.choice(len(self.data), self._num_held_out, replace=False)
        return self._with_positions(np.resize(clips, self.config.num_validation), rng)

    def draw(self, among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw training samples (B, 1 + n), see `Task.draw`."""
        return self._with_positions(among[rng.integers(len(among), size=count)], rng)

    def are_samples(self, samples: np.ndarray) -> bool:
        """Whether they are different frames of as many clips as are held out, in the order of time.

        See `Task.are_samples`; with `merge_reversed` the order may be reversed.
        """
        if not super().are_samples(samples):
            return False
        clips, positions = samples[:, 0], samples[:, 1:]
        steps = np.diff(positions, axis=1)
        ordered = (steps > 0).all(axis=1) | ((steps < 0).all(axis=1) & self.config.merge_reversed)
        inside = (positions >= 0) & (positions < self.data.lengths[clips][:, None])
        return bool(ordered.all() and inside.all()) and len(np.unique(clips)) == self._num_held_out

    def originals(self, samples: np.ndarray) -> np.ndarray:
        """Frames (B, n, S, S, 3) uint8, in the order of the sample."""
        return self._frames(samples, samples[:, 1:]).cpu().numpy()

    @property
    def _num_held_out(self) -> int:
        """Clips of X_val."""
        return min(self.config.num_validation, max(1, int(len(self.data) * _HELD_OUT_CLIPS)))

    @property
    def _slack(self) -> int:
        return self.config.frame_size - self.config.piece_size

    def _frames(self, samples: np.ndarray, positions: np.ndarray) -> Tensor:
        return self.data.take(samples[:, 0], positions, self.device)

    def _cut(self, samples: np.ndarray, orders: np.ndarray, offsets: np.ndarray) -> Tensor:
        positions = np.take_along_axis(samples[:, 1:], orders, axis=1)
        return crop_frames(self._frames(samples, positions), offsets, self.config.piece_size)

    def _random_offsets(self, count: int, rng: np.random.Generator) -> np.ndarray:
        if self.config.shared_crop:
            return random_offsets(rng, count, 1, self._slack).repeat(self.num_pieces, axis=1)
        return super()._random_offsets(count, rng)

    def _with_positions(self, clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the frames of samples from the clips (B,): (B, 1 + n)."""
        lengths = self.data.lengths[clips]
        # the n frames with the smallest of random keys are a random set of n
        keys = rng.random((len(clips), lengths.max()))
        keys[np.arange(lengths.max()) >= lengths[:, None]] = np.inf
        positions = np.sort(np.argpartition(keys, self.num_pieces - 1, axis=1)[:, : self.num_pieces], axis=1)
        if self.config.merge_reversed:
            backwards = rng.random(len(clips)) < 0.5
            positions[backwards] = positions[backwards, ::-1]
        return np.concatenate([clips[:, None], positions], axis=1)

    def _check_size(self) -> None:
        clips, config = self.data, self.config
        if len(clips) < 2:
            raise DataError(
                f"{clips.name} has {len(clips)} clip, but one is held out for validation and at least one must be left "
                f"for training: add clips"
            )
        if clips.lengths.min() < config.num_frames:
            short = int(clips.lengths.argmin())
            raise DataError(
                f"clip {clips.names[short]} has {clips.lengths[short]} frames, a sample needs "
                f"num_frames={config.num_frames}: lower num_frames or leave the clip out"
            )
