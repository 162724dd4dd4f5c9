"""The study of the tiny preset's defaults."""

import json

import numpy as np
import pytest

from experiments.studies import defaults
from permenv import ConfigurationError
from tests.experiments.studies.helpers import options


def test_it_compares_the_values_of_both_options(tmp_path, capsys):
    config = options(defaults.Config, tmp_path, samples_per_action=(2, 8), decays=(0.0, 0.5), env={"total_updates": 4})
    report = defaults.main(config)
    assert json.loads(config.out.read_text()) == report
    assert list(report["samples_per_action"]) == ["2", "8"]
    assert all(list(row) == ["random", "tilted"] for row in report["samples_per_action"].values())
    assert list(report["ema_decay"]) == ["0.0", "0.5"]
    assert "m =   8  random" in capsys.readouterr().out


def test_without_averaging_the_error_is_that_of_the_run(tmp_path):
    environment = options(defaults.Config, tmp_path, env={"total_updates": 4}).environment
    run = environment.pretraining(0, ema_decay=0.0)
    for _ in range(8):
        run.iterate()
    run.validate()
    averages = defaults._averages((0.0, 0.999), 0, environment)
    assert averages["0.0"]["error"] == run.records[-1].errors["spatial"]


def test_a_tilt_chooses_harder_groups(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(defaults, "train", lambda run, groups: chosen.append(groups) or True)
    environment = options(defaults.Config, tmp_path, env={"iterations_per_update": 500}).environment
    for tilt in (0.0, 1.0):
        defaults._final_error(2, tilt, 0, environment)
    untilted, tilted = np.concatenate(chosen[:2]), np.concatenate(chosen[2:])
    assert untilted.shape == tilted.shape == (1000, 4, 1)
    assert tilted.mean() < untilted.mean() - 0.1


@pytest.mark.parametrize("tilt", defaults._TILTS.values())
def test_a_network_that_diverges_has_the_worst_error(tmp_path, tilt):
    environment = options(defaults.Config, tmp_path, env={"learning_rate": 1e30}).environment
    assert defaults._final_error(2, tilt, 0, environment) == 1.0


def test_a_run_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--updates 3: .* at least 4 updates"):
        defaults.main(options(defaults.Config, tmp_path, env={"total_updates": 3}))
