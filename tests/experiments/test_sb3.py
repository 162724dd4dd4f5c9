"""The job with Stable-Baselines3: learning in the middle of a run, the run folder, and how it is continued."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.sb3 import ALGORITHMS, make_model, steps_of_an_update
from experiments import reinforce, sb3
from experiments.common.training import main_job
from experiments.common.training.run_folder import CHECKPOINT, RunFolder, RunFolderError
from permenv import CheckpointError, ConfigurationError, PermShuffleEnv, checkpoint
from tests.experiments.helpers import arguments, job, metrics, small
from tests.helpers import ROOT, global_states

CASES = [
    ("ppo", "temporal", "groups"),
    ("ppo", "spatial", "pool"),
    ("ppo", "spatial", "block"),
    ("ppo", "spatiotemporal", "groups"),
    ("a2c", "spatiotemporal", "pairs"),
    ("a2c", "spatiotemporal", "block"),
    ("dqn", "temporal", "groups"),
    ("dqn", "spatiotemporal", "pairs"),
    ("sac", "spatiotemporal", "mixture"),
]
OTHERS = [name for name in ALGORITHMS if name != "ppo"]
ENOUGH = {"ppo": 2, "a2c": 2, "dqn": 2, "sac": 6}  # updates after which an algorithm has learned for the first time


def config(out, algorithm="ppo", task="spatial", env=(), updates=None, **options):
    env = small(task, **{"total_updates": updates or ENOUGH[algorithm], **dict(env)})
    return sb3.Config(out=out, algorithm=algorithm, task=task, env=env, device="cpu", **options)


def networks(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.fixture(scope="module", params=["ppo", *(pytest.param(name, marks=pytest.mark.ci) for name in OTHERS)])
def finished(request, tmp_path_factory):
    """A finished run of each algorithm: its name and its folder."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "picture", lambda *_: None)
        sb3.main(config(folder, request.param))
    return request.param, folder


@pytest.fixture(scope="module")
def main_jobs(tmp_path_factory):
    """The run folder of the main job, of each task."""

    def folder(task):
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task) / "run"
            reinforce.main(job(made[task], task, updates=1))
        return made[task]

    made = {}
    return folder


@pytest.mark.ci
@pytest.mark.parametrize(("algorithm", "task", "actions"), CASES)
def test_a_run_learns_before_it_ends_and_leaves_the_folder_of_the_main_job(
    tmp_path, main_jobs, capsys, algorithm, task, actions
):
    options = config(tmp_path / "run", algorithm, task=task, actions=actions)
    summary = sb3.main(options)
    said = capsys.readouterr().out
    ours, theirs = tmp_path / "run", main_jobs(task)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert list(metrics(ours)[0]) == list(metrics(theirs)[0])
    assert summary.keys() == json.loads((theirs / "summary.json").read_text()).keys()
    assert [row["update"] for row in metrics(ours)] == [str(update + 1) for update in range(ENOUGH[algorithm])]
    assert 0 < summary["seconds_policy"] < summary["seconds"]
    assert f"after {3 * ENOUGH[algorithm]} iterations" in said
    with main_job.make_recorder(config(ours, algorithm, task=task, actions=actions, resume=True)) as run:
        env = sb3.ACTION_WRAPPERS[actions](run)
        model = make_model(algorithm, env, seed=0)
        model.load_state_dict(run.saved_agent)
        assert model.num_timesteps == ENOUGH[algorithm] * steps_of_an_update(env)
        assert model._n_updates > 0
        untrained = networks(make_model(algorithm, env, seed=0))
        assert any((value != untrained[name]).any() for name, value in networks(model).items())


@pytest.mark.ci
def test_the_same_seed_gives_the_same_run_whatever_the_global_states_are(finished, tmp_path):
    algorithm, folder = finished
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    before = global_states()
    sb3.main(config(tmp_path / "again", algorithm))
    assert global_states() == before
    assert metrics(tmp_path / "again") == metrics(folder)
    sb3.main(config(tmp_path / "another", algorithm, updates=1, seed=1))
    assert metrics(tmp_path / "another")[0] != metrics(folder)[0]


def test_a_run_continues_where_it_was_saved(finished, tmp_path):
    algorithm, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    more = ENOUGH[algorithm] + 2
    sb3.main(config(tmp_path / "run", algorithm, updates=more, resume=True))
    rows = metrics(tmp_path / "run")
    assert rows[:-2] == metrics(folder)
    assert [row["iteration"] for row in rows] == [str(3 * (update + 1)) for update in range(more)]
    summary = sb3.main(config(tmp_path / "run", algorithm, updates=more, resume=True))  # there is nothing left to do
    assert (summary["updates"], len(metrics(tmp_path / "run"))) == (more, more)


