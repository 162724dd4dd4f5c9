"""The ablations of REINFORCE within one run."""

import json

import pytest

from experiments.studies import within_run
from permenv import ConfigurationError
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


def test_a_variant_that_does_not_exist_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="--only 'foo': choose from random, "):
        within_run.main(options(only=("foo",)))
    assert not (tmp_path / "runs").exists()
