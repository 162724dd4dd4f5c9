"""Table F.1."""

import json

import numpy as np
import pytest
import torch

import agents
from agents.rollout import rollout
from experiments import across_runs
from experiments.paper import table_f1
from experiments.paper.shared import policy_in
from permenv import CheckpointError
from permenv.wrappers.base import base_env_of
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "table.json"}
        return table_f1.Config(
            **{"seeds": 2, "processes": 0, "env": small(num_scenes=30, total_updates=3), **files, **changes}
        )

    return make


def test_it_measures_three_policies_at_every_checkpoint(options, tmp_path, capsys):
    report = table_f1.main(options())
    assert report == json.loads((tmp_path / "table.json").read_text()) | {"paper": table_f1.PAPER}
    assert len(report["accuracies"]) == 2
    for run in report["accuracies"]:
        assert list(run) == ["20%", "40%", "60%", "80%", "100%"]
        for point in run.values():
            for length in ("epoch", "quarter"):
                assert set(point[length]) == {*table_f1.KINDS, *map(table_f1._pool, table_f1.POOLS)}
                assert all(0 <= accuracy <= 1 for accuracy in point[length].values())
    ratios = [
        point["epoch"]["policy"] / point["epoch"]["random"] for run in report["accuracies"] for point in run.values()
    ]
    assert report["table"]["epoch"]["policy"]["mean"] == pytest.approx(np.mean(ratios))
    assert report["table"]["epoch"]["policy"]["sd"] == pytest.approx(np.std(ratios, ddof=1))
    best = report["best_pools"]["quarter"]["checkpoints"]["40%"]
    means = {
        kind: np.mean([run["40%"]["quarter"][kind] for run in report["accuracies"]])
        for kind in ("random", "easiest 10%", "easiest 30%", "easiest 50%", "easiest 70%", "easiest 90%")
    }
    assert best["ratio"] == pytest.approx(max(means.values()) / means["random"])
    assert means[best["pool"]] == max(means.values())
    assert list(report["by_checkpoint"]["quarter"]) == ["20%", "40%", "60%", "80%", "100%"]
    printed = capsys.readouterr().out
    assert "| policy | (125 ± 14)% |" in printed
    assert "best constant pool of each checkpoint, one epoch: " in printed


@pytest.mark.parametrize("kind", [*table_f1.KINDS, table_f1._pool(0.3)])
def test_copies_of_a_checkpoint_are_continued_by_the_frozen_policy_that_is_named(options, kind, monkeypatch):
    _, _, env = table_f1._with_epochs(options().environment)
    base_env = base_env_of(env)
    env, agent = policy_in(env, None, 0)
    observation, _ = env.reset(seed=0)
    rollout(env, agent, observation=observation, updates=1)
    weights = {name: value.clone() for name, value in base_env.run.trainer.network.state_dict().items()}
    seen = {}

    def play(fork, frozen, **given):
        seen.update(fork=fork, frozen=frozen, given=given)
        assert all(torch.equal(value, weights[name]) for name, value in fork.run.trainer.network.state_dict().items())
        return rollout(fork, frozen, **given)

    monkeypatch.setattr(table_f1, "rollout", play)
    errors = table_f1._continue(base_env, base_env.run.observation, kind, agent, None, 0, updates=1)
    assert len(errors) == 1
    assert seen["fork"] is not base_env
    assert seen["given"]["learn"] is False
    frozen = seen["frozen"]
    assert frozen is not agent
    expected = {"policy": agents.Reinforce, "inverse": agents.InversePolicy, "random": agents.RandomPolicy}
    assert type(frozen) is expected.get(kind, agents.EasiestFirst)
    if kind == "policy":
        np.testing.assert_array_equal(
            frozen.probabilities(base_env.run.observation), agent.probabilities(base_env.run.observation)
        )
    if kind not in expected:
        assert frozen.start == 0.3


def test_a_copy_that_diverges_after_its_first_epoch_recognises_nothing(options, monkeypatch):
    _, _, env = table_f1._with_epochs(options().environment)
    observation, _ = env.reset(seed=0)

    def play(fork, frozen, *, on_update, **given):
        def on_update_and_then_poison(transition):
            on_update(transition)
            for weights in fork.run.trainer.network.parameters():
                weights.data.fill_(torch.nan)

        return rollout(fork, frozen, on_update=on_update_and_then_poison, **given)

    monkeypatch.setattr(table_f1, "rollout", play)
    first, last = table_f1._continue(base_env_of(env), observation, "random", None, None, 0, updates=3)
    assert first < 1
    assert last == 1


def test_checkpoints_at_which_the_two_policies_are_the_same_are_told_from_others():
    def run(*at_first):
        return {"20%": {"epoch": dict(zip(table_f1.KINDS, at_first, strict=True))}, "40%": {"epoch": same}}

    same = {"policy": 0.6, "inverse": 0.6, "random": 0.5}
    found = table_f1._by_checkpoint([run(0.3, 0.1, 0.2), run(0.44, 0.36, 0.4)], "epoch")
    first, second = found["20%"], found["40%"]
    assert first["policy"] == pytest.approx((1.5 + 1.1) / 2)
    assert first["inverse"] == pytest.approx((0.5 + 0.9) / 2)
    assert first["difference"] == pytest.approx((1.0 + 0.2) / 2)
    half_width = 12.706 * 0.8 / 2  # of the differences of the two runs, by Student's t
    assert first["difference_high"] - first["difference"] == pytest.approx(half_width, rel=1e-4)
    assert first["equal"] == 0
    assert second["equal"] == 2
    assert second["difference"] == second["difference_low"] == second["difference_high"] == 0


def test_an_epoch_is_a_pass_over_the_training_samples(options):
    config = options()
    episode, quarter, env = table_f1._with_epochs(config.environment)
    task = env.unwrapped.tasks["spatial"]
    samples = len(task.data) - config.env.num_validation
    assert env.unwrapped.config.iterations_per_update == samples // config.env.batch_size
    assert env.unwrapped.config.total_updates == episode + quarter


@pytest.mark.ci
def test_a_policy_learned_across_runs(options, tmp_path):
    env = small(num_scenes=30, total_updates=3)
    across_runs.main(across_runs.Config(env=env, episodes=2, processes=0, out=tmp_path / "across"))
    report = table_f1.main(options(policy=tmp_path / "across", seeds=1))
    assert report["policy"] == "across"


def test_a_folder_without_a_policy_is_refused(options, tmp_path):
    with pytest.raises(CheckpointError, match=r"experiments/across_runs\.py"):
        table_f1.main(options(policy=tmp_path))
    assert not (tmp_path / "runs").exists()
