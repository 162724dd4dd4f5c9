"""The animation of the README."""

import numpy as np
import pytest
from PIL import Image

from experiments.studies import animation
from permenv import ConfigurationError
from tests.experiments.helpers import small


def frames_of(path):
    with Image.open(path) as picture:
        frames = []
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append((picture.info["duration"], np.asarray(picture.convert("RGB"))))
        return frames, picture.info["loop"]


def test_there_is_a_frame_an_update_and_the_seed_decides_them_all(tmp_path):
    for name in ("one.gif", "two.gif"):
        animation.main(animation.Config(device="cpu", env=small(total_updates=1), seed=3, out=tmp_path / name))
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "two.gif").read_bytes()
    frames, loop = frames_of(tmp_path / "one.gif")
    assert loop == 0  # for ever
    assert [duration for duration, _ in frames] == [300, 4000]
    assert {pixels.shape for _, pixels in frames} == {(420, 960, 3)}
    (_, first), (_, last) = frames
    assert not np.array_equal(first, last)
    np.testing.assert_array_equal(first[60:205, :500], last[60:205, :500])  # the shuffled tiles stay


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigurationError, match="--seed -1: must be at least 0"):
        animation.Config(seed=-1)
