"""Many runs at once: which way of training M networks is fastest, measured in one run.

    python experiments/vector.py

Every rival trains M independent networks of the tiny preset's spatial task, and none validates. A block is some
iterations of all M networks. The rivals of a table take their blocks in turn, so that a slow moment of the machine
hits all of them, and the medians count: images a second over all M networks, and the ratio to M processes that know
nothing of one another.

The training loop alone:

- processes: M processes of one thread.
- in turn: one process, network after network, each with all threads.
- threads: one process, as many Python threads as cores; each takes the next network and trains it with one thread.
- vmap: one program of torch.func over the stacked weights.
- grouped: one program written out: convolutions with M groups, batched matrix products, one SGD step and one average
  of all weights.

Through Gymnasium, 64 steps an iteration:

- processes: M processes of one thread, each with a `gym.make` of its own.
- async: `gym.make_vec(..., vectorization_mode="async")`: M processes of one thread that wait for each other's steps.
- sync: `gym.make_vec(..., vectorization_mode="sync")`: one process with all threads.

And where the time of an iteration of all M networks goes with one thread, in turn and grouped, as torch's profiler has
it: what batching saves, and what it does not.

Prints a table for each M, and writes the figures with the machine's description as JSON. M = 16 needs 16 GB.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import permenv
from experiments import runs
from permenv import make_config
from permenv.heads import SpatialHead
from permenv.networks import OrderingNetwork
from permenv.tasks import Task, make_tasks
from permenv.training import Batch, Trainer, resolve_device, resolve_precision

Work = Callable[[int], None]
"""Trains every network of a rival for that many iterations."""

_KINDS: Mapping[str, tuple[str, ...]] = {  # by words in the names of torch's operations
    "convolutions": ("conv", "Conv"),
    "normalisation, ReLU, pooling": ("batch_norm", "BatchNorm", "relu", "threshold", "clamp_min", "pool", "Pool"),
    "SGD step, weight average": ("SGD", "lerp"),
}
_REST = "everything else"


@dataclass(frozen=True)
class Config:
    """The benchmark's options."""

    networks: tuple[int, ...] = (1, 4, 16)
    """Values of M."""
    blocks: int = 5
    """Timed blocks of each rival; the medians count."""
    images: int = 2048
    """Images of a block, of all networks together; at least one mini-batch a network."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    out: Path | None = None
    """JSON file; experiments/results/vector-DEVICE.json if not given."""


@dataclass(frozen=True)
class Setting:
    """What one process is to train.

    Attributes:
        count: How many networks.
        device: Where they live.
        seed: Of the first; the others have the seeds that follow.
        overrides: Of the tiny preset. How many scenes there are changes no time but that of the start; a validation
            would be in some blocks and not in others.
    """

    count: int
    device: torch.device
    seed: int = 0
    overrides: dict[str, Any] = field(default_factory=lambda: {"num_scenes": 200, "iterations_per_update": 10**6})

    @property
    def config(self) -> permenv.Config:
        """All numbers."""
        return make_config("tiny", **self.overrides)


@dataclass(frozen=True)
class Rival:
    """A way of training M networks.

    Attributes:
        make: Gets ready, in the process that trains.
        apart: Whether every network has a process of one thread; else all share one with all threads.
    """

    make: Callable[[Setting], Work]
    apart: bool = False


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Returns:
        What the JSON file holds.
    """
    device = resolve_device(config.device)
    auto = "bf16" if resolve_precision("auto", device) == torch.bfloat16 else "float32"
    report: dict[str, Any] = {"machine": runs.machine(device), "preset": "tiny", "precision": auto}
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for title, rivals in RIVALS.items():
        report[title] = {str(count): measure(config, rivals, count, device, title) for count in config.networks}
    report["parts"] = {str(count): parts(config, count, device) for count in config.networks}
    out = config.out or Path("experiments/results") / f"vector-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(out, report)
    print(f"written to {out}")
    return report


