"""Everything in one command."""

import json

import pytest

from experiments.benchmarks import all as everything
from permenv import ConfigurationError
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    """Return a function that makes small options."""

    def make(**changes):
        numbers = small(total_updates=1, free_iterations=0)
        given = {"preset": "tiny", "task": "spatial", "device": "cpu", "env": numbers, "only": ("parts",)}
        return everything.Config(**{**given, "out": tmp_path / "out", **changes})

    return make


@pytest.mark.ci
def test_all_of_it_is_measured_on_a_cpu(options):
    config = options()
    summary = everything.main(config)
    assert json.loads((config.out / "summary.json").read_text()) == summary
    assert {name: command["ended"] for name, command in summary["done"].items()} == dict.fromkeys(
        ("speed", "dry-run", "training"), "well"
    )
    for name in ("speed", "dry-run", "summary"):
        assert json.loads((config.out / f"{name}.json").read_text())["machine"]["device"] == "cpu"
    assert summary["iteration"]["speed"]["ratio"] > 0
    assert summary["training"]["updates"] == 1
    assert (config.out / "training" / "summary.json").is_file()
    with pytest.raises(ConfigurationError, match="is not empty; name a new folder"):
        everything.main(config)


def test_a_gpu_gets_the_papers_sizes_on_the_joint_task_and_the_tiny_preset(options, tmp_path):
    commands = everything._commands(everything.Config(device="cuda", out=tmp_path))
    assert list(commands) == ["speed", "dry-run", "speed-tiny", "dry-run-tiny", "training"]
    assert all("cuda" in command and "spatiotemporal" in command for command in commands.values())
    assert "paper" in commands["training"]
    assert "env" in commands["speed-tiny"]
    assert "compiled" not in commands["speed-tiny"]  # takes longer than all else
    assert "env" not in commands["speed"]  # a block takes hours
    assert list(everything._commands(options())) == ["speed", "dry-run", "training"]


def test_what_has_no_time_left_is_not_begun(options, capsys):
    config = options(minutes=0.1, training_minutes=0.0)
    with pytest.raises(SystemExit):
        everything.main(config)
    done = json.loads((config.out / "summary.json").read_text())["done"]
    assert [done[name]["ended"] for name in ("speed", "dry-run")] == ["no time was left"] * 2
    assert "failed: speed, dry-run, training" in capsys.readouterr().err


def test_a_run_without_an_update_has_no_progress(tmp_path):
    assert everything._progress(tmp_path) is None
    assert everything._predicted_and_measured(tmp_path) == {}


def test_the_training_is_part_of_the_time(options):
    with pytest.raises(ConfigurationError, match="must be at least --training-minutes"):
        options(minutes=1.0)
