"""Table F.1."""

import json

import numpy as np
import pytest

from experiments import across_runs
from experiments.paper import table_f1
from permenv import CheckpointError
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "table.json"}
        return table_f1.Config(
            **{"seeds": 2, "processes": 0, "env": small(num_scenes=30, total_updates=3), **files, **changes}
        )

    return make


def test_it_measures_three_policies_at_every_checkpoint(options, tmp_path, capsys):
    report = table_f1.main(options())
    assert report == json.loads((tmp_path / "table.json").read_text()) | {"paper": table_f1.PAPER}
    assert len(report["accuracies"]) == 2
    for run in report["accuracies"]:
        assert list(run) == ["20%", "40%", "60%", "80%", "100%"]
        for point in run.values():
            for length in ("epoch", "quarter"):
                assert set(point[length]) == {*table_f1.KINDS, *map(table_f1._pool, table_f1.POOLS)}
                assert all(0 <= accuracy <= 1 for accuracy in point[length].values())
    ratios = [
        point["epoch"]["policy"] / point["epoch"]["random"] for run in report["accuracies"] for point in run.values()
    ]
    assert report["table"]["epoch"]["policy"]["mean"] == pytest.approx(np.mean(ratios))
    assert report["table"]["epoch"]["policy"]["sd"] == pytest.approx(np.std(ratios, ddof=1))
    best = report["best_pools"]["quarter"]["checkpoints"]["40%"]
    means = {
        kind: np.mean([run["40%"]["quarter"][kind] for run in report["accuracies"]])
        for kind in ("random", "easiest 10%", "easiest 30%", "easiest 50%", "easiest 70%", "easiest 90%")
    }
    assert best["ratio"] == pytest.approx(max(means.values()) / means["random"])
    assert means[best["pool"]] == max(means.values())
    printed = capsys.readouterr().out
    assert "| policy | (125 ± 14)% |" in printed
    assert "best constant pool of each checkpoint, one epoch: " in printed


def test_an_epoch_is_a_pass_over_the_training_samples(options):
    config = options()
    episode, quarter, env = table_f1._with_epochs(config.environment)
    task = env.unwrapped.tasks["spatial"]
    samples = len(task.data) - config.env.num_validation
    assert env.unwrapped.config.iterations_per_update == samples // config.env.batch_size
    assert env.unwrapped.config.total_updates == episode + quarter


@pytest.mark.ci
def test_a_policy_learned_across_runs(options, tmp_path):
    env = small(num_scenes=30, total_updates=3)
    across_runs.main(across_runs.Config(env=env, episodes=2, processes=0, out=tmp_path / "across"))
    report = table_f1.main(options(policy=tmp_path / "across", seeds=1))
    assert report["policy"] == "across"


def test_a_folder_without_a_policy_is_refused(options, tmp_path):
    with pytest.raises(CheckpointError, match=r"experiments/across_runs\.py"):
        table_f1.main(options(policy=tmp_path))
    assert not (tmp_path / "runs").exists()