def measure(
    config: Config, rivals: Mapping[str, Rival], count: int, device: torch.device, title: str
) -> dict[str, dict[str, Any]]:
    """Time the rivals on `count` networks, block by block in turn, and print the table."""
    batch_size = Setting(count, device).config.batch_size
    iterations = max(1, config.images // (batch_size * count))
    images = count * iterations * batch_size
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    with contextlib.ExitStack() as stack:
        works = {name: stack.enter_context(_started(rival, count, device)) for name, rival in rivals.items()}
        for work in works.values():
            work(1)
        for block in range(config.blocks):  # first one, then the other first: the machine's speed drifts
            for name in reversed(works) if block % 2 else works:
                start = time.perf_counter()
                works[name](iterations)
                seconds[name].append(time.perf_counter() - start)
    figures = {}
    print(f"\n{title}, M = {count}: {config.blocks} blocks of {images} images")
    for name, times in seconds.items():
        rate = images / statistics.median(times)
        ratio = statistics.median(one / other for one, other in zip(seconds["processes"], times, strict=True))
        figures[name] = {"images_per_second": rate, "ratio_to_processes": ratio, "seconds": times}
        print(f"  {name:<12} {rate:8.0f} images/s   {ratio:.2f} times processes", flush=True)
    return figures


def parts(config: Config, count: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Profile the training of `count` networks in turn and grouped, and print the table.

    Returns:
        By kind of operation, the milliseconds of an iteration of all networks: "in turn", "grouped".
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = [
            pool.submit(_profile, make, Setting(count, device), config.blocks).result() for make in (_in_turn, _grouped)
        ]
    print(f"\nmilliseconds of an iteration, one thread, M = {count}")
    print(f"  {'':<36} in turn  grouped")
    table = {}
    for kind in (*_KINDS, _REST):
        table[kind] = {"in turn": found[0][kind], "grouped": found[1][kind]}
        print(f"  {kind:<36} {found[0][kind]:7.1f} {found[1][kind]:8.1f}", flush=True)
    return table


def _profile(make: Callable[[Setting], Work], setting: Setting, iterations: int) -> dict[str, float]:
    torch.set_num_threads(1)
    runs.keep_freed_memory()
    work = make(setting)
    work(2)
    milliseconds = dict.fromkeys((*_KINDS, _REST), 0.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work(iterations)
    for event in profile.key_averages():
        kind = next((kind for kind, words in _KINDS.items() if any(word in event.key for word in words)), _REST)
        milliseconds[kind] += event.self_cpu_time_total / 1000 / iterations
    return milliseconds


# Every rival has processes of its own, so that none has another's threads or memory


@contextlib.contextmanager
def _started(rival: Rival, count: int, device: torch.device) -> Iterator[Work]:
    settings = [Setting(1, device, seed) for seed in range(count)] if rival.apart else [Setting(count, device)]
    threads = 1 if rival.apart else torch.get_num_threads()
    context = get_context("spawn")
    pipes, processes = [], []
    for setting in settings:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, rival.make, setting, threads)))
        processes[-1].start()
        theirs.close()  # or a process that died would be waited for
        pipes.append(ours)

    def work(iterations: int) -> None:
        for pipe in pipes:
            pipe.send(iterations)
        for pipe in pipes:
            pipe.recv()

    try:
        yield work
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _serve(pipe: Connection, make: Callable[[Setting], Work], setting: Setting, threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # an environment in a spawned process takes one thread unless told so
    runs.keep_freed_memory()
    work = make(setting)
    while True:
        try:
            iterations = pipe.recv()
        except EOFError:  # the parent has closed its end
            return
        work(iterations)
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        pipe.send(None)


# The training loop alone


class _Run:
    """One run: its network, its samples, its generator.

    Args:
        task: The spatial task, which several runs may share.
        seed: Decides the run.
    """

    def __init__(self, task: Task, seed: int):
        self.trainer = Trainer(task.config, {"spatial": task.head}, task.device, seed)
        self._task = task
        self._rng = np.random.default_rng(seed)
        self._trainable = task.trainable(task.hold_out(self._rng))

    def draw(self) -> Batch:
        """Draw a mini-batch."""
        config = self._task.config
        samples = self._task.draw(self._trainable, config.batch_size, self._rng)
        labels = self._rng.integers(config.num_permutations, size=config.batch_size)
        return Batch(self._task.training_pieces(samples, labels, self._rng), labels)

    def iterate(self) -> None:
        """Take one SGD step."""
        self.trainer.step({"spatial": self.draw()})


def make_runs(setting: Setting) -> list[_Run]:
    """Make M runs on the same data."""
    task = make_tasks("spatial", setting.config, None, None, setting.device)["spatial"]
    return [_Run(task, setting.seed + index) for index in range(setting.count)]


def _in_turn(setting: Setting) -> Work:
    made = make_runs(setting)

    def work(iterations: int) -> None:
        for _ in range(iterations):
            for run in made:
                run.iterate()

    return work


def _threads(setting: Setting) -> Work:
    made = make_runs(setting)
    pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))

    def work(iterations: int) -> None:
        for _ in range(iterations):
            list(pool.map(_Run.iterate, made))

    return work


