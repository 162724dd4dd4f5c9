"""How fast it is, as ratios measured in one run, at the sizes of the chosen preset.

    python experiments/benchmarks/speed.py
    python experiments/benchmarks/speed.py --preset paper --env.batch-size 32 --only validation step joint

- validation: all |Ψ| × |X_val| scores of each task, exactly, against running the whole network on permuted pixels. The
  naive time is extrapolated from a part of the pairs.
- step: images a second of a training iteration against the usual plain loop over the tiles, same network.
- joint: seconds of a training iteration on both tasks against the sum of an iteration on each.
- env: seconds of an iteration through `gym.make(...).step`, its validations included, against `Pretraining.iterate`
  alone, which never validates. With the paper's preset a block takes hours on a CPU.
- parts: seconds of an iteration by part, and their share of the roofline, see `parts.py`.
- start: seconds from the command to the end of the first iteration, see `start.py`.
- scaling: images a second of 1, 2, ... ranks, see `scaling.py`.
- compiled: seconds of a training iteration whose trunk went through `torch.compile`, on a GPU also with CUDA graphs,
  against one as it is. No run uses either; this says whether it would pay.

Runs train on noise, because what the pixels show changes no time; env and start train on the data of the options.
Prints tables, and writes the numbers with the machine's description as JSON.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks import parts, scaling, start
from experiments.benchmarks.noise import new_run, tasks_of_noise
from experiments.benchmarks.timing import AT_ONCE, medians_in_turn, repeated, wait_for
from experiments.common.files import write_json
from experiments.common.machine import keep_freed_memory, machine
from experiments.common.options import EnvOptions
from experiments.common.reports.report import origin
from experiments.common.script import run_script
from permenv import Pretraining
from permenv.device import resolve_device, resolve_precision
from permenv.heads import SpatialHead
from permenv.networks import OrderingNetwork, eval_mode
from permenv.torch_state import default_torch_state
from permenv.validation import Validation, validate
from permenv.wrappers.base import base_env_of

Measured = Literal["parts", "step", "joint", "validation", "env", "start", "scaling", "compiled"]

_CLASSIFIER_SCALE = 200  # an untrained network predicts all alike, and two methods could not differ


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The benchmark's options."""

    only: tuple[Measured, ...] = get_args(Measured)
    """What to measure."""
    naive_pairs: int = 384
    """Pairs of permutation and sample that the naive validation is timed on; the rest is extrapolated."""
    repeats: int = 5
    """Timed repetitions of all but env; the median counts."""
    blocks: int = 24
    """Timed blocks of env, each of as many iterations as an update; the median counts."""
    out: Path | None = None
    """JSON file; experiments/results/benchmark-PRESET-DEVICE.json if not given."""

    @property
    def file(self) -> Path:
        """Where the numbers are written."""
        name = f"benchmark-{self.preset}-{resolve_device(self.device).type}.json"
        return self.out or Path("experiments/results") / name


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Returns:
        What the JSON file holds.
    """
    device = resolve_device(config.device)
    keep_freed_memory()
    measure: dict[str, Callable[[Config, torch.device], dict[str, Any]]] = {
        **{"validation": validation, "step": step, "joint": joint, "env": env_overhead},
        **{"parts": parts_of_iteration, "start": starting, "scaling": several_ranks, "compiled": compiled},
    }
    report: dict[str, Any] = {**origin(config), "machine": machine(device), "preset": config.preset}
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for name in config.only:
        report[name] = measure[name](config, device)
        write_json(config.file, report)  # each time: whoever stops it has what was measured
    print(f"\nwritten to {config.file}")
    return report


def validation(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure exact against naive validation."""
    run = new_run(config.env, tasks_of_noise(config.env, device))
    measured = {}
    for name, task in run.tasks.items():
        with torch.no_grad():
            run.trainer.eval_network.heads[name].classifier.weight.mul_(_CLASSIFIER_SCALE)  # type: ignore[union-attr, operator]
        measured[name] = found = _measure_validation(config, run, name)
        _print_table(
            f"{name} validation, {found['permutations']} permutations × {found['samples']} samples, "
            f"{config.env.backbone}, {task.num_pieces} pieces of {config.env.piece_size} × {config.env.piece_size}",
            {
                f"naive (extrapolated from {found['naive_pairs_timed']} of {found['pairs']} pairs)": (
                    f"{found['naive_seconds_extrapolated']:10.1f} s"
                ),
                "exact": f"{found['exact_seconds']:10.2f} s   {found['ratio']:.0f} times naive",
                "largest difference of a ratio": f"{found['largest_ratio_difference']:10.1e}",
            },
        )
    return measured


