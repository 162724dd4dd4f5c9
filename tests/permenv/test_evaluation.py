"""What features are worth: which frames stand for a clip, whole images through the trunk, exact nearest neighbours."""

import numpy as np
import pytest
import torch

from permenv.data import StillImages, VideoClips
from permenv.evaluation import nearest_neighbour_accuracy, pool_features, spread_frames

CPU = torch.device("cpu")


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
    network = env.unwrapped.trainer.evaluated
    clips = clips_of([4, 4])
    rows = spread_frames(clips, np.array([1]), 2)
    features = pool_features(network, clips.frames, rows, CPU)
    assert features.dtype == np.float32
    for row, feature in zip(rows, features, strict=True):
        alone = StillImages(clips.frames.pixels[row : row + 1], None, (), "one frame", "")
        assert pool_features(network, alone, np.array([0]), CPU)[0] == pytest.approx(feature, abs=1e-5)
    assert network.training  # left as it was found


def test_the_nearest_neighbour_is_found_by_direction():
    database = np.array([[1.0, 0], [0, 9], [-1, 0]])
    queries = np.array([[5.0, 1], [1, 5], [-1, 1.1]])
    accuracy = nearest_neighbour_accuracy(queries, np.array(list("abc")), database, np.array(list("abc")), top=(1, 2))
    assert accuracy == {1: pytest.approx(2 / 3), 2: 1.0}
