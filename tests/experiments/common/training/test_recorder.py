"""The recorder: any wrappers, libraries that reset when they please, and the time that is the algorithm's."""

import json
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

from experiments.common.machine import machine
from experiments.common.training.recorder import Recorder
from experiments.common.training.run_folder import RunFolderError
from permenv import CheckpointError
from permenv.wrappers import ErrorAndProgress, FiniteHorizon, MixtureAction, NormalizedReward
from tests.experiments.helpers import metrics


def record(run, act=lambda env: env.action_space.sample(), env=None):
    """Play a run to its end."""
    env = env or run
    run.reset(seed=0)
    run.start(dict)
    env.action_space.seed(0)
    while not run.over:
        env.step(act(env))
    run.finish(run.summary())


def test_a_reset_does_not_begin_another_run_and_the_policys_time_is_what_passes_outside(make_env, tmp_path):
    with Recorder(make_env(total_updates=2), tmp_path / "run") as run:
        run.reset(seed=0)
        run.start(dict)
        observation, info = run.reset(seed=5)
        assert info["iteration"] == 0
        while not run.over:
            time.sleep(0.01)
            observation, *_, info = run.step(0)
        again, same = run.reset()
        np.testing.assert_array_equal(again, observation)
        assert same["iteration"] == info["iteration"] == 6
        summary = run.summary()
        run.finish(summary)
    assert 0.01 * 2 * 3 * 4 <= summary["seconds_policy"] <= summary["seconds"]
    assert summary["seconds_validation"] + summary["seconds_grouping"] < summary["seconds"]
    assert metrics(tmp_path / "run")[1]["spatial/group_0"] == "1.0"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 2


def test_nothing_is_written_before_the_start(make_env, tmp_path):
    with Recorder(make_env(), tmp_path / "run") as run:
        run.reset(seed=0)
    assert not (tmp_path / "run").exists()


def test_wrappers_below_and_above_do_not_change_the_record(make_env, tmp_path):
    with Recorder(make_env(total_updates=2), tmp_path / "above") as run:
        record(run, env=ErrorAndProgress(MixtureAction(run)))
    with Recorder(ErrorAndProgress(MixtureAction(make_env(total_updates=2))), tmp_path / "below") as run:
        record(run)
    assert metrics(tmp_path / "above") == metrics(tmp_path / "below")
    assert len(metrics(tmp_path / "below")) == 2


@pytest.mark.parametrize("learning_rate", [0.01, 1e12], ids=["whole", "diverged"])
def test_how_a_wrapper_reports_the_end_does_not_change_the_record(make_env, tmp_path, learning_rate):
    options = {"total_updates": 2, "learning_rate": learning_rate}
    with Recorder(make_env(**options), tmp_path / "bare") as run:
        record(run)
    with Recorder(FiniteHorizon(make_env(**options)), tmp_path / "below") as run:
        record(run)
    assert metrics(tmp_path / "below") == metrics(tmp_path / "bare")
    assert {float(row["diverged"]) for row in metrics(tmp_path / "below")} == {float(learning_rate > 1)}


def test_the_reward_is_the_one_that_passes_through(make_env, tmp_path):
    rewards = []

    class Seen(gym.Wrapper):
        def step(self, action):
            result = self.env.step(action)
            rewards.append(float(result[1]))
            return result

    with Recorder(Seen(NormalizedReward(MixtureAction(make_env(total_updates=3, free_iterations=0)))), tmp_path) as run:
        record(run)
    assert [float(row["reward"]) for row in metrics(tmp_path)] == rewards


def test_notes_come_back_with_the_run(make_env, tmp_path):
    with Recorder(make_env(total_updates=1), tmp_path, settings={"seed": 0}) as run:
        run.notes["before"] = {"spatial": 0.5}
        record(run)
    with Recorder(make_env(total_updates=2), tmp_path, resume=True, settings={"seed": 0}) as run:
        assert run.notes == {"before": {"spatial": 0.5}}
        assert run.saved_agent == {}
        record(run)
    assert len(metrics(tmp_path)) == 2


def test_a_run_remembers_every_machine_and_says_that_it_goes_on_elsewhere(make_env, tmp_path, monkeypatch, caplog):
    def train(updates, resume):
        with Recorder(make_env(total_updates=updates), tmp_path, resume=resume) as run:
            record(run)

    train(1, resume=False)
    train(2, resume=True)
    assert "goes on elsewhere" not in caplog.text
    here = machine(torch.device("cpu"))
    there = {**here, "versions": {**here["versions"], "torch": "0.1"}}
    monkeypatch.setattr("experiments.common.training.recorder.machine", lambda _: there)
    train(2, resume=True)  # it is over
    assert "goes on elsewhere" not in caplog.text
    train(3, resume=True)
    assert f"versions.torch 0.1, before {here['versions']['torch']}" in caplog.text
    monkeypatch.setattr("experiments.common.training.recorder.machine", lambda _: here)
    train(3, resume=True)
    for name in ("config", "summary"):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        found = [{name: each[name] for name in ("update", "machine")} for each in content["machines"]]
        assert found == [{"update": 0, "machine": here}, {"update": 2, "machine": there}]
        assert content["machine"] == there


def test_other_settings_are_refused_but_for_those_that_may_change(make_env, tmp_path):
    with Recorder(make_env(total_updates=1), tmp_path, settings={"seed": 0, "out": "a"}) as run:
        record(run)
    options = {"resume": True, "may_change": ("out",)}
    with pytest.raises(CheckpointError, match="started with seed=0, not 1"):
        Recorder(make_env(), tmp_path, settings={"seed": 1, "out": "a"}, **options)
    with pytest.raises(CheckpointError, match="started with seed=0, which is no option of this version"):
        Recorder(make_env(), tmp_path, settings={"out": "a"}, **options)
    Recorder(make_env(), tmp_path, settings={"seed": 0, "out": "b"}, **options)
    Recorder(make_env(), tmp_path, settings={"seed": 0}, **options)
    with pytest.raises(RunFolderError, match="holds a run"):
        Recorder(make_env(), tmp_path)
