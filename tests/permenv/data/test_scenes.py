"""The embedded scenes: reproducibility, labels, layout and motion."""

import random

import cv2
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from permenv.data import scenes
from permenv.data.embedded import embedded_clips, embedded_scenes
from permenv.data.scenes import CLASSES, check, deal_labels, render_clip
from tests.helpers import global_states

SIZE = 64
MOVED = 40  # change in grey levels where something moves; the noise of the sensor is smaller


def render_clips(count: int, frames: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first clips of a seed, (count, frames, size, size, 3) uint8 RGB, and their labels."""
    labels = deal_labels(count, seed)
    return np.stack([render_clip(i, int(labels[i]), frames, size, seed) for i in range(count)]), labels


def render_stills(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One picture of each of the first scenes of a seed, (count, size, size, 3) uint8 RGB, and their labels."""
    clips, labels = render_clips(count, 1, size, seed)
    return clips[:, 0], labels


@pytest.fixture(scope="module")
def stills() -> tuple[np.ndarray, np.ndarray]:
    """Enough small stills for statistics."""
    return render_stills(480, SIZE, seed=7)


@pytest.fixture(scope="module")
def clips() -> tuple[np.ndarray, np.ndarray]:
    """Beginning, middle and end of enough scenes to see every class move, with a fixed camera."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_sample_pan", lambda rng: np.zeros(2))
        return render_clips(160, 3, 48, seed=11)


def travel(pixels: np.ndarray, labels: np.ndarray, name: str, axis: int) -> np.ndarray:
    """How far, in pixels down (axis 1) or right (axis 2), the changing pixels move in each clip of a class."""
    first, middle, last = pixels[labels == CLASSES.index(name)].mean(axis=-1).swapaxes(0, 1)

    def centre(change: np.ndarray) -> np.ndarray:
        weight = (np.maximum(np.abs(change) - MOVED, 0) ** 2).sum(axis=3 - axis)
        return (weight * np.arange(weight.shape[1])).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)

    return centre(last - middle) - centre(middle - first)


def brightness(pixels: np.ndarray) -> np.ndarray:
    """Mean of each picture of a stack."""
    return pixels.reshape(len(pixels), -1).mean(axis=1)


def horizon(picture: np.ndarray) -> int:
    """The row between the two most different parts, usually sky and ground."""
    rows = picture.mean(axis=1)
    apart = [np.abs(rows[:row].mean(axis=0) - rows[row:].mean(axis=0)).sum() for row in range(4, len(rows) - 4)]
    return 4 + int(np.argmax(apart))


def gradients(picture: np.ndarray) -> np.ndarray:
    """Histograms of edge directions in a 6 x 6 grid: shapes and positions without colours."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    strength, angle = cv2.cartToPolar(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))
    cell = np.arange(SIZE) * 6 // SIZE
    bins = (cell[:, None] * 6 + cell[None, :]) * 8 + (angle % np.pi / np.pi * 8).astype(int) % 8
    histogram = np.bincount(bins.ravel(), strength.ravel(), 6 * 6 * 8)
    return np.sqrt(histogram / histogram.sum())


def accuracy_of_nearest_neighbour(features: np.ndarray, labels: np.ndarray) -> float:
    """Share of the last quarter whose nearest neighbour among the rest has the same label."""
    split = len(labels) * 3 // 4
    knn = KNeighborsClassifier(1).fit(features[:split], labels[:split])
    return float(knn.score(features[split:], labels[split:]))


class TestContract:
    """Shapes, seeds and labels."""

    def test_stills_are_rgb_bytes_with_labels(self):
        pixels, labels = render_stills(10, 33)
        assert pixels.shape == (10, 33, 33, 3)
        assert pixels.dtype == np.uint8
        assert labels.shape == (10,)
        assert labels.dtype == np.int64

    def test_clips_have_a_frame_axis(self):
        pixels, labels = render_clips(3, 4, 20)
        assert pixels.shape == (3, 4, 20, 20, 3)
        assert pixels.dtype == np.uint8
        assert labels.shape == (3,)

    def test_channels_are_red_green_blue(self, stills):
        top, bottom = (stills[0][:, row].mean(axis=(0, 1)) for row in (0, -1))
        assert top[2] / top[0] > bottom[2] / bottom[0]  # on average the sky is bluer than the ground

    def test_same_seed_gives_same_scenes(self):
        for first, second in zip(render_stills(6, 24, seed=3), render_stills(6, 24, seed=3), strict=True):
            np.testing.assert_array_equal(first, second)

    def test_another_seed_gives_other_scenes_in_another_order(self):
        pixels, labels = render_stills(40, 16, seed=0)
        others, other_labels = render_stills(40, 16, seed=1)
        assert not (pixels == others).all(axis=(1, 2, 3)).any()
        assert (labels != other_labels).any()

    def test_scenes_of_one_seed_all_differ(self, stills):
        assert len({picture.tobytes() for picture in stills[0]}) == len(stills[0])

    @pytest.mark.parametrize("count", [1, 5, 8, 11])
    def test_shorter_call_is_a_prefix(self, count):
        pixels, labels = render_stills(20, 16, seed=5)
        fewer_pixels, fewer_labels = render_stills(count, 16, seed=5)
        np.testing.assert_array_equal(fewer_pixels, pixels[:count])
        np.testing.assert_array_equal(fewer_labels, labels[:count])

    def test_global_random_state_is_neither_read_nor_written(self):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        before = global_states()
        pixels, _ = render_stills(4, 16)
        assert global_states() == before
        np.random.seed(1)  # noqa: NPY002
        np.testing.assert_array_equal(pixels, render_stills(4, 16)[0])

    @pytest.mark.parametrize("count", [1, 7, 16, 21])
    def test_labels_are_balanced_to_within_one(self, count):
        tally = np.bincount(render_stills(count, 16)[1], minlength=len(CLASSES))
        assert len(tally) == len(CLASSES)
        assert tally.max() - tally.min() <= 1

    def test_labels_are_shuffled_anew_in_every_block(self):
        blocks = render_stills(5 * len(CLASSES), 16)[1].reshape(5, -1)
        assert len(np.unique(blocks, axis=0)) > 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"count": 0}, r"count is 0; pass at least 1"),
            ({"frames": 0}, r"frames is 0; pass at least 1"),
            ({"size": 15}, r"size is 15; pass at least 16"),
            ({"seed": -1}, r"seed is -1; pass at least 0"),
        ],
    )
    def test_too_small_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            check(**{"count": 1, "frames": 1, "size": 16, "seed": 0} | arguments)