def _measure_validation(config: Config, run: Pretraining, name: str) -> dict[str, Any]:
    network, task, samples = run.trainer.eval_network, run.tasks[name], run.held_out[name]
    pieces = task.pieces(samples)
    count = len(task.permutations)
    pairs = np.arange(min(config.naive_pairs, len(samples) * count))
    which, labels = np.divmod(pairs, count)

    def exact() -> Validation:
        return validate(network, name, pieces, task.permutations)

    @default_torch_state()  # as `validate`
    def naive() -> Tensor:
        batches = np.split(pairs, range(config.env.batch_size, len(pairs), config.env.batch_size))
        with torch.no_grad(), eval_mode(network):
            logits = [network(name, task.pieces(samples[which[b]], task.permutations[labels[b]])) for b in batches]
        return torch.cat(logits)

    # Both methods must give the same ratios (Eq. 3 and 4).
    probabilities, true = naive().softmax(1), torch.from_numpy(labels).to(run.device)[:, None]
    truth = probabilities.gather(1, true).squeeze(1)
    other = probabilities.scatter(1, true, 0).amax(1)
    ratios = ((truth + 1) / (other + 1)).cpu().numpy()
    result = exact()
    seconds = medians_in_turn({"exact": exact, "naive": naive}, max(1, config.repeats // 2), run.device)
    naive_seconds = seconds["naive"] * result.ratios.size / len(pairs)
    return {
        "permutations": count,
        "samples": len(samples),
        "pairs": result.ratios.size,
        "exact_seconds": seconds["exact"],
        "naive_seconds_extrapolated": naive_seconds,
        "naive_pairs_timed": len(pairs),
        "naive_seconds_timed": seconds["naive"],
        "ratio": naive_seconds / seconds["exact"],
        "largest_ratio_difference": float(np.abs(ratios - result.ratios[labels, which]).max()),
    }


class _LoopNetwork(OrderingNetwork):
    """The same network as a plain loop over the tiles, as the public jigsaw code runs it."""

    def __init__(self, network: OrderingNetwork):
        super().__init__(network.trunk, dict(network.heads.items()))  # type: ignore[arg-type]  # ordering heads
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs

    def together(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the logits of the spatial task, see `OrderingNetwork.together`."""
        head, tiles = self.heads["spatial"], pieces["spatial"]
        assert isinstance(head, SpatialHead)
        features = [head.fc6(self.trunk(tiles[:, k]).flatten(1)) for k in range(tiles.shape[1])]
        return {"spatial": head.classifier(head.fc7(torch.cat(features, dim=1)).relu_())}


def step(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure training iterations against the plain loop over tiles, in float32 and bf16."""
    numbers = dataclasses.replace(config.env, ema_decay=0.0)
    tasks = {"spatial": tasks_of_noise(numbers, device)["spatial"]}
    runs = {"loop float32": new_run(dataclasses.replace(numbers, precision="float32"), tasks)}
    runs["loop float32"].trainer.network = _LoopNetwork(runs["loop float32"].trainer.network)
    for precision in ("float32", "bf16"):
        runs[f"folded {precision}"] = new_run(dataclasses.replace(numbers, precision=precision), tasks)
    seconds = _seconds_of_iterations(runs, config.repeats, device)
    rates = {name: numbers.batch_size / value for name, value in seconds.items()}
    auto = "bf16" if resolve_precision("auto", device) == torch.bfloat16 else "float32"
    _print_table(
        f"training step, {config.preset} preset, batch of {numbers.batch_size}, 'auto' is {auto}",
        {
            name: f"{rate:10.1f} images/s   {rate / rates['loop float32']:.2f} times the loop"
            for name, rate in rates.items()
        },
    )
    return {
        "batch_size": numbers.batch_size,
        "images_per_second": rates,
        "auto": auto,
        "ratio_auto_to_loop": rates[f"folded {auto}"] / rates["loop float32"],
    }


def joint(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure training iterations on both tasks against one on each."""
    numbers = dataclasses.replace(config.env, ema_decay=0.0)
    tasks = tasks_of_noise(numbers, device)
    runs = {name: new_run(numbers, {name: task}) for name, task in tasks.items()}
    runs["joint"] = new_run(numbers, tasks)
    seconds = _seconds_of_iterations(runs, config.repeats, device)
    ratio = seconds["joint"] / (seconds["spatial"] + seconds["temporal"])
    _print_table(
        f"joint training step, {config.preset} preset, batches of {numbers.batch_size}",
        {
            **{name: f"{1e3 * value:10.1f} ms" for name, value in seconds.items()},
            "joint against the sum of the two": f"{ratio:10.3f}",
        },
    )
    return {"batch_size": numbers.batch_size, "seconds": seconds, "ratio_joint_to_sum": ratio}


def _seconds_of_iterations(runs: Mapping[str, Pretraining], repeats: int, device: torch.device) -> dict[str, float]:
    at_once = AT_ONCE[device.type]
    rivals = {name: repeated(run.iterate, at_once) for name, run in runs.items()}
    return {name: seconds / at_once for name, seconds in medians_in_turn(rivals, repeats, device).items()}


def env_overhead(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure iterations through `gym.make` with its default wrappers against `Pretraining.iterate`."""
    default = config.env.samples_per_action
    measured = {
        f"samples_per_action={samples_per_action}": _measure_env(config, device, samples_per_action)
        for samples_per_action in dict.fromkeys((default, 1))
    }
    _print_table(
        f"an SGD iteration, {config.preset} preset, {config.task} task",
        {
            name: f"bare {1e3 * found['bare_seconds']:8.2f} ms, env {1e3 * found['env_seconds']:8.2f} ms: "
            f"{found['overhead']:+.1%}, of which validation and grouping {found['validation_share']:+.1%}"
            for name, found in measured.items()
        },
    )
    return {"task": config.task, "default_samples_per_action": default, **measured}


def _measure_env(config: Config, device: torch.device, samples_per_action: int) -> dict[str, float]:
    # the run must not end before the measurement
    env = config.make(samples_per_action=samples_per_action, total_updates=config.blocks + 2)
    base_env = base_env_of(env)
    env.reset(seed=0)
    env.action_space.seed(0)
    numbers, run = base_env.config, base_env.run
    bare = new_run(numbers, run.tasks)
    iterations = numbers.iterations_per_cycle

    def train_bare() -> None:
        for _ in range(iterations):
            bare.iterate()

    def train_env() -> None:
        for action in actions:
            env.step(action)

    actions = [env.action_space.sample() for _ in range(iterations * numbers.actions_per_iteration)]
    before = run.seconds["validation"] + run.seconds["grouping"]
    seconds = medians_in_turn({"bare": train_bare, "env": train_env}, config.blocks, device)
    validating = run.seconds["validation"] + run.seconds["grouping"] - before
    bare_seconds, env_seconds = (seconds[name] / iterations for name in ("bare", "env"))
    return {
        "bare_seconds": bare_seconds,
        "env_seconds": env_seconds,
        "overhead": env_seconds / bare_seconds - 1,
        "validation_share": validating / ((config.blocks + 1) * iterations) / bare_seconds,  # one block is not timed
        "blocks": config.blocks,
        "iterations_per_block": iterations,
    }


def parts_of_iteration(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure an iteration by part."""
    found = parts.measure(config, device, config.repeats)
    roofline, whole = found["roofline"], found["seconds_by_part"]
    _print_table(
        f"an SGD iteration by part, {config.preset} preset, {config.task} task, batch of {found['batch_size']}, "
        f"{found['precision']}, {found['clock']}",
        {
            **{
                name: f"{1e3 * part['seconds']:10.2f} ms {part['seconds'] / whole:6.1%} "
                f"{part['flops'] / 1e9:10.2f} GFLOP"
                for name, part in found["parts"].items()
            },
            "sum; an iteration that is not divided": f"{1e3 * whole:10.2f} ms; {1e3 * found['seconds']:.2f} ms",
            "bound by FLOPs; by bytes": (
                f"{1e3 * roofline['flop_seconds']:10.2f} ms; {1e3 * roofline['byte_seconds']:.2f} ms"
            ),
            "share of the roofline; operation by operation": (
                f"{roofline['share']:10.1%}; {roofline['share_by_operation']:.1%}"
            ),
        },
    )
    return found


def starting(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure starts in new processes."""
    found = start.measure(config, max(1, config.repeats // 2))
    _print_table(
        f"start, {config.preset} preset, {found['data']}",
        {
            "from the command to the first iteration": f"{found['seconds']:10.2f} s",
            "after the imports": f"{found['seconds_after_import']:10.2f} s",
            "of all processors": f"{found['cpu_seconds']:10.2f} CPU s",
        },
    )
    return found


def several_ranks(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure several ranks."""
    found = scaling.measure(config, device, 2 * config.repeats)
    _print_table(
        f"ranks ({found['ranks']}), {config.preset} preset, {config.task} task, batch of "
        f"{found['batch_size_of_a_rank']} each",
        {
            size: f"{rate:10.1f} images/s   efficiency {found['efficiency'][size]:.2f}"
            for size, rate in found["images_per_second"].items()
        },
    )
    return found


def compiled(config: Config, device: torch.device) -> dict[str, Any]:
    """Measure training iterations with a compiled trunk against those of the trunk as it is."""
    tasks = tasks_of_noise(config.env, device, config.task)
    modes = {"compiled": "default"} | ({"captured": "reduce-overhead"} if device.type == "cuda" else {})
    runs = {name: new_run(config.env, tasks) for name in ("as it is", *modes)}
    to_compile = {}
    for name, mode in modes.items():
        runs[name].trainer.network.trunk.compile(mode=mode, dynamic=False)
        before = time.perf_counter()
        runs[name].iterate()
        wait_for(device)
        to_compile[name] = time.perf_counter() - before
    seconds = _seconds_of_iterations(runs, config.repeats, device)
    _print_table(
        f"training iteration, {config.preset} preset, {config.task} task, batch of {config.env.batch_size}, "
        f"{runs['as it is'].trainer.precision}",
        {
            name: f"{1e3 * value:10.2f} ms   {value / seconds['as it is']:.2f} times as it is"
            + (f"   {to_compile[name]:.0f} s to compile" if name in to_compile else "")
            for name, value in seconds.items()
        },
    )
    return {
        "task": config.task,
        "batch_size": config.env.batch_size,
        "precision": runs["as it is"].trainer.precision,
        "seconds": seconds,
        "seconds_of_first_iteration": to_compile,
    }


def _print_table(title: str, rows: Mapping[str, str]) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<52} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    run_script(main, Config, __doc__)