class _Together:
    """M runs as one program: one forward and backward pass, one SGD step and one average over all weights.

    Args:
        made: The runs; they draw the samples, and their networks stay as they are.
        program: What takes pieces (M, B, n, 3, h, w) to logits (M, B, |Ψ|).
    """

    def __init__(self, made: Sequence[_Run], program: nn.Module):
        self.program = program
        self._runs = made
        trainer = made[0].trainer
        config, self._device = trainer.config, trainer.device
        self._half = resolve_precision(config.precision, self._device) == torch.bfloat16
        self._optimizer = torch.optim.SGD(
            program.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=True,
        )
        self._averaged = AveragedModel(program, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)

    def iterate(self) -> Tensor:
        """Take one SGD step of every run.

        Returns:
            (M,) cross-entropies before the step.
        """
        batches = [run.draw() for run in self._runs]
        pieces = torch.stack([batch.pieces for batch in batches])
        labels = torch.from_numpy(np.stack([batch.labels for batch in batches])).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            logits = self.program(pieces)
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(dim=1)
        self._optimizer.zero_grad()
        losses.sum().backward()  # no network's loss depends on another's weights
        self._optimizer.step()
        self._averaged.update_parameters(self.program)
        return losses.detach()


class Vmapped(nn.Module):
    """Several networks as one of torch.func.

    Args:
        networks: Of one shape.
    """

    def __init__(self, networks: Sequence[OrderingNetwork]):
        super().__init__()
        plain = [_Plain(network) for network in networks]
        parameters, buffers = stack_module_state(plain)
        self._names = list(parameters), list(buffers)
        self.weights = nn.ParameterList(parameters.values())
        for index, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer{index}", buffer)
        self._network = [plain[0]]  # in a list, or it would be a submodule

    def forward(self, pieces: Tensor) -> Tensor:
        """Logits (M, B, |Ψ|) of pieces (M, B, n, 3, h, w)."""
        parameters = dict(zip(self._names[0], self.weights, strict=True))
        buffers = dict(zip(self._names[1], self.buffers(), strict=True))

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], pieces: Tensor) -> Tensor:
            return functional_call(self._network[0], (parameters, buffers), (pieces,))

        return vmap(one)(parameters, buffers, pieces)


class _Plain(nn.Module):
    """A network without its choice of memory format, which vmap cannot be asked about."""

    def __init__(self, network: OrderingNetwork):
        super().__init__()
        self.network = network

    def forward(self, pieces: Tensor) -> Tensor:
        features = self.network.trunk(pieces.flatten(0, 1)).flatten(1)
        return self.network.heads["spatial"](features.unflatten(0, pieces.shape[:2]))