class TestLayout:
    """Top and bottom of a picture differ; columns do not, and the horizon varies."""

    def test_a_scene_looks_the_same_at_every_size(self):
        small, large = render_stills(24, 54, seed=2)[0], render_stills(24, 216, seed=2)[0]
        shrunk = np.stack([cv2.resize(p, (54, 54), interpolation=cv2.INTER_AREA) for p in large])
        apart = np.abs(small.astype(float) - shrunk).mean(axis=(1, 2, 3))
        to_others = np.abs(small.astype(float) - np.roll(shrunk, 1, axis=0)).mean(axis=(1, 2, 3))
        assert apart.mean() < 10
        assert (apart < to_others / 2).mean() > 0.9

    def test_sky_is_brighter_than_ground(self, stills):
        pixels, _ = stills
        third = SIZE // 3
        assert (brightness(pixels[:, :third]) > brightness(pixels[:, -third:])).mean() > 0.7

    def test_light_comes_from_either_side(self, stills):
        pixels, _ = stills
        third = SIZE // 3
        from_left = brightness(pixels[:, :, :third]) > brightness(pixels[:, :, -third:])
        assert 0.4 < from_left.mean() < 0.6

    def test_columns_look_alike_on_average(self, stills):
        pixels, _ = stills
        columns = pixels.mean(axis=(0, 1, 3))
        assert np.ptp(columns) < pixels.mean(axis=(1, 2, 3)).std() / 2

    def test_the_horizon_is_at_any_height(self, stills):
        horizons = [horizon(picture) for picture in stills[0][:160]]
        tally, _ = np.histogram(horizons, bins=3, range=(0, SIZE))
        assert (tally > len(horizons) / 10).all()


class TestLabels:
    """The class shows in shapes, not in colours."""

    def test_nearest_neighbours_by_shape_share_their_class(self, stills):
        pixels, labels = stills
        features = np.stack([gradients(picture) for picture in pixels])
        assert accuracy_of_nearest_neighbour(features, labels) > 3 / len(CLASSES)

    def test_colours_hardly_predict_the_class(self, stills):
        pixels, labels = stills
        colours = pixels.reshape(len(pixels), -1, 3).mean(axis=1)
        assert accuracy_of_nearest_neighbour(colours, labels) < 2 / len(CLASSES)


