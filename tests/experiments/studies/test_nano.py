"""The search for the nano preset."""

import json

import pytest

from experiments.studies import nano
from permenv import ConfigurationError, make_config
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "nano.json"}
        return nano.Config(**{"seeds": 1, "processes": 0, "env": small(total_updates=4), **files, **changes})

    return make


def test_it_compares_random_permutations_with_a_curriculum(options, tmp_path, capsys):
    report = nano.main(options(only=("start", "averaging 0.9")))
    assert report == json.loads((tmp_path / "nano.json").read_text())
    assert report["first_seed"] == 10
    for row in report["candidates"]:
        errors = row["errors"]
        assert row["random_at_end"] == pytest.approx(1 - errors["random"][0][-1])
        assert row["curriculum_at_end"] == pytest.approx((1 - errors["curriculum"][0][-1]) / row["random_at_end"])
        assert errors["random"][0][0] == errors["curriculum"][0][0]  # the same network and validation set
    assert "| averaging 0.9 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", nano.CANDIDATES)
def test_one_candidate_is_the_preset(name):
    changed = make_config("nano", **{**nano.Config.changes, **nano.CANDIDATES[name], "scenes_seed": 0})
    assert (changed == make_config("nano")) == (name == "nano")


def test_a_candidate_that_does_not_exist_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="--only 'nana': choose from start, "):
        nano.main(options(only=("nana",)))
    assert not (tmp_path / "runs").exists()
