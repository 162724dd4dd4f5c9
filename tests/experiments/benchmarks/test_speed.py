"""The benchmark of one run."""

import json
import shutil

import pytest
import torch

from experiments.benchmarks import speed
from experiments.benchmarks.noise import new_run, tasks_of_noise
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    """Return a function that makes small options."""
    numbers = {"device": "cpu", "naive_pairs": 40, "repeats": 1, "blocks": 2, "out": tmp_path / "figures.json"}

    def make(*which, **changes):
        return speed.Config(only=which, env=small(free_iterations=0, **changes), **numbers)

    return make


def test_naive_and_exact_validation_agree(options):
    report = speed.main(options("validation"))
    for task in ("spatial", "temporal"):
        found = report["validation"][task]
        assert found["ratio"] > 0
        assert found["pairs"] == 24 * 12
        assert found["largest_ratio_difference"] < 1e-5


def test_naive_validation_does_not_depend_on_the_callers_state(options):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = speed.main(options("validation"))
    assert all(found["largest_ratio_difference"] < 1e-5 for found in report["validation"].values())


def test_steps_are_compared_with_the_loop_and_with_each_task_alone(options, capsys):
    report = speed.main(options("step", "joint"))
    assert json.loads(options().out.read_text()) == report
    assert list(report["step"]["images_per_second"]) == ["loop float32", "folded float32", "folded bf16"]
    assert list(report["joint"]["seconds"]) == ["spatial", "temporal", "joint"]
    assert report["joint"]["ratio_joint_to_sum"] > 0
    assert "folded bf16" in capsys.readouterr().out


def test_the_loop_trains_as_the_folded_network(options):
    numbers = options(precision="float32", ema_decay=0.0).env
    tasks = {"spatial": tasks_of_noise(numbers, torch.device("cpu"))["spatial"]}
    folded, loop = new_run(numbers, tasks), new_run(numbers, tasks)
    loop.trainer.network = speed._LoopNetwork(loop.trainer.network.eval())  # batch statistics are those of a tile
    folded.trainer.network.eval()
    for _ in range(3):
        assert loop.iterate() == pytest.approx(folded.iterate(), rel=1e-5)


def test_the_environment_is_compared_with_the_run_alone(options):
    report = speed.main(options("env"))
    found = report["env"]
    assert found["task"] == "spatial"
    assert {"samples_per_action=2", "samples_per_action=1"} <= set(found)
    assert found["samples_per_action=2"]["iterations_per_block"] == 2
    assert found["samples_per_action=2"]["validation_share"] > 0


def test_the_parts_of_an_iteration_sum_to_the_whole(options, capsys):
    found = speed.main(options("parts"))["parts"]
    assert found["seconds_by_part"] == pytest.approx(sum(part["seconds"] for part in found["parts"].values()))
    assert all(found["parts"][name]["seconds"] > 0 for name in ("draw and fetch", "forward", "backward", "optimiser"))
    assert found["parts"]["backward"]["flops"] > found["parts"]["forward"]["flops"] > 0
    roofline = found["roofline"]
    assert roofline["flops"] == sum(part["flops"] for part in found["parts"].values())
    assert roofline["least_bytes"] <= sum(part["bytes"] for part in found["parts"].values())
    assert 0 < roofline["share"] < 1
    assert "share of the roofline" in capsys.readouterr().out


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch, when it imports its compiler
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_trunk_trains_as_it_does_uncompiled(options, monkeypatch):
    losses = {}

    def iterate_and_keep(runs, repeats, device):
        losses.update({name: [run.iterate()["spatial"] for _ in range(4)] for name, run in runs.items()})
        return dict.fromkeys(runs, 1.0)

    monkeypatch.setattr(speed, "_seconds_of_iterations", iterate_and_keep)
    report = speed.main(options("compiled", precision="float32"))
    assert losses["compiled"][:3] == pytest.approx(losses["as it is"][1:], rel=1e-3)  # it has one iteration more
    assert report["compiled"]["seconds_of_first_iteration"]["compiled"] > 0


@pytest.mark.ci
def test_starts_and_ranks_are_processes_of_their_own(options):
    report = speed.main(options("start", "scaling"))
    assert report["start"]["seconds"] > report["start"]["seconds_after_import"] > 0
    assert list(report["scaling"]["images_per_second"]) == ["1", "2"]
    assert report["scaling"]["efficiency"]["1"] == 1
    assert "gloo" in report["scaling"]["ranks"]
