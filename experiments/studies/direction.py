"""How many of the temporal task's errors take a clip for one that is played backwards.

    python experiments/studies/direction.py
    python experiments/studies/direction.py --videos path/to/videos

Played backwards, a clip may look as likely as forwards: then a permutation and its reverse (`reverse_of`) cannot be
told apart. Three networks are trained with random permutations:

- "default": the preset's Ψ, which may or may not contain a permutation's reverse;
- "pairs": a Ψ of as many permutations that contains the reverse of each, so that the confusion can show;
- "merged": half of these, one of each pair, and clips played in either direction (`merge_reversed=True`).

Reported of each: E, the share of the errors that name the reverse (by chance it would be 1 / (|Ψ| - 1)), and E where
the reverse counts as right. Writes JSON and prints the table.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

import permenv
from experiments.common.options import EnvOptions, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish, with_sd
from experiments.common.reports.statistics import mean_and_sd
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from experiments.studies.shared import train
from permenv import Pretraining
from permenv.device import resolve_device
from permenv.permutations import maximally_different, reverse_of
from permenv.tasks import TemporalTask
from permenv.validation import all_permutation_logits

Variant = Literal["default", "pairs", "merged"]
_VARIANTS: tuple[Variant, ...] = ("default", "pairs", "merged")


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The study's options."""

    task: tyro.conf.Suppress[str] = "temporal"
    out: Path | None = None
    """JSON file; experiments/results/direction-DATA.json if not given."""

    @property
    def file(self) -> Path:
        """The JSON file."""
        return self.out or Path("experiments/results") / f"direction-{'videos' if self.videos else 'scenes'}.json"


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write."""
    found = over_seeds(_measure, {variant: {"variant": variant} for variant in _VARIANTS}, config)
    report = heading(config)
    for variant, rows in found.items():
        report[variant] = {name: mean_and_sd([row[name] for row in rows]) for name in rows[0]}
    publish(report, in_words(report), config.file)
    return report


def _measure(variant: Variant, seed: int, environment: EnvOptions) -> dict[str, float]:
    """Train one network and count its errors."""
    numbers, permutations = choose_permutations(variant, environment.env)
    device = resolve_device(environment.device)
    task = TemporalTask(numbers, permutations, TemporalTask.load(environment.videos, numbers), device)
    run = Pretraining(numbers, {"temporal": task}, device, seed=seed)
    if not train(run, itertools.repeat(None, numbers.total_iterations)):
        raise RuntimeError(f"seed {seed} diverged: lower the learning rate")
    pieces = task.pieces(run.held_out["temporal"])
    blocks = list(all_permutation_logits(run.trainer.eval_network, "temporal", pieces, permutations))
    named = torch.cat([logits.argmax(1) for logits, _ in blocks]).cpu().numpy()
    true = torch.cat([labels for _, labels in blocks]).cpu().numpy()
    reverses = places_of(reverse_of(permutations), permutations)
    wrong, reversed_ = named != true, named == reverses[true]
    possible = wrong & (reverses[true] >= 0)  # errors that could have named the reverse
    return {
        "permutations": len(permutations),
        "permutations whose reverse is in Ψ": float((reverses >= 0).mean()),
        "E": float(wrong.mean()),
        "share of errors that name the reverse": float(reversed_[possible].mean()) if possible.any() else 0.0,
        "that share by chance": 1 / (len(permutations) - 1),
        "E where the reverse counts as right": float((wrong & ~reversed_).mean()),
    }


def choose_permutations(variant: Variant, numbers: permenv.Config) -> tuple[permenv.Config, np.ndarray]:
    """Choose the permutations of a variant.

    Args:
        variant: Its name.
        numbers: Those of the preset.

    Returns:
        The numbers of the variant, and its Ψ, (|Ψ|, n) int64.
    """
    if variant == "default":
        return numbers, TemporalTask.choose_permutations(numbers)
    count = numbers.num_permutations // 2
    half = maximally_different(numbers.num_frames, count, numbers.permutation_seed, merge_reversed=True)
    if variant == "pairs":
        return numbers, np.concatenate([half, reverse_of(half)])
    return dataclasses.replace(numbers, num_permutations=count, merge_reversed=True), half


def places_of(sought: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Return at which row of Ψ (|Ψ|, n) each of the sought permutations (N, n) is, (N,); -1 if it is at none."""
    equal = (permutations[None, :, :] == sought[:, None, :]).all(axis=2)  # [N, |Ψ|]
    return np.where(equal.any(axis=1), equal.argmax(axis=1), -1)


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    lines = [f"{heading_in_words(report)} (mean ± sd)"]
    for variant in _VARIANTS:
        lines += ["", f"{variant}:"]
        lines += [f"  {name:<44} {with_sd(metric, 4)}" for name, metric in report[variant].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
