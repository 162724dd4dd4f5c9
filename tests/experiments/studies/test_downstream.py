"""What the features are worth, with and without a policy."""

import json

import cv2
import numpy as np
import pytest

from experiments import across_runs
from experiments.common.sweeps.sweep import JobError
from experiments.studies import downstream
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "downstream.json"}
        return downstream.Config(
            **{"seeds": 2, "processes": 0, "env": small(total_updates=2, num_scenes=120), **files, **changes}
        )

    return make


@pytest.mark.ci
def test_it_evaluates_untrained_at_half_and_at_the_end(options, tmp_path, capsys):
    across_runs.main(
        across_runs.Config(env=small(total_updates=2, num_scenes=120), episodes=2, processes=0, out=tmp_path / "across")
    )
    report = downstream.main(options(policies=(tmp_path / "across",)))
    assert report == json.loads((tmp_path / "downstream.json").read_text())
    assert list(report["policies"]) == ["random", "curriculum", "across"]
    for name, columns in report["policies"].items():
        assert columns["nearest_untrained_more"] == columns["linear_untrained_more"] == 0  # the same networks
        for run in report["runs"][name]:
            assert list(run) == ["untrained", "half", "end"]
            assert all(0 <= run[moment][measure] <= 1 for moment in run for measure in ("nearest", "linear", "error"))
    assert report["policies"]["random"]["linear_end_more"] == 0
    assert "| curriculum |" in capsys.readouterr().out


def test_images_without_labels_are_refused_before_training(options, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    with pytest.raises(JobError, match="has no labels: name a folder with a subfolder for each class"):
        downstream.main(options(images=tmp_path))


def test_an_evaluation_leaves_the_run_as_it_was(options):
    config = options()
    env = config.environment.make()
    env.reset(seed=0)
    base_env, twin = env.unwrapped, env.unwrapped.fork()
    downstream._evaluate(base_env, downstream._queries(config.environment, base_env, None))
    assert base_env.run.iterate() == twin.run.iterate()
