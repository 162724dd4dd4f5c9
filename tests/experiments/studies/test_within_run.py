"""The ablations of REINFORCE within one run."""

import json

import pytest

from experiments.studies import within_run
from permenv import ConfigurationError
from permenv.wrappers import CrossEntropyReward, ErrorReduction
from permenv.wrappers.base import base_env_of
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "within-run.json"}
        env = small(total_updates=2, iterations_per_update=2, free_iterations=0)
        return within_run.Config(**{"seeds": 1, "processes": 0, "env": env, **files, **changes})

    return make


@pytest.mark.ci
def test_every_variant_runs_for_equally_many_iterations(options, tmp_path, capsys):
    report = within_run.main(options())
    assert report == json.loads((tmp_path / "within-run.json").read_text())
    by_name = {row["variant"]: row for row in report["variants"]}
    assert list(by_name) == list(within_run.VARIANTS)
    assert by_name["random"]["at_half"] == by_name["random"]["at_end"] == 1
    for name, row in by_name.items():
        assert len(row["errors"][0]) == (5 if within_run.VARIANTS[name].halves else 3)
        assert row["errors"][0][0] == by_name["random"]["errors"][0][0]
    assert "| learning rate 0.1 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", within_run.VARIANTS)
def test_a_variant_is_played_with_its_options_and_its_reward(options, name, monkeypatch):
    played = []
    monkeypatch.setattr(within_run, "play", lambda agent, env, **given: played.append((agent, env, given)))
    within_run._run(name, 7, options().environment)
    variant = within_run.VARIANTS[name]
    ((agent, env, given),) = played
    assert (agent, given) == (variant.agent, {"seed": 7, **variant.options})
    for reward, kind in (("reduction", ErrorReduction), ("cross-entropy", CrossEntropyReward)):
        assert isinstance(env, kind) == (variant.reward == reward)
    assert base_env_of(env).config.total_updates == (4 if variant.halves else 2)


def test_a_variant_that_does_not_exist_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="--only 'foo': choose from random, "):
        within_run.main(options(only=("foo",)))
    assert not (tmp_path / "runs").exists()
