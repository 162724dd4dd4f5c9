"""Policies learned across runs: training, resuming, and playing the frozen policy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agents import GaussianReinforce, sb3_across
from agents.sb3 import ALGORITHMS
from experiments import across_runs, leaderboard, reinforce, sb3
from experiments.common.agent_runs import play_learned
from experiments.common.learned import LearnedPolicy, wrap
from experiments.common.training.run_folder import CHECKPOINT, LOCK, RunFolderError, read_rows
from permenv import CheckpointError, ConfigurationError, PermShuffleEnv, checkpoint
from tests.agents.helpers import assert_equal_trees
from tests.experiments.helpers import job, small, write_photos
from tests.helpers import small_run


@pytest.fixture
def options(tmp_path):
    """Return a function that makes small options; the runs are in this process."""

    def make(**changes):
        numbers = {
            "episodes": 6,
            "episodes_per_update": 2,
            "history": 2,
            "algorithm": "gaussian",
            "hidden": 16,
            "processes": 0,
            "out": tmp_path / "across",
        }
        return across_runs.Config(**{"env": small(total_updates=2), **numbers, **changes})

    return make


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("actions", ["pool", "mixture"])
def test_it_learns_from_episodes_of_fresh_seeds(options, tmp_path, actions, monkeypatch):
    reset, seeds = PermShuffleEnv.reset, []

    def record(env, *, seed=None, options=None):
        seeds.append(seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(PermShuffleEnv, "reset", record)
    config = options(actions=actions)
    rows = across_runs.main(config)
    assert seeds == list(range(config.first_episode, config.first_episode + 6))
    assert [row["episodes"] for row in rows] == [2, 4, 6]
    assert all(0 < row["error_end"] <= 1 and 0 < row["error_half"] <= 1 for row in rows)
    assert {row["gradient"] == 0 for row in rows} == {False}
    assert {path.name for path in (tmp_path / "across").iterdir()} == {
        "config.json",
        "metrics.csv",
        "tensorboard",
        CHECKPOINT,
        LOCK,
    }
    assert json.loads((tmp_path / "across" / "config.json").read_text())["actions"] == actions


OURS = pytest.mark.parametrize(
    "learner", [{"algorithm": "gaussian"}, {"algorithm": "pgpe", "history": 0, "hidden": 0}], ids=["gaussian", "pgpe"]
)


@OURS
def test_it_resumes_to_the_same_numbers(options, learner, tmp_path):
    whole = across_runs.main(options(**learner))
    across_runs.main(options(**learner, episodes=4, out=tmp_path / "parts"))
    resumed = across_runs.main(options(**learner, out=tmp_path / "parts", resume=True))
    assert without_seconds(resumed) == without_seconds(whole)


def test_a_policy_that_was_saved_under_the_former_name_of_its_algorithm_is_played_and_resumed(options):
    config = options(episodes=4)
    rows = across_runs.main(options(episodes=2))
    path = config.folder / CHECKPOINT
    saved = checkpoint.read(path)
    saved["job"]["settings"]["algorithm"] = "reinforce"
    checkpoint.write(path, saved)
    _, agent = LearnedPolicy.find(path).make(config.make(), seed=0)
    assert isinstance(agent, GaussianReinforce)
    assert without_seconds(across_runs.main(options(episodes=4, resume=True))[:1]) == without_seconds(rows)


def test_it_is_not_continued_on_other_data(options, tmp_path):
    write_photos(tmp_path / "images")
    given = {"algorithm": "pgpe", "history": 0, "hidden": 0, "images": tmp_path / "images"}
    across_runs.main(options(**given, episodes=2))
    across_runs.main(options(**given, episodes=4, resume=True))
    (tmp_path / "images" / "class0" / "0.jpg").unlink()
    with pytest.raises(CheckpointError, match="was trained on other data"):
        across_runs.main(options(**given, resume=True))


def test_a_policy_that_has_learned_on_is_not_taken_for_the_one_that_was_found(options):
    config = options(algorithm="pgpe", history=0, hidden=0, episodes=2)
    across_runs.main(config)
    policy = LearnedPolicy.find(config.folder)
    policy.make(config.make(), seed=0)
    across_runs.main(options(algorithm="pgpe", history=0, hidden=0, episodes=4, resume=True))
    with pytest.raises(CheckpointError, match=f"{policy.path} has changed meanwhile.*: copy it, and name the copy"):
        policy.make(config.make(), seed=0)


def test_it_begins_as_a_curriculum(options):
    env = small(total_updates=4, free_iterations=0)
    config = options(algorithm="pgpe", history=0, hidden=0, imitate=(0.1, 0.5), learning_rate=1e-9, episodes=2, env=env)
    across_runs.main(config)
    wrapped, agent = LearnedPolicy.find(config.folder).make(config.make(), seed=0)
    observation, _ = wrapped.reset(seed=3)
    shares = []
    for _ in range(4):
        action = agent.act(observation)
        shares.append(wrapped.get_wrapper_attr("shares")(action).item())
        observation = wrapped.step(action)[0]
    np.testing.assert_allclose(shares, [0.1, 0.55, 1, 1], atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imitate": (0.0, 0.5)}, r"--imitate 0\.0 0\.5: both must be above 0"),
        ({"imitate": (0.1, 0.5), "actions": "mixture"}, "is imitated with --actions pool"),
        ({"imitate": (0.1, 0.5), "algorithm": "ppo"}, "--algorithm gaussian or pgpe"),
        ({"deviation": 0.1, "algorithm": "gaussian"}, "is an option of pgpe"),
        ({"deviation": 0.0, "algorithm": "pgpe"}, "must be above 0"),
    ],
)
def test_impossible_options_are_refused(options, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        options(**changes)


@pytest.mark.parametrize("updates", [0, 1])
def test_a_run_that_diverges_ends_with_the_worst_error(updates):
    """In its first iteration, or at its very end, where only the last validation is not finite."""
    run = small_run(free_iterations=0, iterations_per_update=2, total_updates=2)
    for _ in range(updates):
        run.iterate()
        run.iterate()
        run.validate()
        run.iterate()
        run.iterate()
    for network in (run.trainer.network, run.trainer.eval_network):
        network.heads["spatial"].classifier.bias.data.fill_(np.nan)
    run.validate()
    assert run.diverged_at == 1 + 4 * updates
    assert across_runs.errors_of(run) == (run.records[-1].error if updates else 1, 1)


def test_parameter_noise_needs_pairs_of_episodes(options):
    with pytest.raises(ConfigurationError, match=r"--episodes 5 .*make both even"):
        options(algorithm="pgpe", episodes=5)


@pytest.mark.ci
@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "sac"])
def test_stable_baselines3_learns_resumes_and_plays(options, algorithm):
    config = options(algorithm=algorithm, episodes=4)
    rows = across_runs.main(config)
    assert [row["episodes"] for row in rows] == [2, 4]
    saved = checkpoint.read(config.folder / CHECKPOINT)
    across_runs.main(options(algorithm=algorithm, episodes=4, resume=True))  # loads, saves and plays no more
    again = checkpoint.read(config.folder / CHECKPOINT)
    assert_equal_trees(again["agent"], saved["agent"])
    assert_equal_trees(again["job"]["scale"], saved["job"]["scale"])
    resumed = across_runs.main(options(algorithm=algorithm, episodes=6, resume=True))
    assert without_seconds(resumed[:2]) == without_seconds(rows)
    assert [row["episodes"] for row in resumed] == [2, 4, 6]
    policy = LearnedPolicy.find(config.folder)
    first, second = (play_learned(policy, config.make(), seed=7) for _ in range(2))
    assert first["errors"] == second["errors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["job"].pop("scale"), "scale is None"),
        (lambda saved: saved["job"]["scale"]["observation"].update(mean=np.zeros(2)), "scale/observation/mean"),
        (lambda saved: saved["job"]["scale"]["return"].update(count="many"), "scale/return/count is 'many'"),
        (lambda saved: saved["agent"]["networks"].pop("policy"), "it is a model of other sizes or of another version"),
    ],
)
def test_a_model_of_stable_baselines3_that_does_not_fit_is_refused_by_its_file(options, change, message):
    config = options(algorithm="ppo", episodes=2)
    across_runs.main(config)
    path = config.folder / CHECKPOINT
    saved = checkpoint.read(path)
    change(saved)
    checkpoint.write(path, saved)
    with pytest.raises(CheckpointError, match=f"{path}: {message}"):
        LearnedPolicy.find(path).make(config.make(), seed=0)
    with pytest.raises(CheckpointError, match=f"{path}: {message}"):
        across_runs.main(options(algorithm="ppo", resume=True))


@pytest.mark.parametrize("algorithm", across_runs.LEARNERS)
def test_a_policy_of_ours_that_does_not_fit_is_refused_by_its_file(options, algorithm):
    config = options(algorithm=algorithm, episodes=2)
    across_runs.main(config)
    path = config.folder / CHECKPOINT
    saved = checkpoint.read(path)
    del saved["agent"]["generator"]
    checkpoint.write(path, saved)
    with pytest.raises(CheckpointError, match=f"{path}: agent lacks 'generator'"):
        across_runs.main(options(algorithm=algorithm, resume=True))


@pytest.mark.ci
@pytest.mark.parametrize(("algorithm", "untrained"), [("ppo", 0), ("a2c", 0), ("sac", 1)])
def test_stable_baselines3_learns_from_its_last_episodes(options, algorithm, untrained, monkeypatch):
    rows_when_it_learned = []
    config = options(algorithm=algorithm, episodes=4)
    kind = ALGORITHMS[algorithm].kind
    train = kind.train

    def count(model, *arguments, **keywords):
        begun = (config.folder / "metrics.csv").is_file()
        rows_when_it_learned.append(len(read_rows(config.folder)) if begun else 0)
        return train(model, *arguments, **keywords)

    monkeypatch.setattr(kind, "train", count)
    rows = across_runs.main(config)
    assert rows_when_it_learned == list(range(untrained, len(rows)))  # SAC draws its first actions at random


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "sac"])
@pytest.mark.parametrize("hidden", [0, 16])
def test_the_policy_of_stable_baselines3_sees_the_state(options, algorithm, hidden):
    config = options(algorithm=algorithm, hidden=hidden)
    env = wrap(config.make(), config.actions, config.history)
    model = sb3_across.make_vector_model(
        algorithm, [lambda: env], steps=8, seed=0, first_episode=0, hidden=hidden, discount=1
    )
    states = np.random.default_rng(0).normal(size=(2, *env.observation_space.shape)).astype(np.float32)
    actions, _ = model.predict(states, deterministic=True)
    assert not np.allclose(*actions)


@pytest.mark.long
def test_stable_baselines3_learns_in_processes(options):
    rows = across_runs.main(options(algorithm="ppo", episodes=4, processes=2))
    assert rows[-1]["episodes"] == 4


@pytest.mark.ci
def test_the_number_of_processes_does_not_matter(options, tmp_path):
    alone = across_runs.main(options(episodes=4))
    together = across_runs.main(options(episodes=4, processes=2, out=tmp_path / "together"))
    assert without_seconds(together) == without_seconds(alone)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_its_first_update_begins_again(options, tmp_path, resume):
    (tmp_path / "across").mkdir()
    (tmp_path / "across" / LOCK).touch()
    assert len(across_runs.main(options(episodes=2, resume=resume))) == 1


def test_a_frozen_policy_needs_the_checkpoint_only(options, tmp_path):
    config = options(episodes=2)
    across_runs.main(config)
    (tmp_path / "across" / "config.json").write_text("garbage")
    policy = LearnedPolicy.find(config.folder)
    assert play_learned(policy, config.make(), seed=7)["iterations"] == [0, 1, 3, 4, 6]


@pytest.mark.parametrize(
    "train",
    [
        lambda folder: reinforce.main(job(folder, updates=1)),
        lambda folder: sb3.main(sb3.Config(out=folder, device="cpu", env=small(total_updates=1))),
        lambda folder: checkpoint.write(folder, {"job": {"settings": "actions and history"}}),
    ],
    ids=["reinforce", "sb3", "a forged file"],
)
def test_a_run_is_not_found_as_a_policy_across_runs(tmp_path, train):
    train(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run.* holds no policy across runs"):
        LearnedPolicy.find(tmp_path / "run")


def test_a_replay_buffer_keeps_its_number_of_environments(options):
    across_runs.main(options(algorithm="sac", episodes=2))
    with pytest.raises(CheckpointError, match="started with processes=0, not 3"):
        across_runs.main(options(algorithm="sac", processes=3, resume=True))


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(options):
    across_runs.main(options(episodes=2))
    with pytest.raises(RunFolderError, match="--resume"):
        across_runs.main(options(episodes=2))
    with pytest.raises(CheckpointError, match=r"discount=0\.97, not 0\.5"):
        across_runs.main(options(discount=0.5, resume=True))


@OURS
@pytest.mark.parametrize("actions", ["pool", "mixture"])
def test_a_frozen_policy_plays_the_mean_of_its_actions(options, learner, actions):
    config = options(**learner, actions=actions, episodes=2)
    across_runs.main(config)
    policy = LearnedPolicy.find(config.folder)
    copy = LearnedPolicy.find(Path(shutil.copy(config.folder / CHECKPOINT, config.folder / "mine.safetensors")))
    assert (policy.name, copy.name, copy.digest) == (config.folder.name, "mine", policy.digest)
    first, second = (play_learned(each, config.make(), seed=7) for each in (policy, copy))
    assert first["errors"] == second["errors"]
    assert first["iterations"] == [0, 1, 3, 4, 6]


@pytest.mark.parametrize("actions", ["pool", "mixture"])
def test_the_inverse_exchanges_easy_and_hard(options, actions):
    env = options(env=small(batch_size=64, samples_per_action=1, num_groups=4)).make()
    straight, inverse = (wrap(env, actions, 1, inverse=inverse) for inverse in (False, True))
    straight.reset(seed=0)
    action = np.full(straight.action_space.shape, -0.5, np.float32)
    if actions == "mixture":
        action[...] = np.linspace(-1, 1, action.shape[-1])
    found = []
    for each in (straight, inverse):
        each.reset(seed=0)
        each.step(action)
        found.append(env.unwrapped.records[-1].choices[0])
    sizes = env.unwrapped.records[0].observation[:, 0]
    ranks = np.arange(len(sizes)) - (np.arange(len(sizes)) * sizes).sum()  # below 0: harder than the average
    assert np.sign((found[0] * ranks).sum()) == -np.sign((found[1] * ranks).sum()) != 0


def test_the_leaderboard_compares_a_policy_and_its_inverse(options, tmp_path):
    across_runs.main(options(episodes=2))
    files = {"runs": tmp_path / "runs", "out": tmp_path / "board"}
    report = leaderboard.main(
        leaderboard.Config(
            agents=("random",),
            policies=(tmp_path / "across",),
            seeds=2,
            processes=0,
            env=small(total_updates=2),
            **files,
        )
    )
    assert {row["agent"] for row in report["agents"]} == {"random", "across", "inverse of across"}


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"experiments/across_runs\.py"):
        LearnedPolicy.find(tmp_path)
