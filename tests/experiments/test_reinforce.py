"""The main job, as small as it goes: what it leaves behind, and that a kill costs nothing."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import AGENTS, Agent
from experiments import reinforce
from experiments.common.options import parse
from experiments.common.training.loggers import Callback
from experiments.common.training.run_folder import CHECKPOINT, LOCK, RunFolder, RunFolderError
from permenv import CheckpointError, ConfigurationError, DataError, PermShuffleEnv, checkpoint
from permenv.saved_run import trunk_weights
from tests.experiments.helpers import arguments, job, metrics
from tests.helpers import ROOT, SMALL

OTHERS = [pytest.param(name, marks=pytest.mark.ci) for name in AGENTS if name != "reinforce"]
PSI = "permutations-spatial.npy"
TASKS = {"spatial": ("spatial",), "temporal": ("temporal",), "spatiotemporal": ("spatial", "temporal")}
COMMON = ["update", "iteration", "loss", "error", "baseline_error", "reward", "diverged"]
OF_A_TASK = ["loss", "error", "baseline_error", "reward", "entropy"]
OF_A_TASK += [f"{kind}_{group}" for kind in ("group", "size") for group in range(4)]


@pytest.fixture(
    scope="module",
    params=["spatiotemporal", *(pytest.param(task, marks=pytest.mark.ci) for task in ("spatial", "temporal"))],
)
def finished(request, tmp_path_factory):
    """A run of each task: the names of its parts, its folder, its summary, what it said."""
    folder, said = tmp_path_factory.mktemp(request.param) / "run", io.StringIO()
    with contextlib.redirect_stdout(said):
        summary = reinforce.main(job(folder, request.param))
    return TASKS[request.param], folder, summary, said.getvalue()


def test_a_run_leaves_everything_behind(finished):
    names, folder, _, _ = finished
    config = json.loads((folder / "config.json").read_text())
    assert config["environment"]["num_permutations"] == 24
    assert config["machine"]["device"] == "cpu"
    assert "torch" in config["machine"]["versions"]
    assert list(config["data"]) == list(config["permutations"]) == list(names)
    for name in names:
        assert np.load(folder / f"permutations-{name}.npy").shape == (24, {"spatial": 9, "temporal": 8}[name])
        assert config["permutations"][name]["minimum"] >= 2
    assert {path.name for path in folder.glob("*.npy")} == {f"permutations-{name}.npy" for name in names}
    pictures = {
        "dashboard.png",
        "error.png",
        *(f"{kind}-{name}.png" for kind in ("choices", "shuffles") for name in names),
    }
    assert {path.name for path in folder.glob("*.png")} == pictures
    for name in pictures:
        assert min(cv2.imread(str(folder / name)).shape[:2]) > 300
    assert any((folder / "tensorboard").iterdir())


def test_the_summary_and_the_printed_lines_are_of_each_task(finished):
    names, folder, summary, said = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert list(summary["tasks"]) == list(names)
    assert 0 <= summary["policy_cost"] < 1
    for name in names:
        task_summary = summary["tasks"][name]
        assert (task_summary["permutations"], task_summary["samples"], task_summary["chance"]) == (
            24,
            12,
            pytest.approx(23 / 24),
        )
        assert task_summary["queries"] == {"spatial": "fresh scenes", "temporal": "fresh clips"}[name]
        assert (
            f"{name}: {task_summary['error_first']:.3f} untrained, {task_summary['error_last']:.3f} after 9 iterations"
            in said
        )
        assert (
            f"{name}: {task_summary['top1_untrained']:.1%} untrained, {task_summary['top1_trained']:.1%} trained"
            in said
        )
        errors = [float(row[f"{name}/error"]) for row in metrics(folder)]
        assert (task_summary["error_last"], task_summary["error_best"]) == (errors[-1], min(errors))
    for key in ("error_first", "error_last"):
        assert summary[key] == pytest.approx(np.mean([summary["tasks"][name][key] for name in names]))
    assert summary["error_best"] == min(float(row["error"]) for row in metrics(folder))


def test_the_metrics_have_the_same_columns_for_every_task(finished):
    names, folder, _, _ = finished
    rows = metrics(folder)
    assert list(rows[0]) == COMMON + [f"{name}/{column}" for name in names for column in OF_A_TASK]
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    assert [row["iteration"] for row in rows] == ["3", "6", "9"]
    rows = [{column: float(value) for column, value in row.items()} for row in rows]
    for row in rows:
        for name in names:
            for kind in ("group", "size"):
                assert sum(row[f"{name}/{kind}_{group}"] for group in range(4)) == pytest.approx(1)
            assert row[f"{name}/reward"] == pytest.approx(row[f"{name}/baseline_error"] - row[f"{name}/error"])
            assert 0 <= row[f"{name}/entropy"] <= np.log(4) + 1e-9
        for column in ("error", "baseline_error", "reward"):
            assert row[column] == pytest.approx(np.mean([row[f"{name}/{column}"] for name in names]))
        assert row["loss"] == pytest.approx(sum(row[f"{name}/loss"] for name in names))


def test_the_entropy_is_that_of_the_choices(finished):
    names, folder, _, _ = finished
    for row in metrics(folder):
        for name in names:
            shares = np.array([float(row[f"{name}/group_{group}"]) for group in range(4)])
            shares = shares[shares > 0]
            assert float(row[f"{name}/entropy"]) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-12)


@pytest.mark.ci
def test_the_same_seed_gives_the_same_metrics(tmp_path):
    for name in ("a", "b"):
        reinforce.main(job(tmp_path / name))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    reinforce.main(job(tmp_path / "c", seed=1))
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


class Last(Agent):
    """A policy of a user: always the last group."""

    def act(self, observation):
        return np.int64(3)


class Forgetful(Last):
    """One that learns: the next group after every update."""

    def __init__(self, observation_space, action_space, *, seed):
        super().__init__(observation_space, action_space, seed=seed)
        self.group = 0

    def act(self, observation):
        return np.int64(self.group)

    def learn(self, transition):
        self.group += transition.info["validated"] and transition.info["phase"] == "update"
        return {}


class InTurn(Forgetful):
    """One that saves what it learns."""

    def state_dict(self):
        return {**super().state_dict(), "group": self.group}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.group = state["group"]


@pytest.mark.parametrize("policy", ["Last", "InTurn"])
def test_a_policy_of_ones_own_is_run_and_resumed(tmp_path, policy):
    options = {"agent": f"{__name__}:{policy}", "env": {"num_permutations": 24}}
    reinforce.main(job(tmp_path / "run", updates=2, **options))
    reinforce.main(job(tmp_path / "run", updates=3, resume=True, **options))
    reinforce.main(job(tmp_path / "whole", updates=3, **options))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    states = [checkpoint.read(tmp_path / name / CHECKPOINT)["agent"] for name in ("run", "whole")]
    assert states[0] == states[1]
    assert states[0].get("group", 3) == 3  # after three updates


def test_options_of_the_policy_reach_it_are_written_down_and_resumed(tmp_path):
    words = ["--agent.learning-rate", "0.5", "--agent.hidden=5", "--agent.credit", "sum"]
    given = {"agent_options": parse(reinforce.Config, arguments=words).agent_options}
    reinforce.main(job(tmp_path / "run", updates=1, **given))
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["job"]
    assert settings["agent_options"] == {"learning_rate": 0.5, "hidden": 5, "credit": "sum"}
    with pytest.raises(CheckpointError, match=r"was started with agent_options=.*'hidden': 5"):
        reinforce.main(job(tmp_path / "run", updates=2, resume=True))
    reinforce.main(job(tmp_path / "run", updates=2, resume=True, **given))
    reinforce.main(job(tmp_path / "whole", updates=2, **given))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    agent = reinforce.make_agent(job(tmp_path, **given), gym.make("PermShuffle-v0", **SMALL))
    assert (agent.hidden, agent.credit, agent._adam.param_groups[0]["lr"]) == (5, "sum", 0.5)


@pytest.mark.parametrize(
    ("policy", "option", "message"),
    [
        ("reinforce", ("rate", "1"), r"--agent.rate: reinforce has agent.hidden, agent.learning-rate, .*agent.device$"),
        ("random", ("hidden", "1"), "--agent.hidden: random has no options"),
        (f"{__name__}:Last", ("group", "1"), "--agent.group: .*:Last has no options"),
        ("reinforce", ("hidden", "many"), "--agent.hidden many: must be of type int"),
        ("reinforce", ("credit", "both"), "--agent.credit both: must be of type .*'own', 'sum'"),
    ],
)
def test_options_that_the_policy_does_not_have_are_refused(tmp_path, policy, option, message):
    with pytest.raises(ConfigurationError, match=message):
        job(tmp_path, agent=policy, agent_options=(option,))


def test_a_policy_that_there_is_not_or_that_is_not_saved_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="--agent nonsense: There is no agent 'nonsense'"):
        job(tmp_path / "other", agent="nonsense")
    with pytest.raises(ConfigurationError, match=":Forgetful: Forgetful has a learn of its own, but not its own state"):
        job(tmp_path / "other", agent=f"{__name__}:Forgetful")


def test_deterministic_algorithms_are_on_during_a_run_and_change_nothing_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    reinforce.main(job(tmp_path / "plain", updates=1))
    were_on = []
    look = Callback(lambda row: were_on.append(torch.are_deterministic_algorithms_enabled()))
    reinforce.main(job(tmp_path / "run", updates=1, deterministic=True), loggers=(look,))
    assert set(were_on) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert metrics(tmp_path / "run") == metrics(tmp_path / "plain")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("task", "policy"),
    [
        ("spatial", "reinforce"),
        *(pytest.param("spatial", policy, marks=pytest.mark.ci) for policy in ("random", "inverse")),
        pytest.param("temporal", "reinforce", marks=pytest.mark.ci),
        *(pytest.param("spatiotemporal", policy, marks=pytest.mark.ci) for policy in ("reinforce", "inverse")),
    ],
)
def test_a_prolonged_run_equals_an_uninterrupted_one(tmp_path, task, policy):
    whole = reinforce.main(job(tmp_path / "whole", task=task, agent=policy, updates=4))
    reinforce.main(job(tmp_path / "parts", task=task, agent=policy, updates=2))
    parts = reinforce.main(job(tmp_path / "parts", task=task, agent=policy, updates=4, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert parts["tasks"] == whole["tasks"]


@pytest.mark.parametrize(
    "policy", ["reinforce", *(pytest.param(name, marks=pytest.mark.ci) for name in AGENTS if name != "reinforce")]
)
def test_an_interrupted_run_of_any_policy_equals_an_uninterrupted_one(tmp_path, monkeypatch, policy):
    config = job(tmp_path / "whole", agent=policy)
    reinforce.main(config)
    saved = RunFolder.save

    def save_and_stop(folder, *arguments, **options):
        saved(folder, *arguments, **options)
        if len(folder.rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        reinforce.main(dataclasses.replace(config, out=tmp_path / "parts"))
    monkeypatch.setattr(RunFolder, "save", saved)
    assert len(metrics(tmp_path / "parts")) == 2
    reinforce.main(dataclasses.replace(config, out=tmp_path / "parts", resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@pytest.mark.ci
def test_a_killed_run_resumes_to_the_same_metrics(tmp_path):
    reinforce.main(job(tmp_path / "whole", updates=12))
    command = [
        *(sys.executable, "-m", "experiments.reinforce", "--out", str(tmp_path / "killed"), "--updates", "12"),
        *("--device", "cpu", *arguments()),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    rows = tmp_path / "killed" / "metrics.csv"
    while not (rows.exists() and rows.read_text().count("\n") > 3):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(metrics(tmp_path / "killed")) < 12
    reinforce.main(job(tmp_path / "killed", updates=12, resume=True))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.ci
@pytest.mark.parametrize("task", ["spatial", pytest.param("spatiotemporal", marks=pytest.mark.ci)])
def test_compare_random_trains_both(tmp_path, task, capsys):
    given = (("hidden", "8"), ("credit", "sum"))  # random has no such options
    config = job(tmp_path / "run", task=task, updates=2, agent_options=given, compare_random=True)
    summary = reinforce.main(config)
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run" / "random")) == 2
    assert summary["relative_accuracy"] > 0
    said = capsys.readouterr().out
    for name in TASKS[task]:
        assert summary["tasks"][name]["relative_accuracy"] > 0
        assert f"Against random permutations, same seed, {name}: error" in said
    longer = dataclasses.replace(config, updates=3, resume=True)
    reinforce.main(longer)
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run" / "random")) == 3


@pytest.mark.ci
def test_the_inverse_of_a_trained_policy(tmp_path):
    joint = {"task": "spatiotemporal"}
    reinforce.main(job(tmp_path / "trained", **joint))
    trained = tmp_path / "trained" / CHECKPOINT
    reinforce.main(job(tmp_path / "inverse", agent="inverse", policy_from=trained, **joint))
    assert len(metrics(tmp_path / "inverse")) == 3
    with pytest.raises(CheckpointError, match="holds no REINFORCE policy"):
        reinforce.main(job(tmp_path / "x", policy_from=tmp_path / "inverse" / CHECKPOINT, **joint))


@pytest.mark.parametrize("policy", ["reinforce", pytest.param("inverse", marks=pytest.mark.ci)])
def test_a_run_goes_on_without_the_policy_that_it_started_from(tmp_path, policy):
    reinforce.main(job(tmp_path / "trained", updates=1))
    options = {"agent": policy, "policy_from": tmp_path / "trained" / CHECKPOINT}
    reinforce.main(job(tmp_path / "whole", **options))
    reinforce.main(job(tmp_path / "parts", **options, updates=1))
    (tmp_path / "trained").rename(tmp_path / "moved")
    reinforce.main(job(tmp_path / "parts", **options, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("policy", ["reinforce", "inverse"])
def test_a_run_starts_from_what_a_policy_has_learned_and_draws_by_its_own_seed(tmp_path, policy):
    reinforce.main(job(tmp_path / "trained"))
    learned = checkpoint.read(tmp_path / "trained" / CHECKPOINT)["agent"]
    env = gym.make("PermShuffle-v0", **SMALL)
    config = job(tmp_path / "run", agent=policy, seed=3, policy_from=tmp_path / "trained" / CHECKPOINT)
    agents = [reinforce.make_agent(each, env) for each in (config, dataclasses.replace(config, policy_from=None))]
    started, new = (each.state_dict() if policy == "reinforce" else each.state_dict()["policy"] for each in agents)
    assert all(torch.equal(started["network"][name], each) for name, each in learned["network"].items())
    assert not torch.equal(new["network"]["first.weight"], learned["network"]["first.weight"])
    assert agents[0].state_dict()["generator"] == agents[1].state_dict()["generator"]
    assert started["generator"] == new["generator"]


@pytest.mark.ci
def test_a_policy_of_another_kind_of_task_is_refused(tmp_path):
    reinforce.main(job(tmp_path / "joint", task="spatiotemporal", updates=1))
    with pytest.raises(CheckpointError, match=r"joint.*does not fit an agent"):
        reinforce.main(job(tmp_path / "x", policy_from=tmp_path / "joint" / CHECKPOINT))
    assert not (tmp_path / "x").exists()


@pytest.mark.ci
def test_space_and_time_in_series(tmp_path, capsys):
    first = reinforce.main(job(tmp_path / "first", env={"iterations_per_update": 20}, updates=1))
    then = {"task": "temporal", "trunk_from": tmp_path / "first" / CHECKPOINT}
    capsys.readouterr()
    whole = reinforce.main(job(tmp_path / "whole", **then))
    assert "% with the given trunk" in capsys.readouterr().out
    assert "spatial" in first["tasks"]
    assert "spatial" not in whole["tasks"]
    reinforce.main(job(tmp_path / "parts", **then, updates=1))
    reinforce.main(job(tmp_path / "parts", **then, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    reinforce.main(job(tmp_path / "still", **then, updates=1, env={"learning_rate": 0.0}))
    given, taken = (trunk_weights(checkpoint.read(tmp_path / name / CHECKPOINT)["run"]) for name in ("first", "still"))
    weights = [name for name in given if name.endswith(("weight", "bias"))]  # the batch statistics moved on
    assert weights
    for name in weights:
        np.testing.assert_allclose(taken[name], given[name], rtol=1e-5)


@pytest.mark.ci
def test_what_a_joint_policy_is_credited_with_is_the_users_choice(tmp_path):
    for choice in ("own", "sum"):
        reinforce.main(job(tmp_path / choice, task="spatiotemporal", agent_options=(("credit", choice),), updates=5))
    own, both = metrics(tmp_path / "own"), metrics(tmp_path / "sum")
    assert own[0] == both[0]  # before the first step of the policy
    assert own != both


def test_a_run_that_diverges_is_summed_up_all_the_same(tmp_path, capsys):
    config = job(tmp_path / "run", task="spatiotemporal", env={"learning_rate": 1e12})
    summary = reinforce.main(config)
    said = capsys.readouterr().out
    assert summary["diverged"]
    assert [task_summary["error_last"] for task_summary in summary["tasks"].values()] == [1, 1]
    assert "The loss was not finite" in said
    assert "Nearest neighbours, temporal: the features are not finite any more." in said
    assert float(metrics(tmp_path / "run")[-1]["diverged"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "colour"}, ConfigurationError, "unknown task 'colour'"),
        ({"env": {"backbone": "alexnet"}}, ConfigurationError, "unknown backbone 'alexnet'"),
        ({"images": Path("/nowhere")}, DataError, "/nowhere"),
        ({"task": "temporal", "videos": Path("/nowhere")}, DataError, "/nowhere"),
        ({"videos": Path("/nowhere")}, ConfigurationError, "task 'spatial' does not use it"),
        ({"task": "temporal", "images": Path("/nowhere")}, ConfigurationError, "task 'temporal' does not use it"),
        ({"task": "temporal", "eval_images": Path("/x")}, ConfigurationError, "--eval-images /x: task 'temporal'"),
        ({"task": "temporal", "env": {"split": 1}}, ConfigurationError, "--env.split 1: the embedded data has no"),
        ({"trunk_from": Path("/nowhere")}, CheckpointError, "no checkpoint at /nowhere"),
        ({"resume": True}, RunFolderError, r"no checkpoint.safetensors"),
        ({"agent_options": (("hidden", "-1"),)}, ConfigurationError, "--agent.hidden -1: hidden is -1, it must be"),
        ({"agent_options": (("hidden", "2"),) * 2}, ConfigurationError, "--agent.hidden 2: give it once"),
        ({"agent": "random", "compare_random": True}, ConfigurationError, "choose another --agent"),
        ({"policy_from": Path("/nowhere")}, CheckpointError, "no checkpoint at /nowhere"),
        ({"agent": "ucb", "policy_from": Path("/x")}, ConfigurationError, "--policy-from /x: ucb has no REINFORCE"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        reinforce.main(job(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_options": (("hidden", "-1"),)}, "--agent.hidden -1"),
        ({"policy_from": Path("/nowhere")}, "no checkpoint at /nowhere"),
    ],
)
def test_a_policy_that_cannot_be_made_is_refused_before_the_network_is_validated(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(PermShuffleEnv, "reset", lambda *_, **__: pytest.fail("the run has begun"))
    with pytest.raises((ConfigurationError, CheckpointError), match=message):
        reinforce.main(job(tmp_path / "run", **options))


def test_a_run_is_not_overwritten_nor_continued_with_other_options(tmp_path):
    reinforce.main(job(tmp_path / "run", updates=1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="continue it with --resume, or name another folder with --out"):
        reinforce.main(job(tmp_path / "run", updates=1))
    with pytest.raises(CheckpointError, match=r"started with seed=0, not 1"):
        reinforce.main(job(tmp_path / "run", seed=1, resume=True))
    with pytest.raises(CheckpointError, match=r"num_groups=4, this run num_groups=5"):
        reinforce.main(job(tmp_path / "run", env={"num_groups": 5}, resume=True))
    written = tmp_path / "run" / CHECKPOINT
    written.write_bytes(before[written][:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        reinforce.main(job(tmp_path / "run", resume=True))
    written.write_bytes(before[written])
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_all_files_but_the_checkpoint_are_written_again_from_it(tmp_path):
    folder = tmp_path / "run"
    reinforce.main(job(folder))
    names = {path.name for path in folder.iterdir()}
    before, rows, psi = (folder / "summary.json").read_text(), metrics(folder), np.load(folder / PSI)
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in (CHECKPOINT, LOCK):
            path.write_bytes(b"garbage \xff")
    reinforce.main(job(folder, resume=True))
    assert {path.name for path in folder.iterdir()} == names
    assert metrics(folder) == rows
    assert json.loads((folder / "summary.json").read_text())["tasks"] == json.loads(before)["tasks"]
    assert json.loads((folder / "config.json").read_text())["environment"]["num_groups"] == 4
    np.testing.assert_array_equal(np.load(folder / PSI), psi)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_never_saved_anything_begins_again(tmp_path, monkeypatch, resume):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        with pytest.raises(OSError, match="No space left"):
            reinforce.main(job(tmp_path / "run", updates=1))
    reinforce.main(job(tmp_path / "run", updates=1, resume=resume))
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_left_alone(tmp_path, resume):
    (tmp_path / "config.json").write_text("somebody else's")
    with pytest.raises(RunFolderError, match="is not empty and holds no run: name a new folder with --out"):
        reinforce.main(job(tmp_path, resume=resume))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "somebody else's"


def test_errors_reach_the_user_as_one_line(tmp_path):
    command = [sys.executable, "experiments/reinforce.py", "--preset", "huge", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: unknown preset 'huge'; choose one of")
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_title_of_its_pictures_names_policy_and_seed(tmp_path):
    assert job(tmp_path, agent="easiest-first", seed=3).title == "easiest-first, tiny preset, seed 3"
