"""The search over settings: the grid, what is refused, and that neither Ray nor pruning changes an error."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import search
from experiments.common.agent_runs import play
from experiments.common.sweeps.pruning import Asha, pruned_sweep
from experiments.common.sweeps.settings import Setting, grid
from experiments.common.sweeps.sweep import JobError
from experiments.common.training.run_folder import RunFolderError
from permenv import ConfigurationError
from tests.experiments.helpers import arguments, small
from tests.helpers import ROOT

NUMBERS = {
    **{"num_permutations": 6, "num_groups": 2, "num_validation": 40, "batch_size": 16, "ema_decay": 0.0},
    **{"iterations_per_update": 20, "free_iterations": 0, "total_updates": 2},
}
"""The first update learns something, with a good learning rate."""
RATES = ("env.learning-rate", "0.02", "0.05", "0.000001", "0")
"""Two good learning rates, and two with which nothing is learned."""


@pytest.fixture
def options(tmp_path):
    """Return a function that makes small options; the runs are in this process."""

    def make(*vary, **changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "found"}
        given = {"agent": "exp3", "seeds": 2, "processes": 0, "env": small(), **files}
        return search.Config(**{"vary": vary, **given, **changes})

    return make


# The grid


def test_the_grid_has_all_combinations(options):
    vary = (("agent.learning-rate", "0.01", "1"), ("env.shared_crop", "True", "False"), ("env.split", "None"))
    found = grid(vary, "reinforce", options().environment)
    assert found[0] == Setting(
        "agent.learning-rate=0.01 env.shared-crop=True env.split=None",
        {"learning_rate": 0.01},
        {"shared_crop": True, "split": None},
    )
    assert [(each.agent["learning_rate"], each.env["shared_crop"]) for each in found] == [
        *itertools.product((0.01, 1), (True, False))
    ]


@pytest.mark.parametrize(
    ("agent", "vary", "said"),
    [
        ("exp3", (), r"--vary: name at least one option: agent.gamma, agent.eta, env.num-permutations"),
        ("exp3", [("gamma", "0.1")], r"--vary gamma: begin it with agent. or env."),
        ("exp3", [("agent.rate", "0.1")], r"--vary agent.rate: exp3 has agent.gamma, agent.eta$"),
        ("random", [("agent.rate", "0.1")], r"random has no options"),
        (
            "exp3",
            [("env.rate", "0.1")],
            r"--vary env.rate: the environment has env.num-permutations, .*seed",
        ),
        ("exp3", [("agent.gamma",)], r"--vary agent.gamma: name each option and each of its values once"),
        ("exp3", [("agent.gamma", "0.1", "1e-1")], r"--vary agent.gamma 0.1 1e-1: name each"),
        ("exp3", [("agent.gamma", "0.1"), ("agent.gamma", "0.2")], r"--vary agent.gamma 0.2: name each"),
        ("exp3", [("agent.gamma", "much")], r"--vary agent.gamma much: must be of type float"),
        ("exp3", [("agent.eta", "True")], r"--vary agent.eta True: must be of type float \| None"),
        ("reinforce", [("agent.hidden", "1.5")], r"--vary agent.hidden 1.5: must be of type int"),
        ("reinforce", [("agent.credit", "none")], r"--vary agent.credit none: must be of type .*'own', 'sum'"),
        ("exp3", [("agent.gamma", "0.1", "2")], r"agent.gamma=2: gamma is 2, it must be above 0 and at most 1"),
        ("exp3", [("env.grid", "3", "2.5")], r"grid=2.5: must be a number of type int"),
        ("exp3", [("env.batch-size", "7")], r"batch_size=7 is not divisible by"),
        ("sarsa", [("env.grid", "3")], r"unknown agent 'sarsa'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(options, tmp_path, agent, vary, said):
    with pytest.raises(ConfigurationError, match=said):
        search.main(options(*vary, agent=agent))
    assert not (tmp_path / "runs").exists()


@pytest.mark.ci
def test_options_of_stable_baselines_are_refused_too(options):
    with pytest.raises(ConfigurationError, match=r"agent.lr: ppo has agent.hidden, agent.policy, agent.learning-rate"):
        search.main(options(("agent.lr", "0.1"), agent="ppo"))
    assert len(grid([("agent.n-epochs", "3", "10")], "ppo", options().environment)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ray": None}, r"--prune: .* --ray"),
        ({"grace": 9}, r"--grace 9: a run has 3 updates"),
        ({"reduction": 1}, r"--reduction 1: must be at least 2"),
        ({"vary": (("env.free-iterations", "2"),)}, r"--vary env.free-iterations: .* as long"),
    ],
)
def test_pruning_that_means_nothing_is_refused(options, changes, said):
    with pytest.raises(ConfigurationError, match=said):
        search.main(options(**{"vary": (RATES,), "prune": True, "ray": "local", **changes}))


# Without pruning


@pytest.mark.parametrize("agent", ["reinforce", pytest.param("ppo", marks=pytest.mark.ci)])
def test_seeds_side_by_side_are_runs_like_others(options, agent):
    config = options()
    reported = []
    setting = Setting("", {"hidden": 8}, {"learning_rate": 0.05})
    result = search.trial(agent, setting, (50, 51), config.environment, lambda each: reported.append(dict(each)))
    for errors, seed in zip(result["by_seed"], (50, 51), strict=True):
        alone = play(agent, config.make(learning_rate=0.05), seed=seed, hidden=8)
        assert alone["errors"][2::2] == errors  # the others are before the first update, and of free iterations
        assert alone["iterations"][-1] == result["iterations"]
    assert [each["errors"] for each in reported] == [result["errors"][:end] for end in (1, 2, 3)]
    assert [each["finished"] for each in reported] == [False, False, True]
    assert result["errors"] == pytest.approx([sum(pair) / 2 for pair in zip(*result["by_seed"], strict=True)])


def test_a_run_that_diverges_has_the_worst_error(options):
    result = search.trial("exp3", Setting("", {}, {"learning_rate": 1e30}), (50, 51), options().environment)
    assert result["diverged"] == 2
    assert result["finished"]
    assert result["errors"] == [1.0]


@pytest.mark.ci
def test_it_ranks_the_settings_by_their_mean_error(options, tmp_path, capsys):
    report = search.main(options(RATES, env=small(**NUMBERS)))
    rows = report["settings"]
    assert json.loads((tmp_path / "found.json").read_text()) == report
    assert [row["error"] for row in rows] == sorted(row["error"] for row in rows)
    assert rows[-1]["env"] in ({"learning_rate": 0}, {"learning_rate": 1e-6})
    for row in rows:
        final = [errors[-1] for errors in row["errors"]]
        best = [errors[-1] for errors in rows[0]["errors"]]
        assert row["error"] == pytest.approx(sum(final) / 2)
        assert row["accuracy"] == pytest.approx(sum(1 - each for each in final) / sum(1 - each for each in best))
        assert (row["stopped"], row["updates"], row["diverged"]) == (False, 2, 0)
    table = (tmp_path / "found.md").read_text()
    assert "| env.learning-rate=0.05 | 2 |" in table
    assert "stopped" not in table
    assert table in capsys.readouterr().out


def test_it_continues_where_it_was_stopped(options, tmp_path):
    config = options(("env.learning-rate", "0.03", "0.02"), env=small(total_updates=2))
    whole = search.main(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    missing = tmp_path / "runs" / "env.learning-rate=0.03.json"
    missing.unlink()
    again = search.main(config)
    assert {path for path, before in times.items() if path.stat().st_mtime_ns != before} == {missing}
    assert errors_of(again) == errors_of(whole)
    for changes in ({"seeds": 3}, {"agent": "ucb"}, {"env": small(total_updates=3)}):
        with pytest.raises(RunFolderError, match=r"was made with arguments.*--runs"):
            search.main(dataclasses.replace(config, **changes))


def errors_of(report):
    """Return the errors of all seeds after each update, by setting."""
    return {row["setting"]: row["errors"] for row in report["settings"]}


def test_a_setting_that_was_stopped_is_no_rank():
    def result(errors, finished):
        return {
            "errors": errors,
            "by_seed": [errors],
            "diverged": 0,
            "iterations": 1,
            "seconds": 0,
            "finished": finished,
        }

    found = {
        "low but early": result([0.1], False),
        "worst": result([0.9, 0.8, 0.7], True),
        "later": result([0.5, 0.4], False),
        "best": result([0.9, 0.8, 0.6], True),
    }
    rows = search._rows({name: Setting(name) for name in found}, found)
    assert [row["setting"] for row in rows] == ["best", "worst", "later", "low but early"]
    assert [row["accuracy"] for row in rows] == pytest.approx([1, 0.3 / 0.4, 0.6 / 0.2, 0.9 / 0.1])
    heading = {"agent": "exp3", "data": "d", "iterations": 3, "seeds": 1, "interval": "i"}
    table = search.in_words({**heading, "settings": rows})
    assert "| later | stopped after 2 |" in table
    assert "do not compare them with the others" in table


# On Ray


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two machines of one core, both in this machine."""
    pytest.importorskip("ray.tune", reason="the extra dev has it", exc_type=ImportError)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=node)
    found.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield found
    found.shutdown()


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_neither_a_cluster_nor_pruning_changes_an_error(options, tmp_path, cluster):
    env = small(**NUMBERS)
    whole = errors_of(search.main(options(RATES, env=env)))
    on_ray = options(RATES, env=env, ray=cluster.address, runs=tmp_path / "on-ray")
    assert errors_of(search.main(on_ray)) == whole
    pruning = {"prune": True, "grace": 1, "reduction": 2}
    pruning |= {"env": env, "ray": cluster.address, "runs": tmp_path / "pruned"}
    report = search.main(options(RATES, **pruning))
    stopped = {row["setting"] for row in report["settings"] if row["stopped"]}
    assert stopped & {f"env.learning-rate={rate}" for rate in ("1e-06", "0")}
    assert not report["settings"][0]["stopped"]
    for row in report["settings"]:
        assert row["updates"] == 2 or row["stopped"]
        assert row["errors"] == [errors[: row["updates"]] for errors in whole[row["setting"]]]
    with pytest.raises(RunFolderError, match=r"was made with arguments.asha.grace=1, not 2"):
        search.main(options(RATES, **{**pruning, "grace": 2}))
    with pytest.raises(RunFolderError, match=r"was made with arguments.asha"):
        search.main(options(RATES, env=env, runs=tmp_path / "pruned"))


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_a_search_that_is_stopped_goes_on_without_what_was_done(options, tmp_path, cluster):
    runs = tmp_path / "runs"
    words = [*arguments(**NUMBERS), "--agent=exp3", "--seeds=2", f"--runs={runs}"]
    words += ["--vary", *RATES, f"--ray={cluster.address}", "--prune", "--grace=1", "--reduction=2"]
    command = [sys.executable, "experiments/search.py", "--preset=tiny", *words, f"--out={tmp_path / 'found'}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(runs.glob("*.json")):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.splitlines()[-1].startswith(f"stopped by SIGTERM: {runs} holds the finished runs; continue with: ")
    assert "Traceback" not in said
    times = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert 1 <= len(times) < 4
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    report = json.loads((tmp_path / "found.json").read_text())
    whole = errors_of(search.main(options(RATES, env=small(**NUMBERS), preset="tiny", runs=None)))
    assert errors_of(report).keys() == whole.keys()
    for row in report["settings"]:
        assert row["errors"] == [errors[: row["updates"]] for errors in whole[row["setting"]]]


def fail(report):
    """Do a job that cannot be done."""
    raise ZeroDivisionError("no zero")


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_a_setting_that_fails_is_named(cluster):
    asha = Asha(updates=2, grace=1, reduction=2)
    with pytest.raises(JobError, match="bad one: no zero") as caught:
        pruned_sweep(fail, {"bad one": {}}, asha, ray=cluster.address, processes=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_cluster_that_is_not_there_is_named(options):
    pytest.importorskip("ray.tune", reason="the extra dev has it", exc_type=ImportError)
    with pytest.raises(ConfigurationError, match=r"--ray 127.0.0.1:1: .*; name the address of a cluster"):
        search.main(options(RATES, prune=True, ray="127.0.0.1:1"))


def test_without_ray_the_remedy_is_named(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"--prune needs the package ray\[tune\]: pip install"):
        search.main(options(RATES, prune=True, ray="local"))
