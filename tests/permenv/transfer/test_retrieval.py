"""Retrieval: evenly spaced frames, whole images through the trunk, exact nearest neighbours."""

import numpy as np
import pytest
import torch

from permenv.data import StillImages, VideoClips
from permenv.transfer import nearest, nearest_neighbour_accuracy, pool_features, retrieval, spread_frames
from permenv.transfer.retrieval import TABLE_1
from permenv.transfer.trunks import load_trunk


def clips_of(lengths):
    starts = np.cumsum([0, *lengths])
    pixels = np.random.default_rng(0).integers(0, 256, (starts[-1], 32, 32, 3), dtype=np.uint8)
    return VideoClips(
        StillImages(torch.from_numpy(pixels), None, (), "clips", ""), starts, tuple("abcdef"[: len(lengths)])
    )


def test_frames_are_spread_from_the_first_to_the_last():
    clips = clips_of([5, 3, 100, 1])
    assert spread_frames(clips, np.array([2]), 10).tolist() == [8 + 11 * place for place in range(10)]
    assert spread_frames(clips, np.array([1, 3, 0]), 4).tolist() == [5, 6, 7, 108, 0, 1, 2, 4]
    assert spread_frames(clips, np.array([2]), 1).tolist() == [8]


def test_no_clips_have_no_frames():
    rows = spread_frames(clips_of([5]), np.array([], dtype=np.int64), 10)
    assert rows.shape == (0,)
    assert rows.dtype == np.int64


def test_a_frame_has_the_features_that_it_has_as_an_image(make_env):
    env = make_env()
    env.reset(seed=0)
    trunk = env.unwrapped.run.trainer.eval_network.trunk
    clips = clips_of([4, 4])
    rows = spread_frames(clips, np.array([1]), 2)
    features = pool_features(trunk, clips.frames, rows)
    assert features.dtype == np.float32
    for row, feature in zip(rows, features, strict=True):
        alone = StillImages(clips.frames.pixels[row : row + 1], None, (), "one frame", "")
        assert pool_features(trunk, alone, np.array([0]))[0] == pytest.approx(feature, abs=1e-5)
    assert trunk.training  # left as it was found


def test_the_nearest_neighbour_is_found_by_direction():
    database = np.array([[1.0, 0], [0, 9], [-1, 0]])
    queries = np.array([[5.0, 1], [1, 5], [-1, 1.1]])
    accuracy = nearest_neighbour_accuracy(queries, np.array(list("abc")), database, np.array(list("abc")), top=(1, 2))
    assert accuracy == {1: pytest.approx(2 / 3), 2: 1.0}


