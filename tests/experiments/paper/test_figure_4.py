"""Figure 4."""

import json

import numpy as np
import pytest

from experiments.paper import figure_4
from permenv import ConfigurationError, Validation
from tests.experiments.paper.helpers import learned_policy, options

EPISODE = {"total_updates": 3, "num_scenes": 40}


def validation(errors, ratios):
    """A validation of four samples, in which each permutation has such an error and such ratios."""
    correct = np.arange(4) >= 4 * np.array(errors)[:, None]
    return Validation(np.repeat(np.array(ratios)[:, None], 4, axis=1), correct, 0.0, 0.0)


def test_quarters_are_ordered_by_error_and_then_by_ratio():
    found = figure_4.quarters(validation([0, 1, 0.5, 1, 0.5, 0.25, 1, 0], [1.5, 0.9, 1, 0.6, 0.9, 1.2, 0.7, 1.6]))
    assert found.tolist() == [3, 1, 2, 0, 1, 2, 0, 3]


def test_the_shares_of_the_quarters_are_reported(tmp_path, saved_figure, capsys):
    config = options(figure_4.Config, tmp_path, env=EPISODE, start_error=1.0)
    report = figure_4.main(config)
    written = json.loads(config.out.read_text())["policies"]
    assert written == json.loads(json.dumps(report["policies"]))
    shares = np.array(report["policies"]["reinforce"]["shares"])
    assert shares.shape == (2, 3, 4)
    assert shares.sum(axis=2) == pytest.approx(1)
    assert report["policies"]["reinforce"]["updates_before"] == [0, 0]
    axes = saved_figure(config.out.with_suffix(".png")).axes
    means = [line.get_ydata() for axis in axes for line in axis.get_lines() if line.get_label() == "mean"]
    assert np.transpose(means) == pytest.approx(shares.mean(axis=0))
    assert "| REINFORCE | first 3 |" in capsys.readouterr().out


def test_the_network_is_trained_until_it_has_the_error(tmp_path):
    config = options(figure_4.Config, tmp_path, env={**EPISODE, "learning_rate": 0.1, "iterations_per_update": 20})
    first = figure_4._save_checkpoint(config.environment, 0, 1.0, tmp_path / "first")
    start = 0.95
    updates = figure_4._save_checkpoint(config.environment, 0, start, tmp_path / "second")
    assert first == 0
    assert updates > 0
    run = figure_4._run(None, start, 0, config.environment)
    assert run["errors"][0] <= start
    assert run["iterations"] == [20 * (updates + each) for each in range(3)]


def test_an_error_that_is_never_reached_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(figure_4, "MOST_BEFORE", 1)
    config = options(figure_4.Config, tmp_path, env=EPISODE)
    with pytest.raises(RuntimeError, match=r"after 1 updates and was never 0\.1; raise --start-error"):
        figure_4._save_checkpoint(config.environment, 0, 0.1, tmp_path / "never")


def test_start_errors_out_of_range_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--start-error 1\.5"):
        figure_4.main(options(figure_4.Config, tmp_path, start_error=1.5))


def test_the_picture_shows_each_seed_beside_the_mean():
    """Two seeds that go opposite ways have a mean like that of random permutations."""
    ways = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])[:, None] * np.ones((1, 5, 1))
    policies = {name: {"shares": ways.tolist()} for name in ("reinforce", "pool-policy")}
    picture = figure_4._figure({"policies": policies, "first_seed": 700})
    for place, first, second in ((0, 0.4, 0.1), (3, 0.1, 0.4)):  # the hardest and the easiest quarter
        drawn = {line.get_label(): line for line in picture.axes[place].get_lines()}
        for label, share in {"seed 700": first, "seed 701": second, "mean": 0.25}.items():
            assert list(drawn[label].get_ydata()) == pytest.approx([share] * 5)
        assert drawn["seed 700"].get_linewidth() < drawn["mean"].get_linewidth()
    agents = [picture.axes[place].get_ylabel().splitlines()[0] for place in (0, 4)]
    assert agents == ["REINFORCE", "learned across runs"]


@pytest.mark.ci
def test_a_policy_learned_across_runs_is_beside_it(tmp_path):
    policy = learned_policy(tmp_path / "across", **EPISODE)
    report = figure_4.main(options(figure_4.Config, tmp_path, env=EPISODE, start_error=1.0, seeds=1, policy=policy))
    assert list(report["policies"]) == ["reinforce", "across"]
    assert np.shape(report["policies"]["across"]["shares"]) == (1, 3, 4)
