"""How fast it is, as ratios measured in one run: `python experiments/benchmark.py`.

- validation: all |Ψ| × |X_val| scores, exactly, against running the whole network on permuted pixels, at the paper's
  sizes. The naive time is extrapolated from a part of the pairs.
- step: images a second of a training iteration against the usual plain loop over the nine tiles, same network.
- env: seconds of an iteration through `gym.make(...).step`, its validations included, against the bare training loop,
  which never validates.

Prints tables, and writes the figures with the machine's description as JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn

import permenv
from experiments import runs
from permenv import PermShuffleEnv, make_config
from permenv.augment import centre_offsets, cut_tiles, normalise
from permenv.networks import OrderingNetwork, SpatialHead, evaluating
from permenv.permutations import maximally_different
from permenv.training import Trainer, resolve_device, resolve_precision


@dataclass(frozen=True)
class Config:
    """The benchmark's options."""

    which: tuple[Literal["validation", "step", "env"], ...] = ("validation", "step", "env")
    """What to measure."""
    device: str = "auto"
    """auto, cpu or cuda."""
    naive_pairs: int = 384
    """Pairs of permutation and sample that the naive validation is timed on; the rest is extrapolated."""
    repeats: int = 5
    """Timed repetitions; the median counts."""
    batch_size: int | None = None
    """Images of a training step at the paper's sizes; the paper's 128 on a GPU, 32 on a CPU."""
    blocks: int = 24
    """Blocks of iterations, alternately through the environment and bare; the medians count."""
    preset_of_env: str = "tiny"
    """Preset of the env measurement."""
    out: Path | None = None
    """JSON file; experiments/results/benchmark-DEVICE.json if not given."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Returns:
        What the JSON file holds.
    """
    device = resolve_device(config.device)
    measure = {"validation": validation, "step": step, "env": env_overhead}
    report: dict[str, Any] = {"machine": runs.machine(device)}
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for name in config.which:
        report[name] = measure[name](config, device)
    out = config.out or Path("experiments/results") / f"benchmark-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(out, report)
    print(f"written to {out}")
    return report


