"""Figure 6."""

import json

import numpy as np
import pytest

from experiments.paper import figure_6
from tests.experiments.paper.helpers import options

FEW = {"num_scenes": 40, "num_clips": 16, "total_updates": 2}


def test_the_errors_of_the_joint_task_are_compared(tmp_path, saved_figure, capsys):
    config = options(figure_6.Config, tmp_path, env=FEW)
    report = figure_6.main(config)
    assert json.loads(config.out.read_text())["validated"] == [0, 2, 4]
    for name in ("S+T+P", "S+T"):
        row = report["networks"][name]
        assert np.shape(row["deciles"]) == (2, 3, 11)
        assert np.shape(row["by_seed"]["error"]) == (2, 2)
        assert 0 <= row["error_end"].value <= 1
        assert len(row["by_seed"]["correlation"]) == 2
        assert -1 <= row["correlation"].value <= 1
    first, second = (np.array(report["networks"][name]["by_seed"]["error"])[:, 1] for name in ("S+T+P", "S+T"))
    assert report["differences"]["error_end"].value == pytest.approx((first - second).mean())
    *axes, _ = saved_figure(config.out.with_suffix(".png")).axes
    assert [axis.get_title(loc="left") for axis in axes] == list(report["networks"])
    for axis in axes:
        rows = axis.images[0].get_array()
        assert rows.shape[1] == 3, "a column a validation"
        assert (np.diff(rows.mean(axis=1)) <= 0).all()
        assert rows.max() > 0
    assert "| S+T+P | 0." in capsys.readouterr().out


@pytest.mark.parametrize("of_samples", [0.0, 0.4], ids=["samples alike", "samples of other difficulty"])
@pytest.mark.parametrize("of_permutations", [0.0, 0.4], ids=["permutations alike", "permutations of other difficulty"])
def test_the_noise_of_few_samples_is_not_a_difference_between_permutations(of_samples, of_permutations):
    rng, samples = np.random.default_rng(0), 40
    variances = []
    for _ in range(300):
        effects = rng.uniform(-0.5, 0.5, (100, 1)) * of_permutations + rng.uniform(-0.5, 0.5, samples) * of_samples
        correct = rng.random(effects.shape) < 0.5 + effects
        variances.append((1 - correct.mean(axis=1)).var(ddof=1) - figure_6.noise_variance(correct))
    error = np.std(variances) / len(variances) ** 0.5
    assert np.mean(variances) == pytest.approx(of_permutations**2 / 12, abs=3 * error)


def test_the_deviation_is_that_without_the_noise():
    errors = np.array([[0.1, 0.5, 0.9], [0.5, 0.5, 0.5]])
    assert figure_6.deviation(errors, np.array([0.12, 0.01])) == pytest.approx([0.2, 0])


def test_the_correlation_is_of_ranks():
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    assert figure_6.correlation(shares, np.array([0.9, 0.5, 0.4, 0.1])) == pytest.approx(-1)
    assert figure_6.correlation(shares, np.array([0.1, 0.2, 0.3, 100])) == pytest.approx(1)
    assert figure_6.correlation(shares, np.array([0.5, 0.5, 0.5, 0.5])) == 0


def test_rows_are_sorted_by_their_mean_over_time():
    errors = np.array([[0.1, 0.9, 0.5], [0.2, 0.1, 0.6]])  # [validations, permutations]
    assert figure_6.sorted_rows(errors).tolist() == [[0.5, 0.6], [0.9, 0.1], [0.1, 0.2]]
