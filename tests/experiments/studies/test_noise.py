"""The study of signal and noise in the reward."""

import json

import numpy as np
import pytest

from experiments.studies import noise
from permenv import ConfigurationError
from tests.experiments.studies.helpers import options


def test_it_measures_four_rewards(tmp_path, capsys):
    config = options(noise.Config, tmp_path, seeds=1, moments=(1,), repeats=2)
    report = noise.main(config)
    assert json.loads(config.out.read_text())["rewards"] == report["rewards"]
    assert len(report["rewards"]) == 4
    assert report["rewards"]["cross-entropy, live"]["noise_sd"] > 0
    assert "| cross-entropy, averaged |" in capsys.readouterr().out


def test_the_rewards_of_a_moment_have_a_row_for_each_group(tmp_path):
    environment = options(noise.Config, tmp_path, env={"total_updates": 4}).environment
    tables = noise._measure((1, 3), 2, 0, environment)
    assert len(tables) == 2
    for table in tables:
        for values in table.values():
            assert np.shape(values) == (4, 2)
    assert tables[1]["cross-entropy, averaged"] != tables[1]["cross-entropy, live"]


def test_an_update_that_diverges_has_no_reward(tmp_path):
    run = options(noise.Config, tmp_path, env={"learning_rate": 1e12}).environment.pretraining(0)
    with pytest.raises(RuntimeError, match="seed 0 diverged after iteration 0: nothing to measure"):
        noise._rewards(run, np.zeros((2, 4, 1), dtype=int), 1)


def test_the_same_choices_and_data_give_the_same_reward(tmp_path):
    run = options(noise.Config, tmp_path).environment.pretraining(0)
    chosen = np.zeros((2, 4, 1), dtype=int)
    first = noise._rewards(run, chosen, 1)
    assert noise._rewards(run, chosen, 1) == first
    assert noise._rewards(run, chosen, 2) != first
    assert run.iteration == 0


def test_noise_and_signal_are_told_apart():
    rng = np.random.default_rng(0)
    tables = [
        moment + 2 * rng.standard_normal((200, 1)) + 4 * rng.standard_normal((200, 5)) for moment in (-10.0, 0.0, 10.0)
    ]
    figures = noise.signal_to_noise(tables)
    assert figures["noise_sd"] == pytest.approx(4, rel=0.05)
    assert figures["signal_sd"] == pytest.approx(2, rel=0.15)
    assert figures["ratio"] == pytest.approx(1 / 4, rel=0.3)
    assert figures["updates"] == pytest.approx(1 / figures["ratio"])


def test_what_data_change_for_all_groups_alike_is_no_difference_between_groups():
    rng = np.random.default_rng(1)
    shape = (10, 5)
    found = []
    for _ in range(400):
        data, rest = 8 * rng.standard_normal((1, shape[1])), rng.standard_normal(shape)
        found.append([noise.signal_to_noise([data + groups + rest]) for groups in (0, rng.standard_normal((10, 1)))])
    without, with_signal = ([row[place] for row in found] for place in (0, 1))
    assert np.mean([row["signal_sd"] ** 2 for row in with_signal]) == pytest.approx(1, rel=0.1)
    assert np.mean([row["p"] < 0.05 for row in without]) == pytest.approx(0.05, abs=0.03)
    assert np.mean([row["p"] < 0.05 for row in with_signal]) > 0.95
    noises = [row["noise_sd"] ** 2 for row in without]
    assert np.mean(noises) == pytest.approx(8**2 + 1, rel=0.1)


def test_groups_with_the_same_mean_have_no_signal():
    figures = noise.signal_to_noise([np.array([[0.0, 1.0], [1.0, 0.0]])])
    assert figures["ratio"] == 0
    assert figures["updates"] is None


@pytest.mark.parametrize("moments", [(0,), (1, 1), (2, 1), (2,)])
def test_moments_that_do_not_fit_are_refused(tmp_path, moments):
    config = options(noise.Config, tmp_path, moments=moments)
    with pytest.raises(ConfigurationError, match=r"--moments .*ascending updates from 1 to 1"):
        noise.main(config)


def test_too_few_repetitions_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="--repeats 1: noise is measured from at least 2"):
        noise.main(options(noise.Config, tmp_path, moments=(1,), repeats=1))


def test_a_run_that_diverges_is_an_error(tmp_path):
    environment = options(noise.Config, tmp_path, env={"learning_rate": 1e30}).environment
    with pytest.raises(RuntimeError, match="seed 0 diverged in update 1"):
        noise._measure((1,), 2, 0, environment)
