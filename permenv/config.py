"""Every number of a run in one dataclass, and the presets.

`nano` is for RL research: an episode takes half a minute of one CPU core. `tiny` is for a laptop, `paper` has the
paper's numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from torch import nn

Backbone = Callable[[], nn.Module]
Precision = Literal["auto", "float32", "bf16"]


class ConfigurationError(ValueError):
    """A setting that cannot be run; the message names its value and the remedy."""


class Range(NamedTuple):
    """Bounds of a number.

    Attributes:
        least: Smallest value allowed.
        most: Largest value allowed.
        below: Upper bound that the value must not reach.
    """

    least: float
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.least <= value <= self.most and value < self.below

    def __str__(self) -> str:
        last = self.most if self.below == math.inf else self.below - 1
        if _LARGEST <= last < math.inf:
            return f"must be at least {self.least} and below 2^{int(last).bit_length()}"
        if self.below < math.inf:
            return f"must lie in [{self.least}, {self.below})"
        return f"must be at least {self.least}" if self.most == math.inf else f"must lie in [{self.least}, {self.most}]"


_LARGEST = 2**63 - 1  # of an int64, which counts and sizes end up in; seeds may be longer
_Share = Annotated[float, Range(0, 1)]
_Decay = Annotated[float, Range(0, below=1)]
_Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The numbers of one run. Defaults are the paper's; sections and appendices are named where it gives them.

    Attributes:
        num_permutations: |Ψ| (section 4.1), of each task; 2 to n!, by the task with fewer pieces.
        permutation_seed: Draws Ψ; apart from the run's seed, so that runs share their set.
        num_groups: |C|, groups of permutations an action chooses from (section 4.1, appendix D).
        num_validation: |X_val|, samples held out of training (section 4.1, appendix C). Of videos, at most a fifth of
            the clips is held out, but at least one: where that is fewer clips than samples, a clip gives several, each
            of random frames.
        batch_size: B, samples of one SGD iteration, of each task (appendix B).
        samples_per_action: m, samples of a mini-batch that one action decides; divides `batch_size`. m = B is
            exactly Algorithm 1, m = 1 section 3.2's tuple (x, ψ).
        iterations_per_update: SGD iterations of an update; the reward is given after the last of them (Algorithm 1: K
            actions at m = B).
        free_iterations: SGD iterations before each update during which actions train the network but are not
            credited (section 3.2: "between two steps t and t+1 solely the self-supervised network is trained"). The
            line that the reward extrapolates then goes through the errors before and after them, so that after many
            of them the reward is nearly the plain reduction of the error.
        total_updates: T, updates of the policy in a run; the episode is truncated after them (appendix H). At most
            20,000: a checkpoint holds a record of each validation.
        learning_rate: Of SGD (appendix B). In the nano and tiny presets 0.02 and 0.03 for the spatial task, 0.1 for the
            temporal one and for both together.
        learning_rate_drop: Iteration from which the learning rate is a tenth (appendix B); None for never.
        momentum: Of SGD. Not given in the paper; 0.9 is the jigsaw solver's.
        weight_decay: Of SGD. Not given in the paper; 5e-4 is the jigsaw solver's.
        grid: m of the m × m tiles of an image (section 3.1); n = m² pieces.
        num_frames: u, frames of a sample of the temporal task (section 4.1), at random from a clip; n = u pieces.
        merge_reversed: Whether a clip played backwards counts as the same clip. Clips are then played in either
            direction at random, and Ψ holds at most one of a permutation and its reverse. The paper does not do this.
        cell_size: Pixels of a side of the cell a tile is cropped from; an image has grid · cell_size.
        piece_size: Pixels of a side of a piece (appendix B), tile or frame alike, at most `cell_size`. A frame's is
            cropped from 256 / 224 as many: appendix B gives the crop, 224 pixels, and the usual frame has 256. Of the
            frame this is the centre square, while the paper says nothing of a square.
        shared_crop: Whether all frames of a sample are cropped at the same place, and not each at its own (appendix B).
            At 32 pixels the random places move a frame further than most motion does: E is 0.36 with a shared place and
            0.59 without after 1000 iterations (`experiments/studies/temporal.py`).
        jitter: Strength of the colour jitter, 0 to 1 (appendix B gives none). Normalising every channel of a piece
            takes most of it back, see `permenv.augment.ColourJitter`.
        grey_probability: Chance that a training sample is grey, 0 to 1.
        backbone: Name in `permenv.networks.BACKBONES`; "timm/NAME", a model of timm with random weights and no
            dropout (the extra `permenv[timm]`); or a function without arguments that returns a new trunk for pieces
            (N, *piece_shape). Define it at module level, or the environment does not pickle. Forks and averaged weights
            copy the trunk with `copy.deepcopy`.
        fc6: Width of the spatial head's fc6 (appendix B).
        fc7: Width of the spatial head's fc7 (appendix B).
        temporal_fc6: Width of the temporal head's fc6 (appendix B).
        lstm: Hidden units of the temporal head's recurrent layer (appendix B).
        relative_frames: Whether the temporal head sees a frame's features relative to those of the sample's other
            frames: each feature with mean 0 and deviation 1 over them. They hold what moves and little else, whatever
            the order. Not the paper's; in the tiny preset E is 0.36 with it and 0.69 without after 1000 iterations
            (`experiments/studies/temporal.py`).
        ema_decay: Share of the averaged weights that an iteration keeps; validation then looks at the averaged
            weights, batch statistics included. 0 validates the live weights, as the paper does. 0 to below 1. The
            tiny preset has 0.97: in `experiments/studies/defaults.py` it lowered E from 0.68 to 0.55, and the standard
            deviation of the rewards over the second half of a run from 0.092 to 0.016; 0.99 lowered it to 0.008, but
            shows only 1 - 0.99^50 = 39% of what an update of 50 iterations changed, 0.97 shows 78%.
        precision: "float32", "bf16" (autocast of the training iteration; weights and validation stay float32) or
            "auto": bf16 where the device multiplies it natively, which is where the benchmark shows a gain.
        clip_frames: Frames kept of a clip, evenly spread over it; a shorter clip keeps all.
        split: Official split of the videos, from the lists that lie beside them: training sees its training list alone.
            None takes the first where there are lists; 0 takes all clips, whatever lists there are.
        num_scenes: Images rendered where no folder is given.
        num_clips: Clips rendered where no folder is given.
        scenes_seed: Seed of the rendered images and clips.
    """

    num_permutations: Annotated[int, Range(2)] = 1000
    permutation_seed: Annotated[int, Range(0)] = 0
    num_groups: _Count = 10
    num_validation: _Count = 100
    batch_size: _Count = 128
    samples_per_action: _Count = 1
    iterations_per_update: _Count = 100
    free_iterations: Annotated[int, Range(0)] = 3788
    total_updates: Annotated[int, Range(1, 20_000)] = 90
    learning_rate: Annotated[float, Range(0)] = 1e-3
    learning_rate_drop: Annotated[int | None, Range(0)] = 200_000
    momentum: _Decay = 0.9
    weight_decay: Annotated[float, Range(0)] = 5e-4
    grid: Annotated[int, Range(2, 15)] = 3
    num_frames: Annotated[int, Range(2, 255)] = 8
    merge_reversed: bool = False
    cell_size: int = 85
    piece_size: _Count = 75
    shared_crop: bool = False
    jitter: _Share = 0.4
    grey_probability: _Share = 0.3
    backbone: str | Backbone = "caffenet"
    fc6: _Count = 1024
    fc7: _Count = 4096
    temporal_fc6: _Count = 512
    lstm: _Count = 256
    relative_frames: bool = False
    ema_decay: _Decay = 0.0
    precision: Precision = "auto"
    clip_frames: int = 64
    split: Annotated[int | None, Range(0)] = None
    num_scenes: _Count = 20_000
    num_clips: Annotated[int, Range(2)] = 2000
    scenes_seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            ConfigurationError: If a number is out of its range or does not fit another.
        """
        for name, hint in _hints().items():  # numpy's numbers become Python's, which JSON can hold
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        if self.clip_frames < self.num_frames:
            raise ConfigurationError(
                f"clip_frames={self.clip_frames} is fewer than num_frames={self.num_frames}: a sample's frames are "
                f"drawn from those that are kept of a clip; keep at least that many"
            )
        if self.num_groups > self.num_permutations:
            raise ConfigurationError(
                f"num_groups={self.num_groups} is more than num_permutations={self.num_permutations}: "
                f"use at most one group a permutation"
            )
        if self.batch_size % self.samples_per_action:
            raise ConfigurationError(
                f"batch_size={self.batch_size} is not divisible by samples_per_action={self.samples_per_action}: "
                f"an action decides a whole part of a mini-batch; choose a divisor of {self.batch_size}"
            )
        if self.piece_size > self.cell_size:
            raise ConfigurationError(
                f"piece_size={self.piece_size} is larger than cell_size={self.cell_size}: a piece is cropped from "
                f"its cell; lower piece_size or raise cell_size"
            )

    @property
    def num_tiles(self) -> int:
        """n, pieces of a sample of the spatial task."""
        return self.grid**2

    @property
    def image_size(self) -> int:
        """Pixels of an image's side."""
        return self.grid * self.cell_size

    @property
    def frame_size(self) -> int:
        """Pixels of a frame's side."""
        return round(self.piece_size * 256 / 224)

    @property
    def actions_per_iteration(self) -> int:
        """B / m, actions that fill one mini-batch."""
        return self.batch_size // self.samples_per_action

    @property
    def phases_per_update(self) -> int:
        """Phases that end with a validation: 2, free iterations and the update after them, or the update alone, 1."""
        return 2 if self.free_iterations else 1

    @property
    def iterations_per_cycle(self) -> int:
        """SGD iterations of an update and of the free iterations before it."""
        return self.free_iterations + self.iterations_per_update

    @property
    def total_iterations(self) -> int:
        """SGD iterations of a run."""
        return self.total_updates * self.iterations_per_cycle

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values; a backbone given as a function by its qualified name and bound arguments."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not isinstance(self.backbone, str):
            values["backbone"] = _qualified_name(self.backbone)
        return values


