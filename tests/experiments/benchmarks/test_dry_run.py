"""The prediction of memory and time."""

import dataclasses
import json
import math

import pytest
import torch

from experiments.benchmarks import check, dry_run, prediction
from experiments.benchmarks.limits import Limits
from permenv import ConfigurationError, DataError
from tests.experiments.helpers import small

CPU = torch.device("cpu")
GPU = Limits(flops_per_second=1e14, bytes_per_second=1e12, seconds_per_operation=1e-9)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Take the rates of this machine as known, and do not look at its libraries."""
    monkeypatch.setattr(prediction, "measure_limits", lambda device, dtype: Limits(1e11, 1e10, 1e-6))
    monkeypatch.setattr(dry_run, "memory_of_libraries", lambda device: 10**8)
    monkeypatch.setattr(prediction, "_REPEATS", 2)
    monkeypatch.setattr(prediction, "_SECONDS", 0.05)


def test_memory_and_least_time_grow_linearly_with_the_batch():
    found = [
        prediction.predict("spatial", small(batch_size=size), CPU, base=0, data=0, elsewhere=GPU)
        for size in (100, 200, 300)
    ]
    memory = [each.host_memory["a mini-batch, or what validation needs"] for each in found]
    assert memory[2] - memory[1] == pytest.approx(memory[1] - memory[0])
    seconds = [each.iteration_seconds for each in found]
    assert seconds[2] - seconds[1] == pytest.approx(seconds[1] - seconds[0], rel=0.1)
    assert seconds[0] < seconds[1]
    flops = [sum(part["flops"] for part in each.parts.values()) for each in found]
    assert flops[2] == pytest.approx(3 * flops[0], rel=1e-6)


def test_what_is_predicted_without_extrapolation_is_what_is_measured():
    """The larger of the two mini-batches is the one asked for."""
    numbers = small(batch_size=4, num_validation=4)
    run = prediction.new_run(numbers, prediction.tasks_of_noise(numbers, CPU, "spatial"))
    for _ in range(2):
        run.iterate()
    operations, _ = prediction.count_iteration(run)
    found = prediction.predict("spatial", numbers, CPU, base=0, data=0)
    assert found.sizes == (2, 4)
    assert sum(part["flops"] for part in found.parts.values()) == sum(each.flops for each in operations)
    pieces, weights = (
        found.host_memory[name] for name in ("the pieces of X_val", "weights, their gradients, momentum and averages")
    )
    assert pieces == sum(each.nbytes for each in run._validation_pieces.values())
    held = [*run.trainer.network.parameters()] * 3 + [*run.trainer.eval_network.parameters()]
    buffers = [*run.trainer.network.buffers(), *run.trainer.eval_network.buffers()]
    assert weights == sum(each.nbytes for each in (*held, *buffers))


def test_the_whole_run_is_counted_as_an_episode_goes(make_env):
    numbers = small(total_updates=3, free_iterations=2, iterations_per_update=4)
    found = prediction.predict("spatial", numbers, CPU, base=0, data=0, elsewhere=GPU)
    env = make_env(**{**numbers.as_dict(), "num_scenes": 60})
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _ = env.step(0)
    run = env.unwrapped.run
    assert (found.iterations, found.validations) == (run.iteration, len(run.records))
    assert found.run_seconds == pytest.approx(
        run.iteration * found.iteration_seconds + len(run.records) * found.validation_seconds
    )


def test_a_report_has_the_device_and_all_numbers(tmp_path, capsys):
    out = tmp_path / "figures.json"
    report = dry_run.main(dry_run.Config(task="spatiotemporal", device="cpu", env=small("spatiotemporal"), out=out))
    assert json.loads(out.read_text()) == report
    assert report["machine"]["device"] == "cpu"
    assert report["iteration_seconds"] > 0
    assert report["host_bytes"] == sum(report["host_memory"].values()) > 10**8
    scenes, clips = 80 * 3 * 54**2, 16 * 10 * 3 * 18**2
    assert report["host_memory"]["pixels of the data"] == scenes + clips
    assert "uncertainty: on a CPU seconds within" in capsys.readouterr().out


def test_another_device_is_predicted_from_its_rates_alone(capsys):
    slow, fast = (
        dry_run.main(dry_run.Config(device="cpu", env=small(), peak_tflops=peak, bandwidth=1.0)) for peak in (1e-4, 1.0)
    )
    assert slow["iteration_seconds"] > 2 * fast["iteration_seconds"]
    assert slow["host_bytes"] == fast["host_bytes"]
    assert "least seconds that these rates allow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"peak_tflops": 600}, "give both or neither"),
        ({"peak_tflops": 0.0, "bandwidth": 2.0}, "--peak-tflops 0.0: must be more than 0"),
    ],
)
def test_rates_that_describe_no_device_are_refused(rates, message):
    with pytest.raises(ConfigurationError, match=message):
        dry_run.Config(**rates)


def test_files_of_a_folder_are_counted_and_not_read(tmp_path, monkeypatch):
    (tmp_path / "class").mkdir()
    for number in range(5):
        (tmp_path / "class" / f"{number}.jpg").touch()
    config = dry_run.Config(images=tmp_path, env=small())
    needed = 5 * 3 * 54**2
    assert dry_run._data_bytes(config, CPU) == needed
    many = dataclasses.replace(config, env=small(cell_size=10**6))
    assert dry_run._data_bytes(many, CPU) == 0  # kept as JPEG
    for free, taken in ((2 * needed, needed), (2 * needed - 2, 0)):
        monkeypatch.setattr(dry_run, "free_bytes", lambda _, free=free: free)
        assert dry_run._data_bytes(config, torch.device("cuda")) == taken
    with pytest.raises(DataError, match="there is no such folder"):
        dry_run._data_bytes(dataclasses.replace(config, images=tmp_path / "away"), CPU)


@pytest.mark.ci
def test_predictions_are_compared_with_measurements(monkeypatch, capsys):
    cases = {"small": ("tiny", "spatial", {**{"batch_size": 8}, **_numbers()})}
    found = check.compare(CPU, prediction.memory_of_this_process(), cases)
    for quantity in found["cases"]["small"].values():
        assert quantity["ratio"] == pytest.approx(quantity["predicted"] / quantity["measured"])
        assert math.isfinite(quantity["ratio"])
    ratios = {what: quantity["ratio"] for what, quantity in found["cases"]["small"].items()}
    assert found["largest_factor"] == {what: max(ratio, 1 / ratio) for what, ratio in ratios.items()}
    assert "largest factor" in capsys.readouterr().out


def _numbers():
    return {"cell_size": 18, "piece_size": 16, "num_permutations": 24, "num_groups": 4, "num_validation": 12}
