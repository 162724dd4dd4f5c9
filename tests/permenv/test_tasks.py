"""Tasks: what a sample is, which are held out, which pixels become which piece; the registry of tasks."""

import itertools
import pickle
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv import (
    ConfigurationError,
    DataError,
    Pretraining,
    StillImages,
    VideoClips,
    make_config,
    register_task,
    registered_tasks,
)
from permenv.permutations import maximally_different
from permenv.setup import make_tasks
from permenv.tasks import SpatialTask, Task, TemporalTask
from permenv.wrappers import FlatJointAction
from tests.helpers import NUMBERS, SMALL, action_of, assert_same, random_actions, rollout
from tests.permenv.series_task import LENGTH, SEGMENTS, SeriesTask, make_trunk

CPU = torch.device("cpu")
FOLDERS = {"images": "/i", "videos": "/v"}
UNCOLOURED = {"jitter": 0.0, "grey_probability": 0.0}


def stills(pixels: np.ndarray, name: str = "stills") -> StillImages:
    return StillImages(torch.from_numpy(pixels), labels=None, classes=(), name=name, fingerprint=name)


def coded_clips(lengths, side: int) -> VideoClips:
    """Clips with coded pixels: red is the number of the clip, green the position of its frame, blue the pixel's."""
    lengths = np.asarray(lengths)
    starts = np.concatenate([[0], lengths.cumsum()])
    pixels = np.empty((starts[-1], side, side, 3), dtype=np.uint8)
    for clip, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        pixels[start : start + length, ..., 0] = clip
        pixels[start : start + length, ..., 1] = np.arange(length)[:, None, None]
    pixels[..., 2] = np.arange(side * side).reshape(side, side)
    return VideoClips(stills(pixels, "coded clips"), starts, tuple(f"clip {clip}" for clip in range(len(lengths))))


def noisy_clips(num_clips: int, length: int, side: int) -> VideoClips:
    pixels = np.random.default_rng(0).integers(0, 256, (num_clips * length, side, side, 3), dtype=np.uint8)
    names = tuple(f"clip {clip}" for clip in range(num_clips))
    return VideoClips(stills(pixels), np.arange(num_clips + 1) * length, names)


def temporal(clips: VideoClips, **overrides) -> TemporalTask:
    """A task on clips of side 7, by default with pieces of 6; Ψ are all permutations of few frames."""
    sizes = {"cell_size": 6, "piece_size": 6, "num_frames": 4}
    config = make_config("tiny", **{**NUMBERS, **sizes, "merge_reversed": False, "shared_crop": False, **overrides})
    permutations = np.array(list(itertools.permutations(range(config.num_frames))))
    return TemporalTask(config, permutations, clips, CPU)


def spatial(num_images: int = 20, **overrides) -> SpatialTask:
    config = make_config("tiny", **{**NUMBERS, "cell_size": 8, "piece_size": 6, "grid": 2, **overrides})
    side = config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
    return SpatialTask(config, maximally_different(config.num_tiles, 24), stills(pixels), CPU)


def make_task(name: str, **overrides) -> SpatialTask | TemporalTask:
    return spatial(**overrides) if name == "spatial" else temporal(noisy_clips(20, 9, 7), **overrides)


