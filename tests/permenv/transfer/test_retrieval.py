"""Retrieval: evenly spaced frames, whole images through the trunk, exact nearest neighbours."""

import numpy as np
import pytest
import torch

from permenv.data import StillImages, VideoClips
from permenv.transfer import nearest_neighbour_accuracy, pool_features, retrieval, spread_frames


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
    network = env.unwrapped.run.trainer.eval_network
    clips = clips_of([4, 4])
    rows = spread_frames(clips, np.array([1]), 2)
    features = pool_features(network, clips.frames, rows)
    assert features.dtype == np.float32
    for row, feature in zip(rows, features, strict=True):
        alone = StillImages(clips.frames.pixels[row : row + 1], None, (), "one frame", "")
        assert pool_features(network, alone, np.array([0]))[0] == pytest.approx(feature, abs=1e-5)
    assert network.training  # left as it was found


def test_the_nearest_neighbour_is_found_by_direction():
    database = np.array([[1.0, 0], [0, 9], [-1, 0]])
    queries = np.array([[5.0, 1], [1, 5], [-1, 1.1]])
    accuracy = nearest_neighbour_accuracy(queries, np.array(list("abc")), database, np.array(list("abc")), top=(1, 2))
    assert accuracy == {1: pytest.approx(2 / 3), 2: 1.0}


def images(labels, classes=("bend", "walk"), seed=0):
    """Return images, one for each label."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 96, 96, 3), dtype=np.uint8)
    return StillImages(torch.from_numpy(pixels), np.array(labels), classes, "images", "")


@pytest.fixture
def network(make_env):
    """Return an untrained network."""
    env = make_env()
    env.reset(seed=0)
    return env.unwrapped.run.trainer.eval_network


def test_an_image_retrieves_itself_whatever_number_its_class_has(network):
    database = images([0, 1, 0, 1])
    queries = StillImages(database.pixels, np.array([1, 0, 1, 0]), ("walk", "bend"), "the same images", "")
    assert retrieval(network, queries, database) == {1: 1.0}
    others = StillImages(database.pixels, np.array([1, 0, 1, 0]), ("bend", "walk"), "the same images", "")
    assert retrieval(network, others, database) == {1: 0.0}


def test_indices_choose_queries_and_database(network):
    data = images([0, 1, 1, 0])
    found = retrieval(network, data, data, query_indices=np.array([0]), database_indices=np.array([1, 2]), top=(1, 2))
    assert found == {1: 0.0, 2: 0.0}


def test_without_labels_there_is_nothing_to_evaluate(network):
    labelled, unlabelled = images([0, 1]), images([-1, -1])
    assert retrieval(network, unlabelled, labelled) is None
    assert retrieval(network, labelled, unlabelled) is None
    assert retrieval(network, StillImages(labelled.pixels, None, (), "none", ""), labelled) is None
    assert retrieval(network, labelled, labelled, query_indices=np.array([], dtype=np.int64)) is None


def test_features_that_are_not_finite_cannot_be_compared(network):
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    assert retrieval(network, images([0, 1]), images([0, 1])) is None


def test_frames_of_clips_are_queries_and_entries(network):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8))
    frames = StillImages(pixels, np.repeat([0, 1], 4), ("bend", "walk"), "clips", "")
    clips = VideoClips(frames, np.array([0, 4, 8]), ("a", "b"))
    assert retrieval(network, clips, clips, frames=2) == {1: 1.0}
    assert retrieval(network, clips, clips, frames=2, most=3) == {1: 1.0}
    apart = {"query_indices": np.array([0]), "database_indices": np.array([1])}
    assert retrieval(network, clips, clips, **apart) == {1: 0.0}
