"""A run without an environment: iterations, validations, forks, checkpoints, trunks; driven by hand like the agent."""

import copy
import json
import pickle

import cv2
import numpy as np
import pytest
import torch

import permenv
from permenv import CheckpointError, ConfigurationError, DataError, Pretraining
from permenv.pretraining import read_trunk
from permenv.saved_run import read_run
from tests.helpers import (
    PARTS,
    PIECES,
    SMALL,
    action_of,
    assert_same,
    assert_same_weights,
    joint_first,
    random_actions,
    rollout,
    small_run,
)

CPU = torch.device("cpu")


def iterate(run: Pretraining, count: int, seed: int = 0) -> list[dict[str, float]]:
    """Take SGD iterations with a group per sample, chosen at random; return their losses."""
    rng = np.random.default_rng(seed)
    shape = (run.config.batch_size, len(run.tasks))
    return [dict(run.iterate(rng.integers(run.config.num_groups, size=shape))) for _ in range(count)]


def record_labels(run: Pretraining) -> dict[str, list[np.ndarray]]:
    """Keep the labels that would be trained on, by task, and train on nothing."""
    seen = {part: [] for part in run.tasks}

    def step(batches):
        for part, batch in batches.items():
            seen[part].append(batch.labels.copy())
        run.trainer.iteration += 1
        return dict.fromkeys(batches, 1.0)

    run.trainer.step = step
    return seen


def record_draws(run: Pretraining) -> dict[str, tuple[np.ndarray, dict]]:
    """Keep what the next iteration draws, by task: the samples, and the generator of their augmentation."""
    drawn = {}
    for part, task in run.tasks.items():

        def shard_of_pieces(rows, samples, orders, rng, part=part, cut=task.shard_of_pieces):
            drawn[part] = samples, rng.bit_generator.state
            return cut(rows, samples, orders, rng)

        task.shard_of_pieces = shard_of_pieces
    return drawn


# Training


def test_five_lines_train_on_a_folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    numbers = {name: value for name, value in SMALL.items() if name not in ("num_scenes", "num_clips")}

    run = permenv.Pretraining.create("tiny", images=tmp_path, seed=0, **numbers)
    while run.iteration < 6:
        losses = run.iterate()
    assert run.validate()
    errors = run.records[-1].errors

    assert losses.keys() == errors.keys() == {"spatial"}
    assert np.isfinite(losses["spatial"])
    assert 0 <= errors["spatial"] <= 1
    assert len(run.tasks["spatial"].data) == 40
    assert [record.iteration for record in run.records] == [0, 6]


@joint_first
def test_a_new_run_is_validated_and_near_chance(task):
    run = small_run(task)
    assert run.iteration == 0
    assert [record.phase for record in run.records] == ["reset"]
    assert list(run.tasks) == list(run.validation) == list(run.groups) == list(run.permutations) == PARTS[task]
    for part in PARTS[task]:
        assert run.records[0].errors[part] > 0.9
        assert run.losses[part] == pytest.approx(np.log(24))
        assert run.permutations[part].shape == (24, PIECES[part])
        assert run.held_out[part].shape == (12, {"spatial": 1, "temporal": 9}[part])
    assert not run.diverged
    assert not run.choices.any()


@joint_first
def test_without_groups_all_permutations_are_equally_likely(task):
    run = small_run(task, batch_size=480, samples_per_action=1)
    seen = record_labels(run)
    for _ in range(5):
        run.iterate()
    for row, part in enumerate(PARTS[task]):
        labels = np.concatenate(seen[part])
        counts = np.bincount(labels, minlength=24)
        assert len(labels) == 2400
        assert ((counts - 100) ** 2 / 100).sum() < 49.7  # χ² of 23 degrees, p = 0.001
        expected = np.bincount(run.groups[part][labels], minlength=4)
        np.testing.assert_array_equal(run.choices[row], expected)  # the groups of what was drawn