def plainly_normalised(piece: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 to (3, h, w), each channel of mean 0 and deviation 1."""
    values = piece.astype(np.float64) / 255
    return ((values - values.mean((0, 1))) / values.std((0, 1))).transpose(2, 0, 1)


def cells(task, sample: np.ndarray) -> list[np.ndarray]:
    """What the pieces of a sample are cropped from, in their true order: the cells of an image, or frames."""
    if isinstance(task, TemporalTask):
        first = task.data.starts[sample[0]]
        return [task.data.frames.pixels[first + place].numpy() for place in sample[1:]]
    image, cell = task.data.pixels[sample[0]].numpy(), task.config.cell_size
    corners = itertools.product(range(0, len(image), cell), repeat=2)
    return [image[top : top + cell, left : left + cell] for top, left in corners]


def crops(cell: np.ndarray, size: int) -> list[np.ndarray]:
    reach = range(len(cell) - size + 1)
    return [cell[top : top + size, left : left + size] for top, left in itertools.product(reach, repeat=2)]


def cut_from(piece: np.ndarray, cell: np.ndarray) -> bool:
    return any(np.allclose(piece, plainly_normalised(crop), atol=1e-4) for crop in crops(cell, piece.shape[1]))


# Samples


def test_a_sample_of_the_spatial_task_is_an_image():
    task, rng = spatial(), np.random.default_rng(0)
    held_out = task.hold_out(rng)
    assert held_out.shape == (12, 1)
    assert held_out.dtype == np.int64
    assert len(np.unique(held_out)) == 12
    samples = task.draw(task.trainable(held_out), 6, rng)
    assert samples.shape == (6, 1)
    assert task.originals(samples).shape == (6, 16, 16, 3)


@given(st.lists(st.integers(4, 12), min_size=2, max_size=8), st.booleans(), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_a_sample_has_different_frames_of_its_clip_in_the_order_of_time(lengths, merge_reversed, seed):
    task, rng = temporal(coded_clips(lengths, 7), merge_reversed=merge_reversed), np.random.default_rng(seed)
    for samples in (task.hold_out(rng), task.draw(np.arange(len(lengths)), 30, rng)):
        assert samples.shape[1] == 5
        assert samples.dtype == np.int64
        clips, places = samples[:, 0], samples[:, 1:]
        assert (places >= 0).all()
        assert (places < np.array(lengths)[clips][:, None]).all()  # never beyond the end of the clip
        steps = np.diff(places, axis=1)
        assert ((steps > 0).all(1) | ((steps < 0).all(1) & merge_reversed)).all()
        seen = task.originals(samples)
        np.testing.assert_array_equal(seen[..., 0], np.broadcast_to(clips[:, None, None, None], seen.shape[:4]))
        np.testing.assert_array_equal(seen[..., 1], np.broadcast_to(places[:, :, None, None], seen.shape[:4]))


@pytest.mark.parametrize("merge_reversed", [False, True])
def test_every_set_of_frames_is_equally_likely(merge_reversed):
    """Beside a longer clip, whose length must not change the probabilities of the shorter ones."""
    task = temporal(coded_clips([6, 30, 5], 7), merge_reversed=merge_reversed)
    samples = task.draw(np.array([0, 1, 2]), 9000, np.random.default_rng(0))
    for clip, length in ((0, 6), (2, 5)):
        drawn = Counter(tuple(sorted(sample[1:])) for sample in samples if sample[0] == clip)
        subsets = list(itertools.combinations(range(length), 4))
        expected = drawn.total() / len(subsets)
        chi_square = sum((drawn[subset] - expected) ** 2 / expected for subset in subsets)
        assert set(drawn) == set(subsets)
        assert chi_square < len(subsets) - 1 + 4 * (2 * (len(subsets) - 1)) ** 0.5


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_the_given_items_and_no_others_are_drawn_equally_often(name):
    task, among = make_task(name), np.array([1, 4, 5, 17])
    counts = np.bincount(task.draw(among, 4000, np.random.default_rng(0))[:, 0], minlength=20)
    assert set(np.flatnonzero(counts)) == set(among)
    assert ((counts[among] - 1000) ** 2 / 1000).sum() < 16


def test_with_merge_reversed_half_of_the_samples_run_backwards():
    clips = coded_clips([9] * 6, 7)
    for merge_reversed, share in ((True, 0.5), (False, 0)):
        task = temporal(clips, merge_reversed=merge_reversed)
        samples = task.draw(np.arange(6), 2000, np.random.default_rng(0))
        assert (samples[:, 1] > samples[:, -1]).mean() == pytest.approx(share, abs=0.04)


def test_the_seed_decides_the_samples():
    for name in ("spatial", "temporal"):
        task = make_task(name)
        first, same, other = (task.draw(np.arange(20), 30, np.random.default_rng(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)


# X_val


@given(st.integers(2, 60), st.integers(1, 40), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_at_most_a_fifth_of_the_clips_is_held_out_each_about_equally_often(num_clips, num_validation, seed):
    task = temporal(coded_clips([5] * num_clips, 7), num_validation=num_validation)
    held_out = task.hold_out(np.random.default_rng(seed))
    assert held_out.shape == (num_validation, 5)
    clips, counts = np.unique(held_out[:, 0], return_counts=True)
    assert len(clips) == min(num_validation, max(1, num_clips // 5))
    assert counts.max() - counts.min() <= 1
    trainable = task.trainable(held_out)
    np.testing.assert_array_equal(np.sort(np.concatenate([clips, trainable])), np.arange(num_clips))
    assert len(trainable) >= 1


def test_a_clip_that_gives_several_samples_gives_other_frames_in_each():
    task = temporal(coded_clips([30] * 10, 7), num_validation=20)
    held_out = task.hold_out(np.random.default_rng(0))
    assert len(np.unique(held_out[:, 0])) == 2
    assert len(np.unique(held_out, axis=0)) == 20


@given(st.integers(1, 19), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_images_that_are_held_out_are_not_trainable(num_validation, seed):
    task = spatial(num_validation=num_validation)
    held_out = task.hold_out(np.random.default_rng(seed))
    trainable = task.trainable(held_out)
    assert held_out.shape == (num_validation, 1)
    np.testing.assert_array_equal(np.sort(np.concatenate([held_out[:, 0], trainable])), np.arange(20))
    np.testing.assert_array_equal(trainable, np.sort(trainable))


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_every_image_or_clip_may_be_held_out(name):
    task = make_task(name, num_validation=3)
    found = {int(i) for seed in range(60) for i in task.hold_out(np.random.default_rng(seed))[:, 0]}
    assert found == set(range(20))


# Pieces


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_position_k_holds_the_piece_that_the_permutation_names(name):
    task, rng = make_task(name, **UNCOLOURED), np.random.default_rng(0)
    samples, labels = task.draw(np.arange(20), 6, rng), rng.integers(24, size=6)
    pieces = task.pieces(samples, task.permutations[labels], rng)
    assert pieces.shape == (6, 4, 3, 6, 6)
    assert pieces.dtype == torch.float32
    for sample, label, shuffled in zip(samples, labels, pieces.numpy(), strict=True):
        there = cells(task, sample)
        for k, piece in enumerate(shuffled):
            assert [cut_from(piece, cell) for cell in there] == [i == task.permutations[label][k] for i in range(4)]


@pytest.mark.parametrize(
    ("name", "shared_crop", "num_places"), [("spatial", True, 9), ("temporal", False, 4), ("temporal", True, 4)]
)
def test_every_piece_has_its_own_random_crop_or_the_frames_of_a_sample_share_one(name, shared_crop, num_places):
    task = make_task(name, shared_crop=shared_crop, **UNCOLOURED)
    samples, labels = task.draw(np.arange(20), 40, np.random.default_rng(1)), np.zeros(40, dtype=int)
    pieces = task.pieces(samples, task.permutations[labels], np.random.default_rng(2)).numpy()
    places = np.empty((40, 4), dtype=int)
    for b, (sample, shuffled) in enumerate(zip(samples, pieces, strict=True)):
        there = cells(task, sample)
        for k, i in enumerate(task.permutations[0]):
            found = [np.allclose(shuffled[k], plainly_normalised(crop), atol=1e-4) for crop in crops(there[i], 6)]
            assert sum(found) == 1
            places[b, k] = found.index(True)
    counts = np.bincount(places.ravel())
    assert len(counts) == num_places
    assert counts.max() < 2.5 * counts.min()
    at_one_place = (places == places[:, :1]).all(1)
    assert at_one_place.all() if name == "temporal" and shared_crop else at_one_place.mean() < 0.1


@pytest.mark.parametrize("name", ["spatial", "temporal"])
@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_training_pieces_are_grey_with_the_probability_of_the_configuration(name, grey):
    task = make_task(name, jitter=0.0, grey_probability=grey)
    rng = np.random.default_rng(0)
    samples = task.draw(np.arange(len(task.data)), 8, rng)
    pieces = task.pieces(samples, None, rng)  # [B, n, 3, h, w]
    same = (pieces - pieces.mean(2, keepdim=True)).abs().amax((2, 3, 4)) < 1e-3
    assert bool(same.all() if grey else not same.any())


def test_the_seed_of_the_scenes_decides_the_embedded_data():
    for kind, name in ((SpatialTask, "scenes"), (TemporalTask, "clips")):
        first, second = (kind.load(None, small(scenes_seed=seed)).fingerprint for seed in (0, 1))
        assert first.startswith(name)
        assert first != second


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_training_pieces_are_jittered_one_by_one_and_normalised(name):
    task = make_task(name, jitter=1.0, grey_probability=0.0)
    samples = task.draw(np.arange(20), 8, np.random.default_rng(0))
    pieces = task.pieces(samples, task.permutations[np.zeros(8, dtype=int)], np.random.default_rng(0)).numpy()
    np.testing.assert_allclose(pieces.mean((3, 4)), 0, atol=1e-4)
    kept = [
        cut_from(piece, cell)
        for b, s in enumerate(samples)
        for piece, cell in zip(pieces[b], cells(task, s), strict=True)
    ]
    assert not any(kept)  # as they were without jitter


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_without_a_generator_pieces_are_centre_crops_in_true_order_with_unchanged_colours(name):
    task = make_task(name, jitter=1.0, grey_probability=1.0)
    samples = task.hold_out(np.random.default_rng(0))
    pieces = task.pieces(samples)
    assert pieces.shape == (12, 4, 3, 6, 6)
    slack = {"spatial": 2, "temporal": 1}[name]
    middle = slice(slack // 2, slack // 2 + 6)
    for sample, straight in zip(samples, pieces.numpy(), strict=True):
        for piece, cell in zip(straight, cells(task, sample), strict=True):
            np.testing.assert_allclose(piece, plainly_normalised(cell[middle, middle]), atol=1e-4)


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_raw_pieces_are_in_the_given_orders(name):
    task = make_task(name)
    samples = task.draw(np.arange(20), 2, np.random.default_rng(0))
    orders = np.array([[2, 0, 3, 1], [3, 2, 1, 0]])
    straight, shuffled = (task.raw_pieces(samples, order) for order in (None, orders))
    assert shuffled.dtype == np.uint8
    for b in range(2):
        np.testing.assert_array_equal(shuffled[b], straight[b, orders[b]])


def test_a_clip_that_runs_backwards_keeps_its_label():
    """ψ shuffles the sample as it is played: position k holds its ψ[k]-th frame in the order of playing."""
    task = temporal(noisy_clips(6, 9, 7), merge_reversed=True, **UNCOLOURED)
    samples, labels = np.array([[2, 8, 5, 3, 0], [1, 7, 6, 2, 1]]), np.array([3, 17])
    for sample, label, shuffled in zip(
        samples, labels, task.pieces(samples, task.permutations[labels], np.random.default_rng(0)).numpy(), strict=True
    ):
        played = cells(task, sample)
        assert all(cut_from(piece, played[i]) for piece, i in zip(shuffled, task.permutations[label], strict=True))


# Data that cannot be used


def test_too_few_images_raise_an_error():
    assert len(spatial(13).data) == 13
    with pytest.raises(DataError, match=r"num_validation=12, but stills has only 12 items and at least one must be"):
        spatial(12)


def test_a_single_clip_raises_an_error():
    assert len(temporal(coded_clips([5, 5], 7)).data) == 2
    with pytest.raises(DataError, match=r"coded clips has 1 clip, but one is held out"):
        temporal(coded_clips([5], 7))


def test_an_error_names_a_clip_that_is_too_short():
    assert temporal(coded_clips([5, 4, 5], 7)).num_pieces == 4
    with pytest.raises(DataError, match=r"clip clip 1 has 3 frames, a sample needs num_frames=4: lower num_frames or"):
        temporal(coded_clips([5, 3, 4], 7))


# The registered tasks


def small(**overrides):
    return make_config("tiny", **{**NUMBERS, **overrides})


@pytest.mark.parametrize(
    ("name", "parts"),
    [("spatial", ["spatial"]), ("temporal", ["temporal"]), ("spatiotemporal", ["spatial", "temporal"])],
)
def test_the_parts_of_a_task(name, parts):
    made = make_tasks(name, small(), CPU, {})
    assert list(made) == parts
    if "spatial" in made:
        assert isinstance(made["spatial"], SpatialTask)
        assert made["spatial"].permutations.shape == (24, 9)
        assert made["spatial"].data.pixels.shape == (60, 54, 54, 3)
    if "temporal" in made:
        assert isinstance(made["temporal"], TemporalTask)
        assert made["temporal"].permutations.shape == (24, 8)
        np.testing.assert_array_equal(made["temporal"].data.lengths, [10] * 16)
        assert made["temporal"].data.frames.size == 18  # 16 · 256 / 224


def test_the_head_fits_the_task():
    made = make_tasks("spatiotemporal", small(), CPU, {})
    for task in made.values():
        assert task.head(20)(torch.zeros(3, task.num_pieces, 20)).shape == (3, 24)
    spatial_head, temporal_head = (task.head(20) for task in made.values())
    assert (spatial_head.fc6[0].out_features, spatial_head.fc7.out_features) == (16, 32)
    assert (temporal_head.fc6[0].out_features, temporal_head.lstm.hidden_size) == (16, 16)


@pytest.mark.parametrize("relative", [False, True])
def test_the_temporal_head_is_relative_as_configured(relative):
    task = make_tasks("temporal", small(relative_frames=relative), CPU, {})["temporal"]
    assert task.head(20).relative == relative


def test_the_sets_of_permutations_are_the_configured_ones():
    config = small(permutation_seed=5, merge_reversed=True)
    made = make_tasks("spatiotemporal", config, CPU, {})
    np.testing.assert_array_equal(made["spatial"].permutations, maximally_different(9, 24, 5))
    np.testing.assert_array_equal(made["temporal"].permutations, maximally_different(8, 24, 5, merge_reversed=True))


@pytest.mark.parametrize(
    ("name", "data", "overrides", "message"),
    [
        ("spatial", {"videos": "/v"}, {}, r"videos='/v': task 'spatial' does not use it; pass images"),
        ("temporal", {"images": "/i"}, {}, r"images='/i': task 'temporal' does not use it; pass videos"),
        ("temporal", {"images": np.zeros(1)}, {}, r"images=<ndarray>: task 'temporal' does not use it; pass videos"),
        ("spatiotemporal", {"series": "/s"}, {}, r"series='/s': task .* does not use it; pass images and videos"),
        # before any folder is read: these do not exist
        ("spatiotemporal", FOLDERS, {"num_frames": 4, "num_permutations": 25}, r"25: 4 pieces have only 24"),
        ("spatiotemporal", FOLDERS, {"grid": 2, "num_permutations": 25}, r"25: 4 pieces have only 24"),
        ("temporal", {"videos": "/v"}, {"num_permutations": 40_321}, r"40321: 8 pieces have only 40320 permutations;"),
        (
            "temporal",
            {"videos": "/v"},
            {"num_permutations": 20_161, "merge_reversed": True},
            r"20161: 8 pieces have only 20160 permutations that are not reverses of others",
        ),
        (
            "spatial",
            {"images": "/i"},
            {"num_permutations": 362_881},
            r"362881: 9 pieces have only 362880 permut",
        ),
    ],
)
def test_settings_that_fit_no_data_raise_an_error(name, data, overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        make_tasks(name, small(**overrides), CPU, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [("spatiotemporal", {"images": "/nowhere"}), ("temporal", {"videos": "/nowhere"})],
)
def test_an_error_names_a_folder_that_does_not_exist(name, data):
    with pytest.raises(DataError, match="/nowhere"):
        make_tasks(name, small(), CPU, data)


def test_arrays_are_data():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 54, 54, 3), dtype=np.uint8)
    task = make_tasks("spatial", small(), CPU, {"images": pixels})["spatial"]
    np.testing.assert_array_equal(task.originals(np.array([[7]]))[0], pixels[7])


# A task of one's own


class QuarterTask(SeriesTask):
    """Order the quarters of a series: other pieces than those of `SeriesTask`."""

    name = "quarters"
    piece_shape = (1, SEGMENTS * LENGTH // 4)

    @classmethod
    def count_pieces(cls, config):
        return 4

    def pieces(self, samples, orders=None, rng=None):
        quarters = self.data.values[samples[:, 0]].reshape(-1, 4, 1, self.piece_shape[1])
        orders = self.true_orders(len(samples)) if orders is None else orders
        return torch.from_numpy(np.take_along_axis(quarters, orders[:, :, None, None], axis=1))


class ReversedTask(SeriesTask):
    """Order the segments of series that are played backwards."""

    name = "reversed"

    def pieces(self, samples, orders=None, rng=None):
        return super().pieces(samples, orders, rng).flip(-1)


def test_a_registered_task_is_trained_by_name(registry, make_env):
    register_task("series", SeriesTask)
    assert registered_tasks()["series"] == (SeriesTask,)
    env = make_env(task="series")
    observation, info = env.reset(seed=0)
    assert observation.shape == (4, 2)
    assert list(info["task_errors"]) == ["series"]
    assert env.unwrapped.config.backbone is make_trunk
    run = env.unwrapped.run
    assert len(run.tasks["series"].data) == 500
    assert run.permutations["series"].shape == (24, SEGMENTS)
    before = [weight.detach().clone() for weight in run.trainer.network.trunk.parameters()]
    infos = [step[4] for step in rollout(env, random_actions(env, 24))]
    assert infos[-1]["update"] == 2
    assert all(np.isfinite(info["loss"]) for info in infos)
    after = run.trainer.network.trunk.parameters()
    assert not any(torch.equal(weight, old) for weight, old in zip(after, before, strict=True))


def test_a_registered_task_learns(registry):
    register_task("series", SeriesTask)
    run = Pretraining.create("tiny", "series", seed=0, **{**SMALL, "batch_size": 32, "fc6": 32, "fc7": 64})
    for _ in range(150):
        run.iterate()
    run.validate()
    assert run.records[0].errors["series"] > 0.9
    assert run.records[-1].errors["series"] < 0.5


def test_a_registered_task_forks_saves_and_pickles(registry, make_env, tmp_path):
    register_task("series", SeriesTask)
    env, restored = make_env(task="series"), make_env(task="series")
    env.reset(seed=0)
    rollout(env, random_actions(env, 14))
    env.unwrapped.save(tmp_path / "run")
    restored.reset(options={"checkpoint": tmp_path / "run"})
    fork, copy = env.unwrapped.fork(), pickle.loads(pickle.dumps(env))
    actions = random_actions(env, 14, 1)
    expected = rollout(env, actions)
    for each in (fork, restored, copy):
        assert_same(rollout(each, actions), expected)


def test_a_registered_task_is_drawn(registry, make_env):
    register_task("series", SeriesTask)
    env = make_env(task="series", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (400, 1000, 3)
    rollout(env, random_actions(env, 4))
    assert not np.array_equal(env.render(), first)
    task = env.unwrapped.tasks["series"]
    pieces = task.raw_pieces(np.array([[3], [4]]))
    assert pieces.shape == (2, SEGMENTS, 1, LENGTH)
    assert pieces.min(axis=(1, 2, 3)) == pytest.approx(0)
    assert pieces.max(axis=(1, 2, 3)) == pytest.approx(1)
    np.testing.assert_array_equal(task.originals(np.array([[3], [4]])), pieces)
    assert task.picture_columns == 3


def test_a_registered_task_has_a_data_keyword_of_its_own(registry, make_env):
    register_task("series", SeriesTask)
    numbers = np.random.default_rng(0).random((30, SEGMENTS * LENGTH))
    env = make_env(task="series", series=numbers)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.unwrapped.tasks["series"].data.values, numbers.astype(np.float32))
    with pytest.raises(ConfigurationError, match=r"series=<ndarray>: task 'spatial' does not use it; pass images"):
        make_env(series=numbers)
    with pytest.raises(ConfigurationError, match=r"images='/photos': task 'series' does not use it; pass series"):
        make_env(task="series", images="/photos")
    with pytest.raises(ConfigurationError, match=r"unknown keyword 'seriess'; did you mean 'series'"):
        make_env(task="series", seriess=numbers)
    with pytest.raises(DataError, match=r"num_validation=12, but series has only 12 items"):
        make_env(task="series", series=numbers[:12])


def test_a_joint_task_of_ones_own_trains_its_parts_on_one_trunk(registry, make_env):
    register_task("both directions", SeriesTask, ReversedTask)
    env = make_env(task="both directions")
    observation, info = env.reset(seed=0)
    assert observation.shape == (2, 4, 2)
    assert env.action_space == gym.spaces.MultiDiscrete([4, 4])
    assert list(info["task_errors"]) == ["series", "reversed"]
    *_, info = rollout(env, [action_of(env, 0, 3)] * 12)[-1]
    assert info["update"] == 1
    assert info["task_losses"].keys() == {"series", "reversed"}
    np.testing.assert_array_equal(env.unwrapped.records[-1].choices, [[8, 0, 0, 0], [0, 0, 0, 8]])


def test_a_joint_task_may_be_of_a_users_and_a_built_in_task(registry, make_env):
    class OtherSpatialTask(SpatialTask):
        name = "other"

    register_task("two spatial tasks", SpatialTask, OtherSpatialTask)
    env = make_env(task="two spatial tasks")
    env.reset(seed=0)
    assert list(env.unwrapped.tasks) == ["spatial", "other"]
    assert rollout(env, random_actions(env, 12))[-1][4]["update"] == 1


def test_the_groups_of_three_tasks_are_the_digits_of_a_flat_action(registry, make_env):
    class OtherSpatialTask(SpatialTask):
        name = "other"

    class ThirdSpatialTask(SpatialTask):
        name = "third"

    register_task("three spatial tasks", SpatialTask, OtherSpatialTask, ThirdSpatialTask)
    env = FlatJointAction(make_env(task="three spatial tasks"))
    assert env.action_space == gym.spaces.Discrete(4**3)
    env.reset(seed=0)
    rollout(env, [3 * 16 + 0 * 4 + 2] * 12)
    np.testing.assert_array_equal(env.unwrapped.records[-1].choices, [[0, 0, 0, 8], [8, 0, 0, 0], [0, 0, 8, 0]])


def test_parts_with_pieces_of_different_shapes_raise_an_error(registry, make_env):
    register_task("pieces of two shapes", SeriesTask, QuarterTask)
    message = (
        r"task 'pieces of two shapes' has pieces of shapes \{'series': \(1, 24\), 'quarters': \(1, 36\)\}.* the same"
    )
    with pytest.raises(ConfigurationError, match=message):
        make_env(task="pieces of two shapes")


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("spatial", (SeriesTask,), r"there is a task 'spatial' already, of .*SpatialTask.*: choose another name"),
        ("spatiotemporal", (TemporalTask, SpatialTask), r"there is a task 'spatiotemporal' already"),
        ("none", (), r"task 'none' of \[\]: pass one or more task classes with different names"),
        ("twice", (SeriesTask, SeriesTask), r"task 'twice' of \['series', 'series'\]: pass one or more"),
    ],
)
def test_a_task_that_cannot_be_registered_raises_an_error(registry, name, parts, message):
    before = dict(registered_tasks())
    with pytest.raises(ConfigurationError, match=message):
        register_task(name, *parts)
    assert registered_tasks() == before


def test_the_same_task_may_be_registered_again(registry):
    register_task("series", SeriesTask)
    register_task("series", SeriesTask)
    register_task("spatial", SpatialTask)
    assert registered_tasks()["series"] == (SeriesTask,)


def test_the_registry_is_changed_by_register_task_only():
    with pytest.raises(TypeError):
        registered_tasks()["mine"] = (SeriesTask,)


def test_an_unknown_task_raises_an_error_that_names_the_known_ones(registry, make_env):
    register_task("series", SeriesTask)
    with pytest.raises(
        ConfigurationError, match=r"unknown task 'sequence'; choose one of spatial, temporal, spatiotemporal, .*series"
    ):
        make_env(task="sequence")


class Unnamed(SeriesTask):
    """Its name is no identifier."""

    name = "a.b"


class TakesAKeyword(SeriesTask):
    """Its data keyword is a number of the configuration."""

    data_keyword = "grid"


class UnknownChange(SeriesTask):
    """It changes a number that there is not."""

    preset_changes = {"tiny": {"num_perms": 3}}  # noqa: RUF012 - constant


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (3, "3 is no task: pass a subclass of permenv.Task"),
        (Task, "Task lacks count_pieces, load, piece_shape, pieces"),
        (Unnamed, r"Unnamed.name='a.b': must be an identifier"),
        (TakesAKeyword, "data_keyword='grid': is a keyword of gym.make already"),
        (UnknownChange, "num_perms.*fields of permenv.Config"),
    ],
)
def test_incomplete_tasks_are_refused_when_they_are_registered(part, message):
    with pytest.raises(ConfigurationError, match=message):
        register_task("incomplete", part)
    assert "incomplete" not in registered_tasks()
