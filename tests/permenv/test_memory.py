"""Memory: the estimate is a lower bound of what runs need, and a setting that cannot fit is refused before any work."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import permenv.networks
from permenv import ConfigurationError, memory
from permenv.memory import estimate
from tests.helpers import PARTS, ROOT, SMALL, small_run
from tests.permenv.data.helpers import fail_to_reach
from tests.permenv.series_task import SeriesTask

CPU = torch.device("cpu")
AT_MOST = 2.5
"""A run needs at least what is estimated, and at most this many times as much."""


def sizes_of(task, preset="tiny", **overrides):
    """Return the estimate in bytes, by what takes the memory."""
    return {part.name: part.size for part in estimate(task, permenv.make_config(preset, task, **overrides), CPU)}


# The estimate


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("task", PARTS)
def test_the_weights_are_counted_exactly(task, ema_decay):
    run = small_run(task, ema_decay=ema_decay)
    (counted, *_) = [part.size for part in estimate(task, run.config, CPU) if part.name.startswith("the weights")]
    number = sum(parameter.numel() for parameter in run.trainer.network.parameters())
    assert counted == 4 * number * (4 if ema_decay else 3)  # weights, gradients, momentum, averages


@pytest.mark.parametrize("task", PARTS)
def test_what_a_run_keeps_is_counted_exactly(task):
    run = small_run(task)
    sizes = {part.name: part.size for part in estimate(task, run.config, CPU)}
    assert sizes["the pieces of X_val"] == sum(pieces.nbytes for pieces in run._validation_pieces.values())
    kept = run.validation.values()
    assert sizes["the matrix s"] == sum(found.ratios.nbytes + found.correct.nbytes for found in kept)


def test_activations_of_bf16_take_half():
    name = "the activations of a mini-batch"
    full, half = (sizes_of("spatial", precision=precision)[name] for precision in ("float32", "bf16"))
    pixels = 64 * 9 * 4 * 3 * 32**2  # the pieces are float32 in either case
    assert full - pixels == 2 * (half - pixels)


def test_the_presets_need_little():
    for preset, most in {"nano": 5e7, "tiny": 2e8, "paper": 2e10}.items():
        assert all(sum(sizes_of(task, preset).values()) < most for task in PARTS)


@pytest.mark.parametrize("side", [16, 32, 33, 75])
@pytest.mark.parametrize("backbone", permenv.networks.BACKBONES)
def test_the_layers_of_a_trunk_are_followed_exactly(backbone, side):
    trunk, outputs = permenv.networks.BACKBONES[backbone]().eval(), []
    for layer in trunk:
        layer.register_forward_hook(lambda layer, _, output: outputs.append((type(layer).__name__, output.numel())))
    try:
        features = trunk(torch.zeros(1, 3, side, side)).numel()
    except RuntimeError:  # too small a piece
        assert memory._trace(backbone, side).features == 0
        return
    traced = memory._trace(backbone, side)
    assert traced.features == features
    assert traced.activations == sum(number for name, number in outputs if name != "ReLU")


@pytest.mark.usefixtures("registry")
def test_what_belongs_to_the_user_is_left_out():
    assert sizes_of("spatial", backbone=torch.nn.Identity)["the activations of a mini-batch"] > 0  # the pieces
    permenv.register_task("series", SeriesTask)
    assert sizes_of("series")["the pieces of X_val"] == 0


MEASURE = """
import json, sys
from pathlib import Path
import gymnasium as gym, torch
import permenv