def _qualified_name(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        bound = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        addresses = r" at 0x[0-9a-fA-F]+"  # in what functions and objects are represented by; other in each process
        return re.sub(addresses, "", f"{_qualified_name(function.func)}({', '.join(bound)})")
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


_NUMBERS: Mapping[Any, tuple[type, ...]] = {
    int: (numbers.Integral,),
    float: (numbers.Real,),
    int | None: (numbers.Integral, type(None)),
}


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Config, include_extras=True)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its field's type; raise a ConfigurationError if it has another type or is out of range."""
    bounds: Range | None = None
    if typing.get_origin(hint) is Annotated:
        hint, bounds = typing.get_args(hint)
    if hint is bool and not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r}: must be True or False")
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise ConfigurationError(f"{name}={value!r}: choose one of {', '.join(typing.get_args(hint))}")
    kinds = _NUMBERS.get(hint)
    if kinds and (isinstance(value, bool) or not isinstance(value, kinds)):
        shown = hint.__name__ if isinstance(hint, type) else hint
        raise ConfigurationError(f"{name}={value!r}: must be a number of type {shown}")
    if name == "backbone" and not (isinstance(value, str) or callable(value)):
        raise ConfigurationError(
            f"backbone={value!r}: must be a name such as 'caffenet' or 'timm/NAME', or a function that returns a trunk"
        )
    if kinds and isinstance(value, int) and abs(value) > _LARGEST and not name.endswith("seed"):
        raise ConfigurationError(f"{name} is a number of {len(str(abs(value)))} digits: must be at most {_LARGEST}")
    if kinds and value is not None:
        value = float(value) if hint is float else int(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{name}={value}: must be finite")
    if bounds is not None and value is not None and value not in bounds:
        raise ConfigurationError(f"{name}={value}: {bounds}")
    return value


_TINY = Config(
    num_permutations=100,
    batch_size=64,
    iterations_per_update=50,
    free_iterations=0,
    total_updates=30,
    learning_rate=0.03,
    learning_rate_drop=None,
    cell_size=36,
    piece_size=32,
    shared_crop=True,
    backbone="quarter-caffenet",
    fc6=128,
    fc7=512,
    temporal_fc6=256,
    relative_frames=True,
    ema_decay=0.97,
    clip_frames=32,
    num_scenes=2000,
    num_clips=400,
)
_NANO = dataclasses.replace(
    _TINY,
    num_permutations=500,
    num_validation=40,
    batch_size=32,
    iterations_per_update=100,
    learning_rate=0.02,
    cell_size=18,
    piece_size=16,
    backbone="two-convolutions",
    fc6=48,
    fc7=192,
    temporal_fc6=48,
    lstm=96,
    ema_decay=0.99,
)

PRESETS: Mapping[str, Config] = {"nano": _NANO, "tiny": _TINY, "paper": Config()}
