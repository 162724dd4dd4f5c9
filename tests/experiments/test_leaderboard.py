"""The comparison of all agents, as small as it goes."""

import json
import linecache
import math

import pytest

from experiments import leaderboard
from experiments.common.agent_runs import AGENTS, play
from experiments.common.reports.statistics import Estimate
from experiments.common.training.run_folder import CHECKPOINT, RunFolderError
from permenv import CheckpointError, ConfigurationError, checkpoint
from permenv.wrappers import CrossEntropyReward
from tests.experiments.helpers import small
from tests.helpers import ROOT


@pytest.fixture
def options(tmp_path):
    """Return a function that makes small options; the runs are in this process."""

    def make(task="spatial", updates=2, **changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "board"}
        env = small(task, total_updates=updates)
        return leaderboard.Config(**{"task": task, "seeds": 2, "processes": 0, "env": env, **files, **changes})

    return make


@pytest.mark.ci
def test_it_compares_every_agent(options, tmp_path, capsys):
    rows = leaderboard.main(options(seeds=1))["agents"]
    assert {row["agent"] for row in rows} == set(AGENTS)
    errors = [row["final_error"] for row in rows]
    assert errors == sorted(errors)
    assert all(0 < row["cost"] < 1 for row in rows)
    by_name = {row["agent"]: row for row in rows}
    assert by_name["random"]["at_half"] == by_name["random"]["at_end"] == 1
    assert "| one-step lookahead |" in capsys.readouterr().out


def test_it_writes_a_table_and_a_picture(options, tmp_path):
    report = leaderboard.main(options(agents=("exp3",), seeds=1))
    assert [row["agent"] for row in report["agents"]] != []
    assert {row["agent"] for row in report["agents"]} == {"exp3", "random"}
    assert {path.suffix for path in tmp_path.iterdir() if path.stem == "board"} == {".json", ".png"}
    assert json.loads((tmp_path / "board.json").read_text()) == report


def test_an_agent_can_learn_from_the_cross_entropy(options, monkeypatch):
    played = []

    def play_and_note(player, env, **given):
        played.append((player, isinstance(env, CrossEntropyReward)))
        return play(player, env, **given)

    monkeypatch.setattr(leaderboard, "play", play_and_note)
    report = leaderboard.main(options(agents=("reinforce",), cross_entropy=("reinforce",), seeds=1, updates=3))
    assert {row["agent"] for row in report["agents"]} == {"random", "reinforce", "reinforce, cross-entropy"}
    assert sorted(played) == [("random", False), ("reinforce", False), ("reinforce", True)]
    with pytest.raises(ConfigurationError, match="unknown agent 'sarsa'"):
        leaderboard.main(options(cross_entropy=("sarsa",)))


OWN = """
import numpy as np
import agents

class Easiest(agents.Agent):
    def act(self, observation):
        return np.int64(np.flatnonzero(observation[:, 0])[{place}])
"""