class Grouped(nn.Module):
    """Several networks as one: the channels of all side by side, a group of channels each.

    Args:
        networks: Of one shape, with a trunk of convolutions, batch normalisation and what has no weights, and a
            `SpatialHead`.
    """

    def __init__(self, networks: Sequence[OrderingNetwork]):
        super().__init__()
        self.count = len(networks)
        trunks = zip(*(network.trunk for network in networks), strict=True)
        trunk = nn.Sequential(*map(_side_by_side, trunks))
        self.trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        heads = [network.heads["spatial"] for network in networks]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layers in zip(*((h.fc6[0], h.fc7, h.classifier) for h in heads if isinstance(h, SpatialHead)), strict=True):
            self.weights.append(torch.stack([layer.weight.detach().T for layer in layers]))  # [M, inputs, outputs]
            self.biases.append(torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, pieces: Tensor) -> Tensor:
        """Logits (M, B, |Ψ|) of pieces (M, B, n, 3, h, w)."""
        count, batch, num_pieces = pieces.shape[:3]
        folded = pieces.flatten(1, 2).transpose(0, 1).flatten(1, 2)  # [B · n, M · 3, h, w]
        maps = self.trunk(folded.contiguous(memory_format=torch.channels_last))
        features = maps.unflatten(1, (count, -1)).flatten(2).transpose(0, 1)  # [M, B · n, features]
        tiles = self._linear(0, features).relu().unflatten(1, (batch, num_pieces)).flatten(2)
        return self._linear(2, self._linear(1, tiles).relu())

    def _linear(self, layer: int, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[layer], inputs, self.weights[layer])


def _side_by_side(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer that does to each group of channels what each of these layers does to its own."""
    first, count = layers[0], len(layers)
    joint: nn.Module
    with torch.device("meta"):  # draws no initial weights
        if isinstance(first, nn.Conv2d):
            joint = nn.Conv2d(
                count * first.in_channels,
                count * first.out_channels,
                first.kernel_size,  # type: ignore[arg-type]  # pairs
                first.stride,  # type: ignore[arg-type]
                first.padding,  # type: ignore[arg-type]
                groups=count * first.groups,
            )
        elif isinstance(first, nn.BatchNorm2d):
            joint = nn.BatchNorm2d(count * first.num_features)
        else:
            return first
    states = [layer.state_dict() for layer in layers]
    joined = {
        name: torch.cat([state[name] for state in states]) if value.ndim else value.clone()
        for name, value in states[0].items()
    }
    joint.load_state_dict(joined, assign=True)
    return joint


def one_program(kind: type[Vmapped] | type[Grouped], made: Sequence[_Run]) -> _Together:
    """Put runs into one program."""
    return _Together(made, kind([run.trainer.network for run in made]).to(made[0].trainer.device))


def _vmap(setting: Setting) -> Work:
    return _iterations(one_program(Vmapped, make_runs(setting)))


def _grouped(setting: Setting) -> Work:
    return _iterations(one_program(Grouped, make_runs(setting)))


def _iterations(program: _Together) -> Work:
    def work(iterations: int) -> None:
        for _ in range(iterations):
            program.iterate()

    return work


# Through Gymnasium


def _environment(setting: Setting) -> Work:
    env = gym.make("PermShuffle-v0", device=str(setting.device), **setting.overrides)
    env.reset(seed=setting.seed)
    return _steps(env, (), setting)


def _sync(setting: Setting) -> Work:
    return _vectorised("sync", {}, setting)


def _async(setting: Setting) -> Work:
    os.environ["OMP_NUM_THREADS"] = "1"  # the new processes read it when they load torch
    return _vectorised("async", {"context": "spawn"}, setting)


def _vectorised(mode: str, vector_kwargs: dict[str, Any], setting: Setting) -> Work:
    env = gym.make_vec(
        "PermShuffle-v0",
        num_envs=setting.count,
        vectorization_mode=mode,
        vector_kwargs=vector_kwargs,
        device=str(setting.device),
        **setting.overrides,
    )
    env.reset(seed=setting.seed)
    return _steps(env, (setting.count,), setting)


def _steps(env: gym.Env | gym.vector.VectorEnv, shape: tuple[int, ...], setting: Setting) -> Work:
    config, rng = setting.config, np.random.default_rng(setting.seed)

    def work(iterations: int) -> None:
        for action in rng.integers(config.num_groups, size=(iterations * config.actions_per_iteration, *shape)):
            env.step(action)

    return work


RIVALS: Mapping[str, Mapping[str, Rival]] = {
    "training": {
        "processes": Rival(_in_turn, apart=True),
        "in turn": Rival(_in_turn),
        "threads": Rival(_threads),
        "vmap": Rival(_vmap),
        "grouped": Rival(_grouped),
    },
    "gymnasium": {
        "processes": Rival(_environment, apart=True),
        "async": Rival(_async),
        "sync": Rival(_sync),
    },
}

if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