@joint_first
@pytest.mark.parametrize("rows", [1, 4, 8])
def test_each_row_of_groups_decides_an_equal_part_of_the_mini_batch(task, rows):
    run = small_run(task)
    seen, groups = record_labels(run), np.random.default_rng(1).integers(4, size=(rows, len(PARTS[task])))
    run.iterate(groups)
    for column, part in enumerate(PARTS[task]):
        expected = groups[:, column].clip(max=run.groups[part].max())  # an empty group stands for the easiest
        np.testing.assert_array_equal(run.groups[part][seen[part][0]], expected.repeat(8 // rows))
        np.testing.assert_array_equal(run.choices[column], np.bincount(groups[:, column], minlength=4))


@pytest.mark.parametrize("seed", [-1, 1.5, True, "3"])
def test_a_seed_that_is_none_is_refused_before_the_data_are_read(seed):
    with pytest.raises(ConfigurationError, match=f"seed={seed!r}: must be an integer of at least 0"):
        Pretraining.create("tiny", images="a folder that is not there", seed=seed)


@joint_first
def test_the_seed_decides_the_run(task):
    first, same, other = (small_run(task, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.observation, same.observation)
    assert not np.array_equal(first.observation, other.observation)
    assert iterate(first, 4) == iterate(same, 4)
    assert_same_weights(first, same)


class _Recorder:
    """Images or clips that remember which of them were taken."""

    def __init__(self, data):
        self._data, self.taken = data, []

    def __len__(self):
        return len(self._data)

    def __getattr__(self, name):
        return getattr(self._data, name)

    def take(self, which, *others):
        self.taken.extend(which.tolist())
        return self._data.take(which, *others)


@joint_first
def test_what_is_trained_on_does_not_depend_on_the_choices_nor_on_the_network(task):
    """Samples and augmentation of an iteration are the same whatever was chosen, drawn and learned before."""
    runs, drawn = [small_run(task, seed=3), small_run(task, seed=3, learning_rate=0.2)], []
    for run, groups in zip(runs, (None, [[0] * len(PARTS[task])]), strict=True):
        for _ in range(2):
            run.iterate(groups)
        drawn.append(record_draws(run))
        run.iterate(groups)
    first, second = drawn
    weights = [next(run.trainer.network.parameters()) for run in runs]
    assert not torch.equal(*weights)
    for part in PARTS[task]:
        np.testing.assert_array_equal(first[part][0], second[part][0])  # samples
        assert first[part][1] == second[part][1]  # the state of the generator of the augmentation


@joint_first
def test_a_seed_that_is_set_on_a_fork_draws_other_data_from_there_on(task):
    run = small_run(task)
    iterate(run, 2)
    same, other = run.fork(), run.fork()
    other.seed = 17
    for part in PARTS[task]:
        np.testing.assert_array_equal(other.held_out[part], run.held_out[part])
    assert iterate(same, 1) == iterate(run, 1) != iterate(other, 1)
    assert other.fork().seed == 17


@joint_first
def test_validation_samples_are_never_trained_on(task):
    run = small_run(task, num_validation=50)
    recorders = {}
    for part, each in run.tasks.items():
        each.data = recorders[part] = _Recorder(each.data)
    iterate(run, 10)
    for _ in range(10):
        run.iterate()
    for part, recorder in recorders.items():
        held_out = set(run.held_out[part][:, 0])
        assert len(held_out) == {"spatial": 50, "temporal": 3}[part]  # 50 images; a fifth of 16 clips
        assert len(run.held_out[part]) == 50
        assert len(recorder.taken) > 100
        assert set(recorder.taken) == set(range(len(recorder))) - held_out


# Validation


@joint_first
def test_a_validation_adds_a_record_and_begins_new_counts(task):
    run = small_run(task)
    iterate(run, 3)
    choices, groups_before = run.choices.copy(), run.groups
    assert choices.sum() == 3 * 8 * len(PARTS[task])
    assert run.validate()
    assert run.groups is not groups_before
    last = run.records[-1]
    assert (last.iteration, last.phase) == (3, "update")
    assert last.errors == {part: run.validation[part].error for part in PARTS[task]}
    assert last.cross_entropies == {part: run.validation[part].cross_entropy for part in PARTS[task]}
    np.testing.assert_array_equal(last.choices, choices)
    np.testing.assert_array_equal(last.observation, run.observation)
    assert not run.choices.any()
    assert run.history == {
        part: [(record.iteration, record.errors[part]) for record in run.records] for part in PARTS[task]
    }
    run.validate("free")
    assert [record.phase for record in run.records] == ["reset", "update", "free"]


@joint_first
def test_the_network_is_applied_to_shuffled_pieces_without_changing_the_run(task):
    run = small_run(task)
    iterate(run, 5)
    twin, validated = run.fork(), run.fork()
    assert validated.validate()
    for part in PARTS[task]:
        orders = run.permutations[part][np.full(12, 5)]
        logits = run.network(part, run.tasks[part].pieces(run.held_out[part], orders))
        assert logits.shape == (12, 24)
        assert not logits.requires_grad
        np.testing.assert_array_equal(logits.argmax(1).numpy() == 5, validated.validation[part].correct[5])
    assert run.trainer.network.training
    assert iterate(run, 5) == iterate(twin, 5)


def test_the_tiles_of_a_sample_form_its_image():
    """The nine tiles of an image of X_val, laid out again, are the image."""
    run = small_run(piece_size=18)
    task, samples = run.tasks["spatial"], run.held_out["spatial"]
    images = task.data.take(samples[:, 0], CPU).numpy()
    pieces = task.raw_pieces(samples)
    rebuilt = pieces.reshape(12, 3, 3, 18, 18, 3).transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    np.testing.assert_array_equal(rebuilt, images)
    np.testing.assert_array_equal(task.originals(samples), images)


def test_the_frames_of_a_sample_are_those_of_its_clip_in_the_order_of_time():
    run = small_run("temporal", merge_reversed=False)
    task, samples = run.tasks["temporal"], run.held_out["temporal"]
    for (clip, *places), shown in zip(samples, task.raw_pieces(samples), strict=True):
        film = task.data.frames.take(np.arange(task.data.starts[clip], task.data.starts[clip + 1]), CPU).numpy()
        np.testing.assert_array_equal(shown, film[sorted(places), 1:17, 1:17])  # 16 of 18 pixels


@joint_first
def test_a_loss_that_is_not_finite_is_not_trained_on(task):
    run = small_run(task)
    iterate(run, 1)
    part = PARTS[task][-1]
    run.trainer.network.heads[part].classifier.bias.data.fill_(torch.inf)
    losses = run.iterate()
    assert [name for name, loss in losses.items() if not np.isfinite(loss)] == [part]
    assert run.diverged
    assert run.iteration == 1


@joint_first
def test_a_validation_that_is_not_finite_keeps_the_last_one(task):
    run = small_run(task)
    iterate(run, 2)
    validation, records, groups = run.validation, list(run.records), run.groups
    run.trainer.eval_network.heads[PARTS[task][-1]].classifier.bias.data.fill_(torch.nan)
    assert run.validate() is False
    assert run.diverged
    assert run.validation is validation
    assert run.groups is groups
    assert run.records == records


@joint_first
@pytest.mark.parametrize("at_validation", [True, False])
def test_the_error_of_a_run_is_1_where_it_diverged(task, at_validation):
    run = small_run(task)
    iterate(run, 2)
    run.validate()
    errors = [sum(record.errors.values()) / len(PARTS[task]) for record in run.records]
    assert [record.error for record in run.records] == errors
    assert run.diverged_at is None
    assert run.error_curve() == ([0, 2], errors)
    iterate(run, 3)
    for network in (run.trainer.network, run.trainer.eval_network):
        network.heads[PARTS[task][-1]].classifier.bias.data.fill_(torch.nan)
    if at_validation:
        run.validate()
    else:
        run.iterate()
    assert (run.iteration, run.diverged_at) == (5, 6)
    assert run.error_curve() == ([0, 2, 6], [*errors, 1.0])
    for part in PARTS[task]:
        assert run.error_curve(part) == ([0, 2, 6], [*(record.errors[part] for record in run.records), 1.0])
    assert run.fork().diverged_at == 6


# The environment drives the same run


@joint_first
def test_a_run_driven_by_hand_is_the_environments_run_bit_for_bit(make_env, task):
    """Given the groups of the environment's actions, at the iterations at which it validates."""
    env = make_env(task=task)
    observation, _ = env.reset(seed=5)
    run = small_run(task, seed=5)
    np.testing.assert_array_equal(run.observation, observation)
    for number in range(1, 8):  # two cycles of one free iteration and two of the update
        actions = random_actions(env, 4, number)
        observation, *_, info = rollout(env, actions)[-1]
        assert run.iterate(actions.reshape(4, -1)) == info["task_losses"]
        if number % 3 != 2:
            run.validate("free" if number % 3 == 1 else "update")
        np.testing.assert_array_equal(run.observation, observation)
    assert_same_weights(run, env)
    theirs = env.unwrapped.run
    assert run.seed == theirs.seed
    assert run.history == theirs.history
    assert [record.phase for record in run.records] == [record.phase for record in theirs.records]
    for part in PARTS[task]:
        np.testing.assert_array_equal(run.held_out[part], theirs.held_out[part])
        np.testing.assert_array_equal(run.groups[part], theirs.groups[part])
        np.testing.assert_array_equal(run.validation[part].ratios, theirs.validation[part].ratios)


# Fork, state, checkpoints


@joint_first
def test_a_fork_and_its_parent_continue_identically_and_independently(task):
    run = small_run(task)
    iterate(run, 3)
    fork, stray = run.fork(), run.fork()
    iterate(stray, 3, seed=9)
    stray.validate()
    for each in (run, fork):
        assert len(each.records) == 1
        assert each.choices.sum() == 3 * 8 * len(PARTS[task])
    assert iterate(run, 3, seed=1) == iterate(fork, 3, seed=1)
    for each in (run, fork):
        each.validate()
    np.testing.assert_array_equal(run.observation, fork.observation)
    assert run.iterate() == fork.iterate()
    assert_same_weights(run, fork)
    assert run.history == fork.history


@joint_first
@pytest.mark.parametrize("ema_decay", [0.0, 0.97])
def test_a_fork_and_its_parent_continue_like_a_run_that_was_not_forked(task, ema_decay):
    run, plain = (small_run(task, ema_decay=ema_decay) for _ in range(2))
    for each in (run, plain):
        iterate(each, 3)
        each.validate()
        iterate(each, 1)
    fork, stray = run.fork(), run.fork()
    iterate(stray, 4, seed=9)
    stray.validate()
    expected = iterate(plain, 3, seed=1)
    plain.validate()
    for each in (run, fork):  # the fork after its parent
        assert iterate(each, 3, seed=1) == expected
        each.validate()
        assert each.history == plain.history
        np.testing.assert_array_equal(each.records[-1].choices, plain.records[-1].choices)
        assert_same_weights(each, plain)
    assert stray.history != plain.history


def test_a_fork_neither_builds_a_network_nor_reads_data(monkeypatch):
    run = small_run()
    iterate(run, 2)

    def never(*arguments, **keywords):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("permenv.training.build_network", never)
        patch.setattr(run.tasks["spatial"], "pieces", never)
        fork = run.fork()
    assert iterate(fork, 1, seed=1) == iterate(run, 1, seed=1)


def test_what_a_fork_knows_is_its_own():
    run = small_run()
    fork = run.fork()
    before = copy.deepcopy((run.validation, run.groups, run.records))
    fork.validation["spatial"].ratios[:] = 0
    fork.groups["spatial"][:] = 0
    fork.records[0].observation[:] = 0
    np.testing.assert_array_equal(run.validation["spatial"].ratios, before[0]["spatial"].ratios)
    np.testing.assert_array_equal(run.groups["spatial"], before[1]["spatial"])
    np.testing.assert_array_equal(run.records[0].observation, before[2][0].observation)


def test_a_fork_shares_the_data_and_counts_its_own_seconds():
    run = small_run()
    iterate(run, 2)
    assert all(seconds > 0 for seconds in run.seconds.values())
    fork = run.fork()
    assert fork.tasks["spatial"].data is run.tasks["spatial"].data
    before = dict(run.seconds)
    assert fork.seconds == dict.fromkeys(before, 0)
    fork.iterate()
    assert run.seconds == before
    assert fork.seconds["training"] > 0


@joint_first
def test_a_state_is_loaded_into_another_run(task):
    run, other = small_run(task), small_run(task, seed=9)
    iterate(run, 2)
    run.validate()
    iterate(run, 1, seed=2)
    iterate(other, 1)
    other.load_state_dict(run.state_dict())
    assert other.iteration == run.iteration
    assert other.losses == run.losses
    np.testing.assert_array_equal(other.choices, run.choices)
    for part in PARTS[task]:
        np.testing.assert_array_equal(other.validation[part].correct, run.validation[part].correct)
        assert other.validation[part].error == run.validation[part].error
    assert iterate(run, 2, seed=1) == iterate(other, 2, seed=1)
    assert_same_weights(run, other)


@joint_first
def test_a_saved_run_continues_bit_for_bit(task, tmp_path):
    run, other = small_run(task), small_run(task, seed=9)
    iterate(run, 3)
    run.save(tmp_path / "run")
    other.load(tmp_path / "run")
    assert iterate(run, 2, seed=1) == iterate(other, 2, seed=1)
    for each in (run, other):
        each.validate()
    np.testing.assert_array_equal(run.observation, other.observation)
    assert run.iterate() == other.iterate()


def test_a_run_continues_what_an_environment_saved(make_env, tmp_path):
    env, run = make_env(), small_run(seed=9)
    env.reset(seed=0)
    rollout(env, random_actions(env, 8))
    env.unwrapped.save(tmp_path / "run")
    run.load(tmp_path / "run")
    actions = random_actions(env, 4, 1)
    info = rollout(env, actions)[-1][4]
    assert run.iterate(actions[:, None]) == info["task_losses"]


def test_an_environment_does_not_continue_a_run_without_an_environment(make_env, tmp_path):
    small_run().save(tmp_path / "run")
    env, twin = make_env(), make_env()
    env.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(CheckpointError, match=r"of a run without an environment: load it with Pretraining.load"):
        env.reset(options={"checkpoint": tmp_path / "run"})
    assert_same(rollout(env, random_actions(env, 8)), rollout(twin, random_actions(twin, 8)))


def test_an_environment_begins_with_the_trunk_of_a_run_without_an_environment(make_env, tmp_path):
    run = small_run()
    iterate(run, 2)
    run.save(tmp_path / "run")
    env = make_env(task="temporal")
    env.reset(seed=1, options={"trunk": tmp_path / "run"})
    trunk = run.trainer.eval_network.trunk.state_dict()
    found = env.unwrapped.run.trainer.network.trunk.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in found.items())
    env.step(action_of(env, 0))


def test_a_state_of_another_configuration_leaves_the_run_as_it_was():
    run, twin = small_run(seed=1), small_run(seed=1)
    with pytest.raises(
        CheckpointError, match=r"learning_rate=0.5, this run learning_rate=0.03 \(all differences: learning_rate\)"
    ):
        run.load_state_dict(small_run(learning_rate=0.5).state_dict())
    assert iterate(run, 2) == iterate(twin, 2)


def test_the_number_of_updates_may_differ():
    run = small_run(total_updates=1)
    run.load_state_dict(small_run(seed=3, total_updates=7).state_dict())
    assert run.config.total_updates == 1


@joint_first
def test_the_identity_is_plain_json(task):
    run = small_run(task)
    assert json.loads(json.dumps(run.identity)) == run.identity
    assert list(run.identity["data"]) == PARTS[task]
    assert run.identity["num_groups"] == 4
    assert "total_updates" not in run.identity


def test_the_identity_says_what_auto_stands_for():
    """On another device "auto" may be another precision."""
    run = small_run(precision="auto")
    assert run.identity["precision"] == run.trainer.precision
    assert run.identity == small_run(precision=run.trainer.precision).identity


def test_a_file_without_a_run_raises_an_error(tmp_path):
    permenv.checkpoint.write(tmp_path / "agent", {"agent": {}})
    with pytest.raises(CheckpointError, match=r"agent holds no run: name a file that save\(\) or a training job wrote"):
        read_run(tmp_path / "agent")


# The trunk of another run


@pytest.mark.parametrize("ema_decay", [0.0, 0.97])
def test_a_run_begins_with_the_trunk_that_another_run_validated(tmp_path, ema_decay):
    first = small_run(ema_decay=ema_decay)
    iterate(first, 3)
    first.save(tmp_path / "run")
    second = small_run("temporal", seed=1)
    trunk = read_trunk(tmp_path / "run", second.config, second.tasks)
    expected = first.trainer.eval_network.trunk.state_dict()
    assert trunk.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in trunk.items())
    run = Pretraining(second.config, second.tasks, CPU, seed=1, trunk=trunk)
    for network in (run.trainer.network, run.trainer.eval_network):
        assert all(torch.equal(value, expected[name]) for name, value in network.trunk.state_dict().items())
    for part in PARTS["temporal"]:  # the seed decides everything else
        np.testing.assert_array_equal(run.held_out[part], second.held_out[part])
    heads = zip(run.trainer.network.heads.parameters(), second.trainer.network.heads.parameters(), strict=True)
    assert all(torch.equal(weight, other) for weight, other in heads)
    iterate(run, 2)  # on copies
    assert all(torch.equal(value, expected[name]) for name, value in trunk.items())


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "huge"}, ConfigurationError, "unknown preset 'huge'"),
        ({"task": "colour"}, ConfigurationError, "unknown task 'colour'; choose one of spatial, temporal, spatiotemp"),
        ({"num_grups": 3}, ConfigurationError, "unknown keyword 'num_grups'; did you mean 'num_groups'"),
        ({"image": "/x"}, ConfigurationError, "unknown keyword 'image'; did you mean 'images'"),
        ({"device": "mps"}, ConfigurationError, "unknown device 'mps'"),
        ({"images": "/nowhere"}, DataError, "/nowhere"),
        ({"videos": "/clips"}, ConfigurationError, "videos='/clips': task 'spatial' does not use it; pass images"),
    ],
)
def test_an_error_names_a_bad_option_and_the_remedy(options, error, message):
    with pytest.raises(error, match=message):
        Pretraining.create(**{**SMALL, **options})


