"""The figures of a run show what its numbers say."""

import numpy as np
import pytest

from experiments.common.reports import figures
from permenv.render import to_array


def curve(error):
    extrapolated = {"baseline_error": [np.nan, 0.95, 0.8], "reward": [np.nan, 0.05, 0.8 - error]}
    return {"iteration": [0, 10, 20], "error": [0.99, 0.9, error], **extrapolated}


@pytest.mark.parametrize("names", [("spatial",), ("spatial, a", "temporal, a", "spatial, b", "temporal, b")])
def test_every_curve_has_a_colour_of_its_own_and_a_label_at_its_end(names):
    figure = figures.error_figure("a run", {name: curve(0.1 * index) for index, name in enumerate(names)})
    upper, lower = figure.axes
    assert figure.get_suptitle() == "a run"
    assert upper.get_legend() is None
    assert [text.get_text() for text in upper.texts] == list(names)
    heights = [text.xyann[1] for text in upper.texts]  # of the axes, which are 1.02 high
    assert heights == pytest.approx([0.1 * index / 1.02 for index in range(len(names))], abs=1e-6)
    errors = [line for line in upper.lines if line.get_label() in names]
    assert [line.get_ydata()[-1] for line in errors] == pytest.approx([0.1 * index for index in range(len(names))])
    assert len({line.get_color() for line in errors}) == len(names)
    for index, line in enumerate(errors):  # E, its extrapolation and its reward look alike
        assert upper.texts[index].get_color() == line.get_color()
        assert line.get_xydata()[0].tolist() == [0, 0.99]  # the untrained network
        assert {line.get_color()} == {upper.lines[2 * index + 1].get_color(), lower.lines[1 + index].get_color()}
    assert to_array(figure).shape == (720, 960, 3)


def test_strips_show_each_frame_in_its_place_and_where_it_went():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    orders = np.array([[2, 0, 3, 1], [0, 1, 2, 3]])
    pieces = np.stack([clip[order] for clip, order in zip(originals, orders, strict=True)])
    figure = figures.frames_figure("a run", originals, pieces, orders, ["ψ 3: recognised\np = 0.50", "ψ 0"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["ψ 3: recognised, p = 0.50", "ψ 0"]
    for axis, clip, order in zip(figure.axes, originals, orders, strict=True):
        assert len(axis.images) == 8
        shown = {(round(image.get_extent()[0] / 1.06), image.get_extent()[2] > 0.5): image for image in axis.images}
        outlines = {(round(box.get_x() / 1.06), box.get_y() > 0.5): box.get_edgecolor() for box in axis.patches}
        for position, frame in enumerate(order):
            assert np.array_equal(shown[position, True].get_array(), clip[position])
            assert np.array_equal(shown[position, False].get_array(), clip[frame])
            assert outlines[position, False] == outlines[frame, True]
            assert [text.get_text() for text in axis.texts[2 * position :][:2]] == [str(position + 1), str(frame + 1)]
            start, end = axis.lines[position].get_xdata()
            assert (round(start / 1.06 - 0.47), round(end / 1.06 - 0.47)) == (frame, position)
    assert to_array(figure).shape == (660, 576, 3)


def test_tiles_are_shown_beside_their_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 4, 3), dtype=np.uint8)
    figure = figures.shuffle_figure("a run", np.zeros((2, 12, 12, 3), np.uint8), pixels, ["a", "b"])
    below = figure.axes[2].images[0].get_array()
    assert below.shape == (16, 16, 3)
    assert np.array_equal(below[6:10, 12:16], pixels[0, 5])
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "a", "b"]


def test_choices_are_shown_as_shares_and_against_chance():
    shares, sizes = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]), np.array([[0.25, 0.5, 0.25]] * 2)
    upper, lower = figures.choice_figure("a run", [1, 2], shares, sizes).axes
    assert [bar.get_height() for bar in upper.patches] == pytest.approx([0, 0.5, 0.5, 0.25, 0.5, 0.25])
    shown = lower.images[0].get_array()
    assert shown[:, 1].tolist() == pytest.approx([0, -1, 1])  # twice as often is +1
    assert shown[0, 0] == 1


def test_curves_and_choices_are_read_from_the_rows_of_a_run():
    columns = {"a/error": 0.5, "a/baseline_error": 0.6, "a/reward": 0.1, "a/group_0": 1.0, "a/size_0": 1.0}
    rows = [{"update": update, "iteration": 10 * update, **columns} for update in (1, 2)]
    (curve,) = figures.curves(rows, {"a": 0.9}).values()
    nan = pytest.approx(np.nan, nan_ok=True)
    assert curve["iteration"] == [0, 10, 20]
    assert curve["error"] == [0.9, 0.5, 0.5]
    assert curve["baseline_error"] == [nan, 0.6, 0.6]
    assert curve["reward"] == [nan, 0.1, 0.1]
    assert len(figures.choices_of_run("a run", rows, "a").axes) == 2


@pytest.mark.parametrize("task", ["spatial", "temporal"])
def test_examples_are_shown_for_every_task(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    figure = figures.examples_of_run("a run", env.unwrapped.run, task, seed=0)
    assert len(figure.axes) == {"spatial": 12, "temporal": 4}[task]
