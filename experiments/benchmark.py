"""How fast it is, as ratios measured in one run: `python experiments/benchmark.py`.

- validation: all |Ψ| × |X_val| scores of each task, exactly, against running the whole network on permuted pixels, at
  the paper's sizes. The naive time is extrapolated from a part of the pairs.
- step: images a second of a training iteration against the usual plain loop over the nine tiles, same network.
- joint: seconds of a training iteration on both tasks against the sum of an iteration on each.
- env: seconds of an iteration through `gym.make(...).step`, its validations included, against the bare training loop,
  which never validates.

Prints tables, and writes the figures with the machine's description as JSON.
"""

from __future__ import annotations

import dataclasses
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
from permenv import PermShuffleEnv, StillImages, VideoClips, make_config
from permenv.augment import normalise
from permenv.heads import SpatialHead
from permenv.networks import OrderingNetwork, evaluating
from permenv.permutations import maximally_different
from permenv.tasks import SpatialTask, Task, TemporalTask
from permenv.training import Batch, Trainer, resolve_device, resolve_precision
from permenv.validation import validate


@dataclass(frozen=True)
class Config:
    """The benchmark's options."""

    which: tuple[Literal["validation", "step", "joint", "env"], ...] = ("validation", "step", "joint", "env")
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
    runs.keep_freed_memory()
    measure = {"validation": validation, "step": step, "joint": joint, "env": env_overhead}
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
    tasks = _random_tasks(paper, device)
    trainer = Trainer(paper, {name: task.head for name, task in tasks.items()}, device, seed=0)
    figures = {}
    for name, task in tasks.items():
        with torch.no_grad():  # an untrained network thinks all alike, and two methods could not differ
            trainer.network.heads[name].classifier.weight.mul_(200)  # type: ignore[union-attr, operator]
        figures[name] = found = _validation_figures(config, trainer.network, name, task)
        _table(
            f"{name} validation, {paper.num_permutations} permutations × {paper.num_validation} samples, CaffeNet, "
            f"{task.num_pieces} pieces of {paper.piece_size} × {paper.piece_size}",
            {
                f"naive (extrapolated from {found['naive_pairs_timed']} of {found['pairs']} pairs)": (
                    f"{found['naive_seconds_extrapolated']:10.1f} s"
                ),
                "exact": f"{found['exact_seconds']:10.2f} s   {found['ratio']:.0f} times naive",
                "largest difference of a ratio": f"{found['largest_ratio_difference']:10.1e}",
            },
        )
    return figures