# What a run refuses


def test_a_diverged_run_refuses_to_go_on():
    run = small_run(learning_rate=1e30, ema_decay=0.0)
    for _ in range(20):
        run.iterate()
        if run.diverged:
            break
    with pytest.raises(RuntimeError, match=r"diverged at iteration \d+: lower learning_rate=1e\+30"):
        run.iterate()
    with pytest.raises(RuntimeError, match="diverged"):
        run.validate()
    assert run.diverged


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[-1]], "integers from 0 to 3"),
        ([[4]], "integers from 0 to 3"),
        ([[0.0]], "integers from 0 to 3"),
        ([[0], [1], [2]], r"groups of shape \(3, 1\): pass \(A, 1\).*divisor of batch_size=8"),
        ([[0, 1]], r"groups of shape \(1, 2\)"),
        ([0], r"groups of shape \(1,\)"),
    ],
)
def test_groups_that_do_not_fit_are_refused_before_anything_is_drawn(groups, message):
    run = small_run()
    with pytest.raises(ValueError, match=message):
        run.iterate(groups)
    assert not run.choices.any()
    assert run.iterate([[0]]) == small_run().iterate([[0]])


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="phase='foo': choose one of reset, free, update"):
        small_run().validate("foo")


def test_a_run_pickles():
    run = small_run()
    iterate(run, 2)
    twin = pickle.loads(pickle.dumps(run))
    assert iterate(twin, 3) == iterate(run, 3)


def test_a_state_with_other_permutations_is_refused():
    run = small_run()
    state = run.state_dict()
    state["tasks"]["spatial"]["permutations"] = state["tasks"]["spatial"]["permutations"][::-1]
    with pytest.raises(CheckpointError, match="other permutations of task 'spatial'"):
        run.load_state_dict(state)
    run.iterate()
