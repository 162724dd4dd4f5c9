"""Figure C.1."""

import json

import numpy as np
import pytest

from experiments.paper import figure_c1
from permenv import ConfigurationError
from permenv.validation import validate
from tests.experiments.paper.helpers import is_a_picture, options
from tests.helpers import small_run

FEW = {"sizes": (2, 5), "draws": 3, "env": {"num_scenes": 40, "total_updates": 4}}


def test_the_deviation_is_compared_with_two_predictions(tmp_path, capsys):
    config = options(figure_c1.Config, tmp_path, **FEW)
    report = figure_c1.main(config)
    assert json.loads(config.out.read_text())["checkpoints"] == [1, 2, 3, 5, 6, 7, 8]
    assert [row["size"] for row in report["sizes"]] == [2, 5]
    for row in report["sizes"]:
        assert np.shape(row["mean"]) == np.shape(row["sd"]) == (2, 7)
        assert row["ratio"]["between samples"].value == pytest.approx(
            row["sd_all"] / row["predicted"]["between samples"]
        )
    assert is_a_picture(config.out.with_suffix(".png"))
    assert "| 5 | 0." in capsys.readouterr().out


def made_up(difficulties, samples, rng, permutations=50):
    """Draw e_x of samples whose chance of an error is drawn from `difficulties`, for each of 50 permutations."""
    return rng.binomial(permutations, difficulties(samples)) / permutations


@pytest.mark.parametrize("equal", [True, False])
def test_the_predictions_hold_on_made_up_data(equal):
    """Where samples are equally difficult both are right, else that of the variance between samples."""
    rng = np.random.default_rng(0)

    def difficulties(shape):
        return np.full(shape, 0.6) if equal else rng.uniform(0.2, 1.0, shape)

    measured = made_up(difficulties, (20_000, 30), rng).mean(axis=1).var(ddof=1)  # E of many sets of 30
    found = figure_c1.predicted_variances(made_up(difficulties, 20_000, rng), 50, 30)
    assert found["between samples"] == pytest.approx(measured, rel=0.05)
    if equal:
        assert found["binomial"] == pytest.approx(measured, rel=0.05)
    else:
        assert found["binomial"] == pytest.approx(0.6 * 0.4 / 50 / 30, rel=0.02)
        assert measured > 5 * found["binomial"]


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