def _validation_figures(config: Config, network: OrderingNetwork, name: str, task: Task) -> dict[str, Any]:
    numbers, device = task.config, task.device
    samples = task.hold_out(np.random.default_rng(0))
    pieces = task.validation_pieces(samples)
    result = validate(network, name, pieces, task.permutations)
    repeats = max(1, config.repeats // 2)
    exact = _seconds(lambda: validate(network, name, pieces, task.permutations), device, repeats, warm_up=0)

    count = len(task.permutations)
    pairs = np.arange(min(config.naive_pairs, numbers.num_validation * count))
    which, labels = np.divmod(pairs, count)

    def naive() -> Tensor:
        logits = []
        with torch.no_grad(), evaluating(network):
            for part in np.split(pairs, range(numbers.batch_size, len(pairs), numbers.batch_size)):
                shuffled = task.centre_pieces(samples[which[part]], task.permutations[labels[part]])
                logits.append(network(name, normalise(shuffled)))
        return torch.cat(logits)

    # the part must say the same as the exact method does
    probabilities, true = naive().softmax(1), torch.from_numpy(labels).to(device)[:, None]
    truth = probabilities.gather(1, true).squeeze(1)
    other = probabilities.scatter(1, true, 0).amax(1)
    ratios = ((truth + 1) / (other + 1)).cpu().numpy()
    part_seconds = _seconds(naive, device, repeats, warm_up=0)
    naive_seconds = part_seconds * result.ratios.size / len(pairs)
    return {
        "permutations": count,
        "samples": numbers.num_validation,
        "pairs": result.ratios.size,
        "exact_seconds": exact,
        "naive_seconds_extrapolated": naive_seconds,
        "naive_pairs_timed": len(pairs),
        "naive_seconds_timed": part_seconds,
        "ratio": naive_seconds / exact,
        "largest_ratio_difference": float(np.abs(ratios - result.ratios[labels, which]).max()),
    }


class _LoopNetwork(nn.Module):
    """The same network as a plain loop over the tiles, as the public jigsaw code runs it."""

    def __init__(self, network: OrderingNetwork):
        super().__init__()
        self.network = network

    def forward(self, pieces: Tensor) -> Tensor:
        head = self.network.heads["spatial"]
        assert isinstance(head, SpatialHead)
        tiles = [head.fc6(self.network.trunk(pieces[:, k]).flatten(1)) for k in range(pieces.shape[1])]
        return head.classifier(head.fc7(torch.cat(tiles, dim=1)).relu_())


def step(config: Config, device: torch.device) -> dict[str, Any]:
    """Training iterations against the plain loop over tiles, in float32 and bf16, at both presets' sizes."""
    figures = {}
    for preset in permenv.PRESETS:
        numbers = _step_numbers(config, preset, device)
        task = _random_tasks(numbers, device)["spatial"]
        steps: dict[str, Callable[[], Any]] = {"loop float32": _loop_step(task)}
        for precision in ("float32", "bf16"):
            steps[f"folded {precision}"] = _training_step({"spatial": task}, precision)
        seconds = _seconds_in_turn(steps, device, config.repeats)
        rates = {name: numbers.batch_size / value for name, value in seconds.items()}
        auto = "bf16" if resolve_precision("auto", device) == torch.bfloat16 else "float32"
        figures[preset] = {
            "batch_size": numbers.batch_size,
            "images_per_second": rates,
            "auto": auto,
            "ratio_auto_to_loop": rates[f"folded {auto}"] / rates["loop float32"],
        }
        _table(
            f"training step, {preset} preset, batch of {numbers.batch_size}, 'auto' is {auto}",
            {
                name: f"{rate:10.1f} images/s   {rate / rates['loop float32']:.2f} times the loop"
                for name, rate in rates.items()
            },
        )
    return figures


def joint(config: Config, device: torch.device) -> dict[str, Any]:
    """Training iterations on both tasks against one on each, at both presets' sizes."""
    figures = {}
    for preset in permenv.PRESETS:
        numbers = _step_numbers(config, preset, device)
        tasks = _random_tasks(numbers, device)
        steps = {name: _training_step({name: task}) for name, task in tasks.items()}
        seconds = _seconds_in_turn({**steps, "joint": _training_step(tasks)}, device, config.repeats)
        ratio = seconds["joint"] / (seconds["spatial"] + seconds["temporal"])
        figures[preset] = {"batch_size": numbers.batch_size, "seconds": seconds, "ratio_joint_to_sum": ratio}
        _table(
            f"joint training step, {preset} preset, batches of {numbers.batch_size}",
            {
                **{name: f"{1e3 * value:10.1f} ms" for name, value in seconds.items()},
                "joint against the sum of the two": f"{ratio:10.3f}",
            },
        )
    return figures


def _step_numbers(config: Config, preset: str, device: torch.device) -> permenv.Config:
    numbers = make_config(preset, ema_decay=0.0)
    if preset == "paper":
        batch_size = config.batch_size or (128 if device.type == "cuda" else 32)
        numbers = dataclasses.replace(numbers, batch_size=batch_size, samples_per_action=1)
    return numbers


def _training_step(tasks: dict[str, Task], precision: str = "auto") -> Callable[[], None]:
    """An iteration as the environment runs it: draw, cut, augment, train."""
    task = next(iter(tasks.values()))
    numbers = dataclasses.replace(task.config, precision=precision)
    trainer = Trainer(numbers, {name: each.head for name, each in tasks.items()}, task.device, seed=0)
    rng = np.random.default_rng(0)
    trainable = {name: each.trainable(each.hold_out(rng)) for name, each in tasks.items()}
    labels = np.arange(numbers.batch_size) % numbers.num_permutations

    def take_step() -> None:
        batches = {}
        for name, each in tasks.items():
            samples = each.draw(trainable[name], numbers.batch_size, rng)
            batches[name] = Batch(each.training_pieces(samples, labels, rng), labels)
        trainer.step(batches)

    return take_step


def _loop_step(task: Task) -> Callable[[], None]:
    config = task.config
    trainer = Trainer(config, {"spatial": task.head}, task.device, seed=0)  # for the same weights
    network = _LoopNetwork(trainer.network.to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), config.learning_rate, config.momentum, 0, config.weight_decay)
    rng = np.random.default_rng(0)
    trainable = task.trainable(task.hold_out(rng))
    labels = np.arange(config.batch_size) % config.num_permutations
    target = torch.from_numpy(labels).to(task.device)

    def take_step() -> None:
        samples = task.draw(trainable, config.batch_size, rng)
        loss = nn.functional.cross_entropy(network(task.training_pieces(samples, labels, rng)), target)
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
    task = world.tasks["spatial"]
    bare = Trainer(numbers, {"spatial": task.head}, device, seed=0)
    training = task.trainable(world.validation_samples["spatial"])

    def train_bare() -> None:
        for _ in range(iterations):
            samples = task.draw(training, numbers.batch_size, rng)
            labels = rng.integers(numbers.num_permutations, size=numbers.batch_size)
            bare.step({"spatial": Batch(task.training_pieces(samples, labels, rng), labels)})

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


def _random_tasks(config: permenv.Config, device: torch.device) -> dict[str, Task]:
    """Both tasks on noise: what the pixels show changes no time."""
    rng, count = np.random.default_rng(0), 2 * config.num_validation

    def noise(number: int, size: int) -> StillImages:
        pixels = torch.from_numpy(rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8))
        return StillImages(pixels, None, (), "noise", "noise")

    starts = np.arange(count + 1) * config.num_frames
    clips = VideoClips(
        noise(int(starts[-1]), config.frame_size), starts, names=tuple(f"noise {index}" for index in range(count))
    )
    return {
        "spatial": SpatialTask(
            config,
            maximally_different(config.num_tiles, config.num_permutations),
            noise(count, config.image_size),
            device,
        ),
        "temporal": TemporalTask(
            config, maximally_different(config.num_frames, config.num_permutations), clips, device
        ),
    }


def _seconds_in_turn(rivals: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that a slow moment of the machine hits all of them."""
    for work in rivals.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, work in rivals.items():
            seconds[name].append(_seconds(work, device, repeats=1, warm_up=0))
    return {name: statistics.median(values) for name, values in seconds.items()}


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
