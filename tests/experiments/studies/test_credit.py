"""The study of the credit in the joint task."""

import json

import pytest

from experiments.studies import credit
from tests.experiments.studies.helpers import options


@pytest.mark.ci
def test_it_compares_both_credits_with_random_permutations(tmp_path, capsys):
    config = options(credit.Config, tmp_path, seeds=1, env={"total_updates": 8, "learning_rate": 0.3})
    report = credit.main(config)
    assert json.loads(config.out.read_text()) == report
    assert list(report["final_error"]) == ["own", "sum", "random"]
    for row in report["final_error"].values():
        assert row["mean"]["mean"] == pytest.approx((row["spatial"]["mean"] + row["temporal"]["mean"]) / 2)
    assert "own     spatial" in capsys.readouterr().out


def test_the_noise_of_two_rewards_that_are_opposites():
    rewards = [9.0, 9.0, 1.0, -1.0, 1.0, -1.0]  # the first third is left out
    noise = credit._noise([[{"rewards": {"spatial": r, "temporal": -r}} for r in rewards]])
    expected = {"sd of the spatial reward": 1, "sd of the temporal reward": 1}
    assert noise == pytest.approx({**expected, "sd of the sum": 0, "correlation of the two": -1})