def train(**numbers):
    env = gym.make("PermShuffle-v0", task=sys.argv[1], device="cpu", **numbers)
    env.reset(seed=0)
    run = env.unwrapped.run
    for _ in range(2):
        run.iterate()
    run.validate()
    return env.unwrapped.config

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
small, numbers = map(json.loads, sys.argv[2:])
train(**small)  # what the libraries take
before = peak()
config = train(**numbers)
print(json.dumps(peak() - before))
"""


@pytest.mark.ci
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells the peak of one program")
@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("spatial", {"fc6": 512, "fc7": 8192}),
        ("spatial", {"batch_size": 1024}),
        ("spatial", {"batch_size": 1024, "precision": "float32"}),
        ("spatial", {"num_scenes": 2000, "num_validation": 1500}),
        ("spatial", {"preset": "paper", "num_scenes": 20, "num_validation": 4, "batch_size": 24}),
        ("temporal", {"temporal_fc6": 1000, "lstm": 3000}),
        ("spatiotemporal", {"batch_size": 512}),
    ],
)
def test_a_run_needs_what_is_estimated_and_at_most_two_and_a_half_times_as_much(task, overrides):
    small = {key: value for key, value in SMALL.items() if key not in ("device", "cell_size", "piece_size")}
    numbers = {**small, "fc6": 128, "fc7": 512, "temporal_fc6": 256, "lstm": 256, "samples_per_action": 1, **overrides}
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, task, json.dumps(small), json.dumps(numbers)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    needed, estimated = int(result.stdout), sum(sizes_of(task, **{"preset": "tiny", **numbers}).values())
    assert estimated > 2e8  # or what else a process does would count
    assert estimated <= needed <= AT_MOST * estimated


# What is refused

HUGE = 10**9


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("spatial", {"batch_size": HUGE}, r"is for the activations of a mini-batch: lower batch_size=1000000000, or"),
        ("spatial", {"cell_size": 10**5}, r"is for the images of X_val, .*: lower cell_size=100000, or"),
        ("spatial", {"piece_size": HUGE, "cell_size": HUGE}, r"lower piece_size=1000000000, or"),
        ("spatial", {"num_validation": HUGE}, r"is for the pieces of X_val: lower num_validation=1000000000, or"),
        ("spatial", {"num_permutations": HUGE}, r"is for the weights, .*: lower num_permutations=1000000000, or"),
        ("spatial", {"fc6": HUGE}, r"is for the weights, their gradients, momentum and averages: lower fc6=1000000000"),
        (
            "spatial",
            {"fc7": HUGE},
            r"need at least [\d,]+ GB of memory, but there are [\d.,]+ GB.*lower fc7=1000000000",
        ),
        (
            "spatial",
            {"num_scenes": HUGE},
            r"GB of disk space .*is for the embedded scenes: lower num_scenes=1000000000",
        ),
        ("temporal", {"lstm": HUGE}, r"lower lstm=1000000000, or temporal_fc6=16"),
        ("temporal", {"temporal_fc6": HUGE}, r"lower temporal_fc6=1000000000, or lstm=16"),
        ("temporal", {"clip_frames": HUGE}, r"is for the embedded clips: lower clip_frames=1000000000"),
        ("temporal", {"num_clips": HUGE}, r"is for the embedded clips: lower num_clips=1000000000"),
        ("spatiotemporal", {"lstm": HUGE}, r"lower lstm=1000000000"),
        ("spatiotemporal", {"num_scenes": HUGE}, r"lower num_scenes=1000000000"),
        ("spatial", {"batch_size": 2**62}, r"lower batch_size=4611686018427387904"),
    ],
)
def test_a_setting_that_cannot_fit_is_refused_before_any_work(task, overrides, message, cache):
    for make in (gym.make, lambda _, **options: permenv.Pretraining.create(**options)):
        with pytest.raises(ConfigurationError, match=message) as error:
            make("PermShuffle-v0", **{**SMALL, "task": task, **overrides})
        assert "\n" not in str(error.value)
    assert not list(cache.iterdir())


def test_the_limit_is_what_the_machine_has(make_env, monkeypatch):
    needed = sum(part.size for part in estimate("spatial", make_env().unwrapped.config, CPU))
    monkeypatch.setattr(memory, "_memory_of", lambda device: needed)
    make_env()
    monkeypatch.setattr(memory, "_memory_of", lambda device: needed - 1)
    with pytest.raises(ConfigurationError, match="need at least"):
        make_env()


def test_embedded_data_need_room_on_the_disk_or_in_memory(make_env, monkeypatch):
    rendered = 60 * 3 * 54**2
    monkeypatch.setattr(memory, "_memory_of", lambda device: rendered * 400)
    monkeypatch.setattr(memory, "_disk_of_cache", lambda: 0)
    make_env()
    with pytest.raises(ConfigurationError, match="lower num_scenes=24060"):
        make_env(num_scenes=24_060)
    monkeypatch.setattr(memory, "_disk_of_cache", lambda: rendered * 402)
    make_env(num_scenes=24_060, images=torch.zeros(60, 54, 54, 3, dtype=torch.uint8))  # which are not rendered
    memory.check_memory("spatial", make_env().unwrapped.config, CPU, {})


def test_a_machine_has_memory_and_a_disk(monkeypatch, tmp_path):
    assert 2**28 < memory._memory_of(CPU) < 2**50
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "not" / "there" / "yet"))
    assert memory._disk_of_cache() > 2**20


def test_the_cache_need_not_be_in_reach(monkeypatch, tmp_path, make_env, caplog):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "home" / "cache"))
    fail_to_reach(monkeypatch, tmp_path / "home")
    assert memory._disk_of_cache() > 2**20
    make_env(num_scenes=61, scenes_seed=987).reset(seed=0)  # which no other test has in memory
    assert "is made in memory" in caplog.text
