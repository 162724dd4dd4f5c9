"""Every number of a run in one dataclass, and the two presets: `tiny` for a laptop, `paper` for the paper."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from permenv.networks import BACKBONES, Backbone

TASKS = ("spatial",)
PRECISIONS = ("auto", "float32", "bf16")


class ConfigurationError(ValueError):
    """A setting that cannot be run; the message names its value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The numbers of one run. Defaults are the paper's; sections and appendices are named where it gives them.

    Attributes:
        num_permutations: |Ψ| (section 4.1), 2 to n!.
        permutation_seed: Draws Ψ; apart from the run's seed, so that runs share their set.
        num_groups: |C|, groups of permutations an action chooses from (section 4.1, appendix D).
        num_validation: |X_val|, samples held out of training (section 4.1, appendix C).
        batch_size: B, samples of one SGD iteration (appendix B).
        samples_per_action: m, samples of a mini-batch that one action decides; divides `batch_size`. m = B is
            Algorithm 1 to the letter, m = 1 section 3.2's tuple (x, ψ).
        iterations_per_update: SGD iterations that an update's reward judges (Algorithm 1: K actions at m = B).
        free_iterations: SGD iterations before each update during which actions train the network but are not
            credited (section 3.2: "between two steps t and t+1 solely the self-supervised network is trained").
        total_updates: T, updates of the policy in a run; the episode is truncated after them (appendix H).
        learning_rate: Of SGD (appendix B).
        learning_rate_drop: Iteration from which the learning rate is a tenth (appendix B); None for never.
        momentum: Of SGD. The paper is silent; 0.9 is the jigsaw solver's.
        weight_decay: Of SGD. The paper is silent; 5e-4 is the jigsaw solver's.
        grid: m of the m × m tiles (section 3.1); n = m² pieces.
        cell_size: Pixels of a side of the cell a piece is cropped from; an image has grid · cell_size.
        piece_size: Pixels of a side of a piece (appendix B), at most `cell_size`.
        jitter: Strength of the colour jitter, 0 to 1 (appendix B gives none).
        grey_probability: Chance that a training sample is grey, 0 to 1.
        backbone: Name in `permenv.networks.BACKBONES`, or a function without arguments that returns a new trunk
            for pieces (N, 3, piece_size, piece_size); at module level, or the environment does not pickle.
        fc6: Width of fc6 (appendix B).
        fc7: Width of fc7 (appendix B).
        ema_decay: Share of the averaged weights that an iteration keeps; validation then looks at the averaged
            weights, batch statistics included. 0 validates the live weights, as the paper does. 0 to below 1. The
            tiny preset has 0.97: in `experiments/defaults.py` it lowered E from 0.65 to 0.54, and the reward's noise
            from 0.045 to 0.017; 0.99 lowered it to 0.010, but shows only 1 - 0.99^50 = 39% of what an update of 50
            iterations changed, 0.97 shows 78%.
        precision: "float32", "bf16" (autocast of the training iteration; weights and validation stay float32) or
            "auto": bf16 where the device multiplies it natively, which is where the benchmark shows a gain.
        num_scenes: Images rendered where no folder is given.
        scenes_seed: Which ones.
    """

    num_permutations: int = 1000
    permutation_seed: int = 0
    num_groups: int = 10
    num_validation: int = 100
    batch_size: int = 128
    samples_per_action: int = 1
    iterations_per_update: int = 100
    free_iterations: int = 3788
    total_updates: int = 90
    learning_rate: float = 1e-3
    learning_rate_drop: int | None = 200_000
    momentum: float = 0.9
    weight_decay: float = 5e-4
    grid: int = 3
    cell_size: int = 85
    piece_size: int = 75
    jitter: float = 0.4
    grey_probability: float = 0.3
    backbone: str | Backbone = "caffenet"
    fc6: int = 1024
    fc7: int = 4096
    ema_decay: float = 0.0
    precision: str = "auto"
    num_scenes: int = 20_000
    scenes_seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            ConfigurationError: If a number is out of its range or does not fit another.
        """
        for field in dataclasses.fields(self):
            kind, value = _NUMBERS.get(str(field.type)), getattr(self, field.name)
            if kind and (isinstance(value, bool) or not isinstance(value, kind)):
                raise ConfigurationError(f"{field.name}={value!r}: must be a number of type {field.type}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise ConfigurationError(f"{name}={value}: must be at least {least}")
        for name in ("jitter", "grey_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name}={getattr(self, name)}: must lie in [0, 1]")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)}: must lie in [0, 1)")
        if self.num_permutations > math.factorial(self.num_pieces):
            raise ConfigurationError(
                f"num_permutations={self.num_permutations}: {self.num_pieces} pieces have only "
                f"{math.factorial(self.num_pieces)} permutations; ask for at most that many"
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
        if isinstance(self.backbone, str) and self.backbone not in BACKBONES:
            raise ConfigurationError(
                f"unknown backbone {self.backbone!r}; choose one of {', '.join(BACKBONES)} or pass a function"
            )
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision={self.precision!r}: choose one of {', '.join(PRECISIONS)}")

    @property
    def num_pieces(self) -> int:
        """n, pieces of a sample."""
        return self.grid**2

    @property
    def image_size(self) -> int:
        """Pixels of an image's side."""
        return self.grid * self.cell_size

    @property
    def actions_per_iteration(self) -> int:
        """B / m, actions that fill one mini-batch."""
        return self.batch_size // self.samples_per_action

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values; a backbone given as a function by its qualified name."""
        values = dataclasses.asdict(self)
        if not isinstance(self.backbone, str):
            name = getattr(self.backbone, "__qualname__", type(self.backbone).__qualname__)
            values["backbone"] = f"{self.backbone.__module__}.{name}"
        return values


_NUMBERS: Mapping[str, type | tuple[type, ...]] = {
    "int": numbers.Integral,
    "float": numbers.Real,
    "int | None": (numbers.Integral, type(None)),
}
_LEAST: Mapping[str, float] = {
    "num_permutations": 2,
    "num_groups": 1,
    "num_validation": 1,
    "batch_size": 1,
    "samples_per_action": 1,
    "iterations_per_update": 1,
    "free_iterations": 0,
    "total_updates": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "grid": 2,
    "piece_size": 1,
    "fc6": 1,
    "fc7": 1,
    "num_scenes": 1,
    "scenes_seed": 0,
}

PRESETS: Mapping[str, Config] = {
    "tiny": Config(
        num_permutations=100,
        batch_size=64,
        samples_per_action=1,
        iterations_per_update=50,
        free_iterations=0,
        total_updates=30,
        learning_rate=0.03,
        learning_rate_drop=None,
        cell_size=36,
        piece_size=32,
        backbone="quarter-caffenet",
        fc6=128,
        fc7=512,
        ema_decay=0.97,
        num_scenes=2000,
    ),
    "paper": Config(),
}


def make_config(preset: str, **overrides: Any) -> Config:
    """Take a preset and change some of its numbers.

    Args:
        preset: A name in `PRESETS`.
        **overrides: Fields of `Config` with their new values.

    Returns:
        The checked configuration.

    Raises:
        ConfigurationError: If the preset or a keyword is unknown, or a value is out of range.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    names = [field.name for field in dataclasses.fields(Config)]
    for name in overrides:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keywords are {', '.join(names)}"
            raise ConfigurationError(f"unknown keyword {name!r}; {hint}")
    return dataclasses.replace(PRESETS[preset], **overrides)