class TestTime:
    """Clips show the same scenes as stills, and time has a direction."""

    @pytest.mark.parametrize("frames", [1, 3, 5])
    def test_middle_frame_is_the_still(self, frames):
        films, film_labels = render_clips(9, frames, 24, seed=4)
        pixels, labels = render_stills(9, 24, seed=4)
        np.testing.assert_array_equal(films[:, frames // 2], pixels)
        np.testing.assert_array_equal(film_labels, labels)

    def test_something_moves_in_most_clips(self, clips):
        change = np.abs(np.diff(clips[0].mean(axis=-1), axis=1)).max(axis=(2, 3))
        assert (change > MOVED).all(axis=1).mean() > 0.75

    def test_balloons_rise(self, clips):
        rows = travel(*clips, "balloon", axis=1)
        assert np.median(rows) < -2

    @pytest.mark.parametrize("name", ["car", "plane", "train", "horse"])
    def test_vehicles_and_horses_move_to_either_side(self, clips, name):
        columns = travel(*clips, name, axis=2)
        assert np.median(np.abs(columns)) > 3
        assert (columns > 0).any()
        assert (columns < 0).any()

    @pytest.mark.parametrize("name", ["house", "tree", "windmill"])
    def test_houses_trees_and_windmills_stay(self, clips, name):
        assert np.median(np.abs(travel(*clips, name, axis=2))) < 2.5

    def test_the_camera_pans_mostly_to_the_right(self):
        films, labels = render_clips(160, 2, 48, seed=11)
        houses = films[labels == CLASSES.index("house")].mean(axis=-1).astype(np.float32)
        shifts = np.array(
            [
                cv2.phaseCorrelate(first, last, cv2.createHanningWindow((48, 48), cv2.CV_32F))[0]
                for first, last in houses
            ]
        )
        assert np.median(np.abs(shifts[:, 0])) > 5
        assert 0.05 < (shifts[:, 0] > 0).mean() < 0.4  # the picture moves the other way


class TestEmbedded:
    """The embedded datasets are the rendered scenes, kept in the cache."""

    @pytest.fixture(autouse=True)
    def forget(self, cache):
        """Begin with an empty cache, in memory as on disk."""
        for function in (embedded_scenes, embedded_clips):
            function.cache_clear()

    def test_scenes_are_the_rendered_stills(self):
        images = embedded_scenes(11, 24, 3)
        pixels, labels = render_stills(11, 24, 3)
        np.testing.assert_array_equal(images.pixels, pixels)
        np.testing.assert_array_equal(images.labels, labels)
        assert (images.classes, images.fingerprint) == (CLASSES, "scenes-1-11-24-3")

    def test_clips_are_the_rendered_clips(self):
        clips = embedded_clips(9, 3, 24, 3)
        pixels, labels = render_clips(9, 3, 24, 3)
        np.testing.assert_array_equal(clips.frames.pixels, pixels.reshape(-1, 24, 24, 3))
        np.testing.assert_array_equal(clips.frames.labels, labels.repeat(3))
        np.testing.assert_array_equal(clips.lengths, [3] * 9)
        assert clips.fingerprint == "clips-1-9-3-24-3"

    @pytest.mark.parametrize("function", [lambda: embedded_scenes(5, 16), lambda: embedded_clips(5, 2, 16)])
    def test_the_second_process_renders_nothing(self, function, monkeypatch):
        first = function()
        embedded_scenes.cache_clear()
        embedded_clips.cache_clear()
        monkeypatch.setattr("permenv.data.embedded.render_clip", None)
        assert function().fingerprint == first.fingerprint
        assert function() is function()

    def test_without_a_cache_scenes_are_rendered_in_memory(self, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").touch()
        monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "file"))
        np.testing.assert_array_equal(embedded_scenes(5, 16).pixels, render_stills(5, 16)[0])
        [warning] = caplog.records
        assert "scenes-1-5-16-0 is made in memory" in warning.getMessage()
        assert len(embedded_clips(5, 2, 16)) == 5

    def test_too_small_arguments_are_named(self):
        with pytest.raises(ValueError, match=r"size is 15; pass at least 16"):
            embedded_scenes(5, 15)
        with pytest.raises(ValueError, match=r"count is 0; pass at least 1"):
            embedded_clips(0, 2, 16)