def validation(config: Config, device: torch.device) -> dict[str, Any]:
    """Exact against naive validation at the paper's sizes."""
    paper = make_config("paper")
    permutations = maximally_different(paper.num_pieces, paper.num_permutations)
    trainer = Trainer(paper, permutations, device, seed=0)
    images = _random_images(paper.num_validation, paper.image_size, device)
    pieces = trainer.validation_pieces(images)
    exact = _seconds(lambda: trainer.validate(pieces), device, repeats=max(1, config.repeats // 2), warm_up=1)

    pairs = list(itertools.islice(itertools.product(range(paper.num_validation), permutations), config.naive_pairs))
    samples = np.array([sample for sample, _ in pairs])
    orders = np.stack([order for _, order in pairs])

    def naive() -> Tensor:
        logits = []
        offsets = centre_offsets(paper.batch_size, paper.num_pieces, paper.cell_size - paper.piece_size)
        with torch.no_grad(), evaluating(trainer.network) as network:
            for start in range(0, len(pairs), paper.batch_size):
                part = slice(start, start + paper.batch_size)
                order = orders[part]
                tiles = cut_tiles(images[samples[part]], order, offsets[: len(order)], paper.grid, paper.piece_size)
                logits.append(network("spatial", normalise(tiles)))
        return torch.cat(logits)

    # the part must say the same as the exact method does
    result = trainer.validate(pieces)
    probabilities = naive().softmax(1)
    labels = torch.arange(len(pairs), device=device) % paper.num_permutations
    truth = probabilities.gather(1, labels[:, None]).squeeze(1)
    other = probabilities.scatter(1, labels[:, None], 0).amax(1)
    ratios = ((truth + 1) / (other + 1)).cpu().numpy()
    difference = float(np.abs(ratios - result.ratios.T.reshape(-1)[: len(pairs)]).max())

    part_seconds = _seconds(naive, device, repeats=max(1, config.repeats // 2), warm_up=0)
    all_pairs = paper.num_permutations * paper.num_validation
    naive_seconds = part_seconds * all_pairs / len(pairs)
    figures = {
        "permutations": paper.num_permutations,
        "samples": paper.num_validation,
        "exact_seconds": exact,
        "naive_seconds_extrapolated": naive_seconds,
        "naive_pairs_timed": len(pairs),
        "naive_seconds_timed": part_seconds,
        "ratio": naive_seconds / exact,
        "largest_ratio_difference": difference,
    }
    _table(
        "validation, 1000 permutations × 100 samples, CaffeNet, 75 × 75 tiles",
        {
            f"naive (extrapolated from {len(pairs)} of {all_pairs} pairs)": f"{naive_seconds:10.1f} s",
            "exact": f"{exact:10.2f} s   {naive_seconds / exact:.0f} times naive",
            "largest difference of a ratio": f"{difference:10.1e}",
        },
    )
    return figures


class _LoopNetwork(nn.Module):
    """The public jigsaw networks' way: one tile after another through the same trunk and head."""

    def __init__(self, network: OrderingNetwork):
        super().__init__()
        self.network = network

    def forward(self, pieces: Tensor) -> Tensor:
        """Logits (B, |Ψ|) of pieces (B, n, 3, h, w)."""
        head = self.network.heads["spatial"]
        assert isinstance(head, SpatialHead)
        tiles = [head.fc6(self.network.trunk(pieces[:, k]).flatten(1)) for k in range(pieces.shape[1])]
        return head.classify(head.fc7(torch.cat(tiles, dim=1)))


def step(config: Config, device: torch.device) -> dict[str, Any]:
    """Training iterations against the plain loop over tiles, in float32 and bf16, at both presets' sizes."""
    figures = {}
    for preset in permenv.PRESETS:
        numbers = make_config(preset, ema_decay=0.0)
        if preset == "paper":
            batch_size = config.batch_size or (128 if device.type == "cuda" else 32)
            numbers = dataclasses.replace(numbers, batch_size=batch_size, samples_per_action=1)
        figures[preset] = _step_figures(numbers, device, config.repeats)
        rates, loop = figures[preset]["images_per_second"], figures[preset]["images_per_second"]["loop float32"]
        _table(
            f"training step, {preset} preset, batch of {numbers.batch_size}, 'auto' is {figures[preset]['auto']}",
            {name: f"{rate:10.1f} images/s   {rate / loop:.2f} times the loop" for name, rate in rates.items()},
        )
    return figures


def _step_figures(config: permenv.Config, device: torch.device, repeats: int) -> dict[str, Any]:
    permutations = maximally_different(config.num_pieces, config.num_permutations)
    images = _random_images(config.batch_size, config.image_size, device)
    labels = np.arange(config.batch_size) % config.num_permutations
    steps: dict[str, Callable[[], Any]] = {"loop float32": _loop_step(config, permutations, images, labels, device)}
    for precision in ("float32", "bf16"):
        trainer = Trainer(dataclasses.replace(config, precision=precision), permutations, device, seed=0)
        rng = np.random.default_rng(0)
        steps[f"folded {precision}"] = lambda trainer=trainer, rng=rng: trainer.step(images, labels, rng)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for take_step in steps.values():
        take_step()
    for _ in range(repeats):  # in turn, so that a slow moment of the machine hits all of them
        for name, take_step in steps.items():
            seconds[name].append(_seconds(take_step, device, repeats=1, warm_up=0))
    rates = {name: config.batch_size / statistics.median(values) for name, values in seconds.items()}
    auto = "bf16" if resolve_precision("auto", device) == torch.bfloat16 else "float32"
    return {
        "batch_size": config.batch_size,
        "images_per_second": rates,
        "auto": auto,
        "ratio_auto_to_loop": rates[f"folded {auto}"] / rates["loop float32"],
    }


def _loop_step(
    config: permenv.Config, permutations: np.ndarray, images: Tensor, labels: np.ndarray, device: torch.device
) -> Callable[[], None]:
    trainer = Trainer(config, permutations, device, seed=0)  # for the same weights and the same pieces
    network = _LoopNetwork(trainer.network.to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), config.learning_rate, config.momentum, 0, config.weight_decay)
    rng, target = np.random.default_rng(0), torch.from_numpy(labels).to(device)

    def take_step() -> None:
        loss = nn.functional.cross_entropy(network(trainer.training_pieces(images, labels, rng)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return take_step


def env_overhead(config: Config, device: torch.device) -> dict[str, Any]:
    """Iterations through `gym.make` with its default wrappers against the bare loop."""
    default = make_config(config.preset_of_env).samples_per_action
    figures = {}
    for samples_per_action in dict.fromkeys((default, 1)):
        figures[f"samples_per_action={samples_per_action}"] = _env_figures(config, device, samples_per_action)
    _table(
        f"an SGD iteration, {config.preset_of_env} preset (default samples_per_action={default})",
        {
            f"{name}": f"bare {1e3 * f['bare_seconds']:8.2f} ms, env {1e3 * f['env_seconds']:8.2f} ms: "
            f"{f['overhead']:+.1%}, of which validation and grouping {f['validation_share']:+.1%}"
            for name, f in figures.items()
        },
    )
    return {"preset": config.preset_of_env, "default_samples_per_action": default, **figures}


def _env_figures(config: Config, device: torch.device, samples_per_action: int) -> dict[str, float]:
    wrapped = gym.make(
        "PermShuffle-v0",
        preset=config.preset_of_env,
        device=str(device),
        samples_per_action=samples_per_action,
        total_updates=config.blocks + 2,  # the run must not end before the measurement
    )
    world = wrapped.unwrapped
    assert isinstance(world, PermShuffleEnv)
    wrapped.reset(seed=0)
    numbers, rng = world.config, np.random.default_rng(0)
    iterations = numbers.free_iterations + numbers.iterations_per_update
    bare = Trainer(numbers, world.permutations["spatial"], device, seed=0)
    training = world.training_indices

    def train_bare() -> None:
        for _ in range(iterations):
            images = world.data.take(training[rng.integers(len(training), size=numbers.batch_size)], device)
            labels = rng.integers(numbers.num_permutations, size=numbers.batch_size)
            bare.step(images, labels, rng)

    def train_env() -> None:
        for action in rng.integers(numbers.num_groups, size=iterations * numbers.actions_per_iteration).tolist():
            wrapped.step(action)

    train_bare()
    train_env()
    seconds: dict[str, list[float]] = {"bare": [], "env": []}
    overhead = -world.seconds["validation"] - world.seconds["grouping"]
    rivals = {"bare": train_bare, "env": train_env}
    for block in range(config.blocks):  # first one, then the other first: the machine's speed drifts
        for name in sorted(rivals, reverse=bool(block % 2)):
            seconds[name].append(_seconds(rivals[name], device, repeats=1, warm_up=0) / iterations)
    overhead += world.seconds["validation"] + world.seconds["grouping"]
    bare_seconds, env_seconds = statistics.median(seconds["bare"]), statistics.median(seconds["env"])
    return {
        "bare_seconds": bare_seconds,
        "env_seconds": env_seconds,
        "overhead": env_seconds / bare_seconds - 1,
        "validation_share": overhead / (config.blocks * iterations) / bare_seconds,
        "blocks": config.blocks,
        "iterations_per_block": iterations,
    }


def _random_images(count: int, size: int, device: torch.device) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).to(device)


def _seconds(work: Callable[[], Any], device: torch.device, repeats: int, warm_up: int) -> float:
    """Median seconds of `work`."""
    times = []
    for repeat in range(warm_up + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= warm_up:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _table(title: str, rows: dict[str, str]) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<52} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