@pytest.mark.parametrize("algorithm", ["ppo", *(pytest.param(name, marks=pytest.mark.ci) for name in OTHERS)])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, algorithm):
    updates = ENOUGH[algorithm] + 2
    sb3.main(config(tmp_path / "whole", algorithm, updates=updates))
    saved = RunFolder.save

    def save_and_stop(folder, *arguments, **options):
        saved(folder, *arguments, **options)
        if len(folder.rows) == updates - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            sb3.main(config(tmp_path / "parts", algorithm, updates=updates))
    sb3.main(config(tmp_path / "parts", algorithm, updates=updates, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    whole, parts = (checkpoint.read(tmp_path / name / CHECKPOINT)["agent"] for name in ("whole", "parts"))
    assert parts["counters"] == whole["counters"]
    for name, tensor in whole["networks"]["policy"].items():
        assert torch.equal(parts["networks"]["policy"][name], tensor), name


def test_a_run_begins_with_the_networks_of_another(finished, tmp_path):
    algorithm, folder = finished
    options = {"model_from": folder / CHECKPOINT, "updates": 1}
    sb3.main(config(tmp_path / "run", algorithm, **options, env={"iterations_per_update": 3}))
    other = next(name for name in ALGORITHMS if name != algorithm and name != "sac")
    with pytest.raises(CheckpointError, match=f"{CHECKPOINT}: it is a model of {algorithm}, not of {other}"):
        sb3.main(config(tmp_path / "x", other, **options))
    with pytest.raises(CheckpointError, match=f"{CHECKPOINT}: it is a model of other sizes"):
        sb3.main(config(tmp_path / "x", algorithm, **options, hidden=8))
    assert not (tmp_path / "x").exists()


def test_a_run_that_diverges_ends_and_is_summed_up(tmp_path, capsys):
    summary = sb3.main(config(tmp_path / "run", updates=5, env={"learning_rate": 1e12}))
    assert summary["diverged"]
    assert summary["updates"] < 5
    assert float(metrics(tmp_path / "run")[-1]["spatial/error"]) == 1
    assert "The loss was not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"algorithm": "dqn", "task": "spatiotemporal"},
            ConfigurationError,
            r"FlatJointAction.*--actions pairs",
        ),
        ({"algorithm": "dqn", "actions": "mixture"}, ConfigurationError, "dqn chooses from Discrete"),
        ({"algorithm": "sac", "actions": "groups"}, ConfigurationError, r"MixtureAction\(env\)"),
        ({"actions": "pairs"}, ConfigurationError, "FlatJointAction over task='spatial'"),
        ({"hidden": 0}, ConfigurationError, "hidden=0: must be at least 1"),
        ({"model_from": Path("/nowhere")}, CheckpointError, "no checkpoint at /nowhere"),
        ({"resume": True}, RunFolderError, r"no checkpoint.safetensors"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        sb3.main(config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 0}, "hidden=0"), ({"model_from": Path("/nowhere")}, "no checkpoint at /nowhere")],
)
def test_a_model_that_cannot_be_made_is_refused_before_the_network_is_validated(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(PermShuffleEnv, "reset", lambda *_, **__: pytest.fail("the run has begun"))
    with pytest.raises((ConfigurationError, CheckpointError), match=message):
        sb3.main(config(tmp_path / "run", **options))


def test_a_run_of_another_algorithm_is_not_continued(finished):
    algorithm, folder = finished
    other = "ppo" if algorithm != "ppo" else "a2c"
    with pytest.raises(CheckpointError, match=f"started with algorithm='{algorithm}', not '{other}'"):
        sb3.main(config(folder, other, resume=True))


@pytest.mark.ci
def test_errors_reach_the_user_as_one_line(tmp_path):
    command = [*(sys.executable, "experiments/sb3.py", "--algorithm", "sac", "--actions", "groups", "--out")]
    command += [str(tmp_path / "run"), *arguments()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: sac chooses from Box")
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_saved_model_that_does_not_fit_is_refused_by_its_file(tmp_path):
    sb3.main(config(tmp_path / "run"))
    path = tmp_path / "run" / CHECKPOINT
    saved = checkpoint.read(path)
    del saved["agent"]["networks"]["policy"]
    checkpoint.write(path, saved)
    with pytest.raises(CheckpointError, match=f"{path}: it is a model of other sizes or of another version"):
        sb3.main(config(tmp_path / "run", updates=3, resume=True))