def cosine_distance(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5
    return 1 - dot / lengths if lengths else 1.0


@pytest.fixture
def features():
    """Features of queries and of a database, with their classes; one of each is all zero."""
    rng = np.random.default_rng(0)
    queries, database = rng.standard_normal((7, 5)), rng.standard_normal((60, 5))
    queries[3], database[8] = 0, 0
    return queries, rng.choice(list("abcd"), 7), database, rng.choice(list("abcd"), 60)


def test_the_nearest_are_those_of_a_search_by_loops(features):
    queries, _, database, _ = features
    indices, distances = nearest(queries, database, 6)
    assert indices.shape == distances.shape == (7, 6)
    for query, places, found in zip(queries, indices, distances, strict=True):
        every = [cosine_distance(query, entry) for entry in database]
        assert found == pytest.approx(sorted(every)[:6])
        assert found == pytest.approx([every[place] for place in places])
        assert len(set(places)) == 6


def test_accuracies_are_those_of_table_1_by_loops(features):
    queries, own, database, classes = (np.delete(each, 3, 0) for each in features)  # ties may be broken anyhow
    accuracy = nearest_neighbour_accuracy(queries, own, database, classes, top=TABLE_1)
    for k in TABLE_1:
        right = 0
        for query, its in zip(queries, own, strict=True):
            ranked = sorted(range(59), key=lambda place, query=query: cosine_distance(query, database[place]))
            right += its in [classes[place] for place in ranked[:k]]
        assert accuracy[k] == pytest.approx(right / 6)
    assert list(accuracy) == list(TABLE_1)


def test_more_neighbours_than_entries_are_refused(features):
    with pytest.raises(ValueError, match="the 61 nearest of 60 entries"):
        nearest(features[0], features[2], 61)


def images(labels, classes=("bend", "walk"), seed=0):
    """Return images, one for each label."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 96, 96, 3), dtype=np.uint8)
    return StillImages(torch.from_numpy(pixels), np.array(labels), classes, "images", "")


@pytest.fixture
def trunk(make_env):
    """Return an untrained trunk."""
    env = make_env()
    env.reset(seed=0)
    return env.unwrapped.run.trainer.eval_network.trunk


def test_an_image_retrieves_itself_whatever_number_its_class_has(trunk):
    database = images([0, 1, 0, 1])
    queries = StillImages(database.pixels, np.array([1, 0, 1, 0]), ("walk", "bend"), "the same images", "")
    assert retrieval(trunk, queries, database) == {1: 1.0}
    others = StillImages(database.pixels, np.array([1, 0, 1, 0]), ("bend", "walk"), "the same images", "")
    assert retrieval(trunk, others, database) == {1: 0.0}


def test_a_database_that_is_searched_in_parts_gives_the_same_accuracies(trunk, monkeypatch):
    rng = np.random.default_rng(1)
    queries, database = images(rng.integers(0, 4, 12), "abcd"), images(rng.integers(0, 4, 23), "abcd", seed=1)
    whole = retrieval(trunk, queries, database, top=(1, 3, 10))
    assert len(set(whole.values())) > 1
    for part in (1, 5, 22):
        monkeypatch.setitem(retrieval.__globals__, "_PART", part)
        assert retrieval(trunk, queries, database, top=(1, 3, 10)) == whole
    with pytest.raises(ValueError, match="the 24 nearest of 23 entries"):
        retrieval(trunk, queries, database, top=(24,))


def test_indices_choose_queries_and_database(trunk):
    data = images([0, 1, 1, 0])
    found = retrieval(trunk, data, data, query_indices=np.array([0]), database_indices=np.array([1, 2]), top=(1, 2))
    assert found == {1: 0.0, 2: 0.0}


def test_without_labels_there_is_nothing_to_evaluate(trunk):
    labelled, unlabelled = images([0, 1]), images([-1, -1])
    assert retrieval(trunk, unlabelled, labelled) is None
    assert retrieval(trunk, labelled, unlabelled) is None
    assert retrieval(trunk, StillImages(labelled.pixels, None, (), "none", ""), labelled) is None
    assert retrieval(trunk, labelled, labelled, query_indices=np.array([], dtype=np.int64)) is None


def test_features_that_are_not_finite_cannot_be_compared(trunk):
    with torch.no_grad():
        next(trunk.parameters()).fill_(float("nan"))
    assert retrieval(trunk, images([0, 1]), images([0, 1])) is None


def test_frames_of_clips_are_queries_and_entries(trunk):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8))
    frames = StillImages(pixels, np.repeat([0, 1], 4), ("bend", "walk"), "clips", "")
    clips = VideoClips(frames, np.array([0, 4, 8]), ("a", "b"))
    assert retrieval(trunk, clips, clips, frames=2) == {1: 1.0}
    assert retrieval(trunk, clips, clips, frames=2, most=3) == {1: 1.0}
    apart = {"query_indices": np.array([0]), "database_indices": np.array([1])}
    assert retrieval(trunk, clips, clips, **apart) == {1: 0.0}


def test_a_trunk_of_a_protocol_is_searched_with_all_images_of_its_size():
    trunk = load_trunk("random", backbone="two-convolutions")
    pixels = np.random.default_rng(0).integers(0, 256, (6, trunk.input_size, trunk.input_size, 3), dtype=np.uint8)
    data = StillImages(torch.from_numpy(pixels), np.array([0, 1, 2, 0, 1, -1]), ("a", "b", "c"), "images", "")
    assert retrieval(trunk.module, data, data, top=(1, 5)) == {1: 1.0, 5: 1.0}
    features = pool_features(trunk.module, data, np.arange(6))
    assert nearest(features, features, 1)[0][:, 0].tolist() == list(range(6))