def test_agents_of_ones_own_are_compared_and_results_of_another_version_are_not_used(options, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(OWN.format(place=-1))
    config = options(agents=("mine:Easiest",), seeds=1)
    report = leaderboard.main(config)
    assert {row["agent"] for row in report["agents"]} == {"random", "mine:Easiest"}
    assert leaderboard.main(config) == report
    (tmp_path / "mine.py").write_text(OWN.format(place=0))
    linecache.clearcache()
    with pytest.raises(RunFolderError, match="code"):
        leaderboard.main(config)
    with pytest.raises(ConfigurationError, match=r"unknown agent 'mine:Hardest'.*no attribute"):
        leaderboard.main(options(agents=("mine:Hardest",)))


def test_policies_of_the_same_name_or_that_of_an_agent_are_refused_before_anything_runs(options, tmp_path):
    for place in (f"a/run/{CHECKPOINT}", f"b/run/{CHECKPOINT}", "reinforce.safetensors"):
        checkpoint.write(tmp_path / place, {"job": {"settings": {"actions": "pool", "history": 0}}})
    for names, message in (
        (("a/run", "b/run"), r"b/run/.*: .*a/run/.* is called 'run' as well: give the folder or the file another name"),
        (("reinforce.safetensors",), "an agent is called 'reinforce' as well"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            leaderboard.main(options(policies=tuple(tmp_path / name for name in names)))
    assert not (tmp_path / "runs").exists()


def test_it_compares_on_the_joint_task(options):
    report = leaderboard.main(options("spatiotemporal", agents=("exp3",), seeds=1))
    assert report["data"] == "embedded scenes, seed 0; embedded clips, seed 0"
    assert all(0 < row["final_error"] <= 1 for row in report["agents"])


def test_it_continues_where_it_was_stopped(options, tmp_path):
    config = options(agents=("random", "exp3"))
    whole = leaderboard.main(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(times) == 4
    missing = tmp_path / "runs" / "exp3-seed101.json"
    missing.unlink()
    again = leaderboard.main(config)
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {missing}
    assert [row["final_error"] for row in again["agents"]] == [row["final_error"] for row in whole["agents"]]
    with pytest.raises(RunFolderError, match=r"total_updates=2, not 3 .*--runs"):
        leaderboard.main(options(agents=("random", "exp3"), updates=3))


def test_an_agent_that_does_not_exist_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="unknown agent 'randon': choose from random"):
        leaderboard.main(options(agents=("randon",)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("spatial", {"curriculum": (0.0, 0.5)}, r"--curriculum 0\.0 0\.5: both must be above 0 and at most 1"),
        ("spatial", {"curriculum": (0.5, 5.0)}, r"--curriculum 0\.5 5\.0: both must be above 0 and at most 1"),
        ("spatiotemporal", {"agents": ("exp3", "dqn")}, "agent 'dqn' cannot be compared on task 'spatiotemporal'"),
        ("spatiotemporal", {"cross_entropy": ("dqn",)}, "agent 'dqn' cannot be compared on task 'spatiotemporal'"),
    ],
)
def test_what_would_fail_in_a_run_is_refused_before_anything_runs(options, tmp_path, task, given, message):
    with pytest.raises(ConfigurationError, match=message):
        leaderboard.main(options(task, **{"agents": ("random",), **given}))
    assert not (tmp_path / "runs").exists()


def test_a_policy_of_another_task_is_refused_before_anything_runs(options, tmp_path):
    policy = ROOT / "experiments" / "results" / "pool-policy.safetensors"
    with pytest.raises(CheckpointError, match=r"pool-policy\.safetensors: .* does not fit an agent"):
        leaderboard.main(options("spatiotemporal", agents=("random",), policies=(policy,)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("random", "random permutations"),
        ("reinforce, cross-entropy", "REINFORCE, cross-entropy"),
        ("easiest-first (0.1, 0.5)", "easiest 10% first, all at 50%"),
        ("inverse", "inverse of REINFORCE"),
        ("inverse of pool-policy", "inverse of the learned"),
        ("across-pgpe-pool-seed0", "across-pgpe-pool-seed0"),
    ],
)
def test_the_picture_has_names_of_its_own(name, label):
    assert leaderboard._label(name) == label


def test_the_picture_emphasises_a_few_agents():
    names = ["a", "b", "c", "d", "random", "e", "reinforce"]
    column = {name: Estimate(0.5, 0.4, 0.6) for name in ("at_half", "at_end")}
    runs = [{"iterations": [0, 10], "errors": [0.9, 0.5], "diverged": False}]
    figure = leaderboard._picture(dict.fromkeys(names, column), dict.fromkeys(names, runs), "a title")
    half, end, curves = figure.axes
    assert [axis.get_title(loc="left") for axis in (half, end)] == [
        "accuracy at half of the run",
        "accuracy at the end",
    ]
    assert [text.get_text() for text in curves.texts] == ["c", "b", "a", "REINFORCE", "random permutations"]
    assert len({text.get_color() for text in curves.texts}) == 5
    assert [text.get_text() for text in half.get_yticklabels()][4:] == ["random permutations", "e", "REINFORCE"]
    grey = [line for line in curves.lines if line.get_label() in ("d", "e")]
    assert len({line.get_color() for line in grey}) == 1
    assert figure.get_suptitle() == "a title"


def test_the_picture_has_a_place_for_a_ratio_whose_interval_has_no_end():
    column = {name: Estimate(0.5, -math.inf, math.inf) for name in ("at_half", "at_end")}
    runs = [{"iterations": [0, 10], "errors": [0.9, 0.5], "diverged": False}]
    figure = leaderboard._picture({"random": column}, {"random": runs}, "a title")
    assert [text.get_position() for text in figure.axes[0].texts] == [(50, 0)]


def test_agents_are_compared_with_the_curriculum(options, capsys, monkeypatch):
    errors = {"random": [0.9, 0.8, 0.7, 0.6], "easiest-first": [0.9, 0.7, 0.6, 0.5]}

    def play(player, env, *, seed, **_):
        run = {"iterations": [0, 3, 6, 9], "diverged": False, "seconds": 1.0, "cost": 0.1}
        return {**run, "errors": [error + 0.001 * (seed - 100) for error in errors[player]]}

    monkeypatch.setattr(leaderboard, "play", play)
    report = leaderboard.main(options(agents=("random",), curriculum=(0.5, 1.0), updates=3))
    name = "easiest-first (0.5, 1)"
    rows = {row["agent"]: row for row in report["agents"]}
    assert set(rows) == {"random", name}
    assert set(report["against_the_curriculum"]) == {"random"}
    ratio = report["against_the_curriculum"]["random"]["at_end"]
    assert ratio == pytest.approx(1 / rows[name]["at_end"])
    assert (rows["random"]["needs"], rows[name]["needs"]) == pytest.approx((1, 2 / 3))
    # a tenth of its time is no training; random permutations need nothing else
    assert (rows["random"]["time"], rows[name]["time"]) == pytest.approx((1, 2 / 3 / 0.9))
    assert report["against_the_curriculum"]["random"]["saved"] == pytest.approx(-1 / 3)
    said = capsys.readouterr().out
    assert "of the curriculum's accuracy at half of the run, 80% [80%, 80%] at the end; it saves -33.3% of the" in said
