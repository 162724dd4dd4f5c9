"""Figure C.1."""

import json

import numpy as np
import pytest

from experiments.paper import figure_c1
from permenv import ConfigurationError
from permenv.validation import validate
from tests.experiments.paper.helpers import options
from tests.helpers import small_run

FEW = {"sizes": (2, 5), "draws": 3, "env": {"num_scenes": 40, "total_updates": 4}}


def test_the_deviation_is_compared_with_two_predictions(tmp_path, saved_figure, capsys):
    config = options(figure_c1.Config, tmp_path, **FEW)
    report = figure_c1.main(config)
    assert json.loads(config.out.read_text())["checkpoints"] == [1, 2, 3, 5, 6, 7, 8]
    assert [row["size"] for row in report["sizes"]] == [2, 5]
    for row in report["sizes"]:
        assert np.shape(row["mean"]) == np.shape(row["sd"]) == (2, 7)
        assert row["ratio"]["between samples"]["ratio"] == pytest.approx(
            row["sd_all"] / row["predicted"]["between samples"]
        )
    left, right = saved_figure(config.out.with_suffix(".png")).axes
    for bars, row in zip(left.containers, report["sizes"], strict=True):
        assert bars[0].get_ydata() == pytest.approx(row["mean"][0])
    found = {line.get_label(): line.get_ydata().tolist() for line in right.lines}
    assert found["measured"] == [row["sd_all"] for row in report["sizes"]]
    assert found["predicted, binomial"] == [row["predicted"]["binomial"] for row in report["sizes"]]
    assert "| 5 | 0." in capsys.readouterr().out


def chances(kind, samples, rng):
    """Chances of an error for samples and 50 permutations, (samples, 50): their mean is 0.6."""
    differing = {"nothing": np.array(0.6), "samples": rng.uniform(0.2, 1.0, (samples, 1)), "permutations": _FIXED}
    return np.broadcast_to(differing[kind], (samples, 50))


_FIXED = np.linspace(0.2, 1.0, 50)[None]
"""Chances that differ between permutations, and are the same for all samples."""


@pytest.mark.parametrize("differing", ["nothing", "samples", "permutations"])
def test_the_predictions_on_made_up_data(differing):
    """The variance between samples is right; the binomial's only where samples and permutations are alike."""
    rng, size = np.random.default_rng(0), 10
    p = chances(differing, 40_000, rng)
    sample_errors = (rng.random(p.shape) < p).mean(axis=1)
    measured = sample_errors.reshape(-1, size).mean(axis=1).var(ddof=1)  # of E of 4000 sets
    found = figure_c1.predicted_variances(sample_errors[:1000], 50, size)
    assert found["between samples"] == pytest.approx(measured, rel=0.12)
    assert found["binomial"] == pytest.approx(0.6 * 0.4 / 50 / size, rel=0.02)
    by_the_law = p.mean(axis=1).var() + (0.6 * 0.4 - p.var()) / 50
    assert measured == pytest.approx(by_the_law / size, rel=0.1)
    ratio = measured / found["binomial"]
    assert {"nothing": 0.9 < ratio < 1.1, "samples": ratio > 5, "permutations": ratio < 0.85}[differing]


def test_the_error_of_a_set_is_the_mean_over_its_samples():
    run = small_run()
    task, chosen = run.tasks["spatial"], [1, 4, 7, 8]
    found = validate(
        run.trainer.eval_network, "spatial", task.pieces(run.held_out["spatial"][chosen]), task.permutations
    )
    sample_errors = 1 - run.validation["spatial"].correct.mean(axis=0)
    assert found.error == pytest.approx(sample_errors[chosen].mean())


def test_sets_of_a_size_share_no_sample():
    sets = figure_c1.draw_sets(60, (5, 20), 3, seed=4)
    assert {size: rows.shape for size, rows in sets.items()} == {5: (3, 5), 20: (3, 20)}
    for rows in sets.values():
        assert len(np.unique(rows)) == rows.size
    np.testing.assert_array_equal(figure_c1.draw_sets(60, (5, 20), 3, seed=4)[20], sets[20])


def test_numbers_out_of_range_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="--draws 1: must be at least 2"):
        figure_c1.main(options(figure_c1.Config, tmp_path, draws=1))
    with pytest.raises(ConfigurationError, match="--sizes"):
        figure_c1.main(options(figure_c1.Config, tmp_path, sizes=(0, 10)))
