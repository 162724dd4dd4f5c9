"""The study of the one-step lookahead."""

import json

import pytest

from agents import Lookahead, RandomPolicy
from experiments import leaderboard
from experiments.common.options import EnvOptions
from experiments.studies import horizon
from permenv import ConfigurationError
from tests.experiments.helpers import small


def environment(updates=4, **changes):
    """Return small options of the environment."""
    return EnvOptions(device="cpu", env=small(total_updates=updates, **changes))


@pytest.fixture
def options(tmp_path):
    """Return a function that makes small options; the runs are in this process."""
    numbers = {"seeds": 1, "moments": (1, 2), "later": 1, "processes": 0, "env": small(total_updates=4)}
    files = {"runs": tmp_path / "horizon", "out": tmp_path / "horizon.json"}
    return lambda **changes: horizon.Config(**{**numbers, **files, **changes})


@pytest.mark.ci
def test_it_compares_the_lookahead_with_the_agents(options, tmp_path, capsys):
    report = horizon.main(options(agents=("random", "hardest-first")))
    assert list(report["one update"]) == ["random", "hardest-first"]
    assert [row["moment"] for row in report["moments"]] == [1, 2]
    for row in json.loads((tmp_path / "horizon.json").read_text())["moments"]:
        assert row["n"] == len(report["one update"])
        assert len(row["lookahead"]) == 2
        assert 0 < row["tilts"] <= 1
    assert "| hardest-first |" in capsys.readouterr().out


@pytest.mark.ci
def test_the_states_are_those_of_the_leaderboards_runs(options, tmp_path):
    names = ("reinforce", "exp3", "dqn")
    states = horizon.main(options(agents=names))["states"]
    board = {"agents": names, "seeds": 1, "processes": 0, "env": small(total_updates=4)}
    leaderboard.main(leaderboard.Config(**board, runs=tmp_path / "runs", out=tmp_path / "board"))
    for name in names:
        errors = json.loads((tmp_path / "runs" / f"{name}-seed0.json").read_text())["result"]["errors"]
        errors = errors[::2]  # between updates there are free iterations
        pairs = [(state["before"], state["own"]) for state in states[name]]
        assert pairs == [(errors[1], errors[2]), (errors[2], errors[3])]


@pytest.mark.ci
def test_the_lookaheads_error_is_the_one_it_predicted(monkeypatch):
    predicted = []
    plan = Lookahead.probabilities

    def recorded(self, observation):
        chances = plan(self, observation)
        predicted.append(min(self.errors.values()))
        return chances

    monkeypatch.setattr(Lookahead, "probabilities", recorded)
    arguments = {"environment": environment(), "moments": (1, 2), "later": 1, "share": 0.5}
    found = horizon._run("random", 0, **arguments)
    assert [state["lookahead"][0] for state in found] == predicted
    assert found == horizon._run("random", 0, **arguments)


def test_the_comparison_is_that_of_the_errors():
    state = {"moment": 1, "before": 0.8, "own": 0.7, "tilts": True}
    state |= {"lookahead": [0.5, 0.4], "random": [0.7, 0.3], "tilt redrawn": 0.6}
    late = {**state, "moment": 4, "tilts": False, "own": 0.4}
    report = horizon.compare({"one": [state, state], "other": [{**state, "tilts": False}, late]})
    one, other = report["one update"]["one"], report["one update"]["other"]
    assert one["moments"] == {1: pytest.approx({"own": 0.1, "lookahead": 0.3, "later": -0.1})}
    assert one["difference"] == pytest.approx((0.2,) * 3)
    assert other["moments"][1] == pytest.approx({"own": 0.1, "lookahead": 0.3, "later": -0.1})
    assert other["moments"][4] == pytest.approx({"own": 0.4, "lookahead": 0.3, "later": -0.1})
    assert other["difference"] == pytest.approx((0.05, -0.1, 0.2))
    first, second = report["moments"]
    assert (first["moment"], first["n"], first["before"]) == (1, 3, pytest.approx(0.8))
    assert first["tilts"] == pytest.approx(2 / 3)
    assert first["tilt redrawn"] == pytest.approx((0.1,) * 3)
    assert first["lookahead"] == [pytest.approx((0.2,) * 3), pytest.approx((-0.1,) * 3)]
    assert (second["moment"], second["n"], second["tilts"]) == (4, 1, 0)


def test_a_network_that_diverges_counts_as_the_worst_error():
    start = environment(updates=3, learning_rate=1e30).make().unwrapped
    start.reset(seed=0)
    agent = RandomPolicy(start.observation_space, start.action_space, seed=0)
    errors = horizon._errors(start, agent, agent, later=2)
    assert len(errors) == 3
    assert errors[-1] == 1.0


def test_a_run_that_diverges_before_the_moment_is_an_error():
    diverging = environment(updates=3, learning_rate=1e30)
    with pytest.raises(RuntimeError, match="random, seed 0, diverged before update 3 was over"):
        horizon._run("random", 0, environment=diverging, moments=(2,), later=0, share=0.5)


@pytest.mark.parametrize("moments", [(0, 1), (1, 3)])
def test_a_moment_outside_the_run_is_refused(options, moments, tmp_path):
    with pytest.raises(ConfigurationError, match=r"--moments .* leave 1 \+ 1 \(--later\) of the 4 updates"):
        horizon.main(options(moments=moments))
    assert not (tmp_path / "horizon").exists()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(options, share, tmp_path):
    with pytest.raises(ConfigurationError, match=f"--share {share}: must be above 0 and at most 1"):
        horizon.main(options(share=share))
    assert not (tmp_path / "horizon").exists()
