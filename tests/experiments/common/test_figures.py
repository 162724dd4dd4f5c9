"""The figures of a run show what its numbers say."""

import numpy as np
import pytest

from experiments.common import figures
from permenv.render import to_array


def curve(error):
    return {"iteration": [10, 20], "error": [0.9, error], "baseline_error": [0.95, 0.8], "reward": [0.05, 0.8 - error]}


@pytest.mark.parametrize("names", [("spatial",), ("spatial, a", "temporal, a", "spatial, b", "temporal, b")])
def test_every_curve_has_a_colour_of_its_own_and_one_line_of_the_legend(names):
    figure = figures.error_figure({name: curve(0.1 * index) for index, name in enumerate(names)})
    upper, lower = figure.axes
    assert [text.get_text() for text in upper.get_legend().get_texts()] == [*names, "extrapolated"]
    errors = [line for line in upper.lines if line.get_label() in names]
    assert [line.get_ydata()[-1] for line in errors] == pytest.approx([0.1 * index for index in range(len(names))])
    assert len({line.get_color() for line in errors}) == len(names)
    for index, line in enumerate(errors):  # E, its extrapolation and its reward look alike
        assert {line.get_color()} == {upper.lines[2 * index + 1].get_color(), lower.lines[1 + index].get_color()}
    assert to_array(figure).shape == (720, 960, 3)


def test_strips_show_each_frame_in_its_place_and_where_it_went():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    orders = np.array([[2, 0, 3, 1], [0, 1, 2, 3]])
    pieces = np.stack([clip[order] for clip, order in zip(originals, orders, strict=True)])
    figure = figures.frames_figure(originals, pieces, orders, ["ψ 3: recognised\np = 0.50", "ψ 0"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["ψ 3: recognised, p = 0.50", "ψ 0"]
    for axis, clip, order in zip(figure.axes, originals, orders, strict=True):
        assert len(axis.images) == 8
        shown = {(round(image.get_extent()[0] / 1.06), image.get_extent()[2] > 0.5): image for image in axis.images}
        outlines = {(round(box.get_x() / 1.06), box.get_y() > 0.5): box.get_edgecolor() for box in axis.patches}
        for position, frame in enumerate(order):
            assert np.array_equal(shown[position, True].get_array(), clip[position])
            assert np.array_equal(shown[position, False].get_array(), clip[frame])
            assert outlines[position, False] == outlines[frame, True]
            start, end = axis.lines[position].get_xdata()
            assert (round(start / 1.06 - 0.47), round(end / 1.06 - 0.47)) == (frame, position)
    assert to_array(figure).shape == (624, 576, 3)


def test_tiles_are_shown_beside_their_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 4, 3), dtype=np.uint8)
    figure = figures.shuffle_figure(np.zeros((2, 12, 12, 3), np.uint8), pixels, ["a", "b"])
    below = figure.axes[2].images[0].get_array()
    assert below.shape == (16, 16, 3)
    assert np.array_equal(below[6:10, 12:16], pixels[0, 5])
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "a", "b"]


def test_choices_are_shown_as_shares_and_against_chance():
    shares, sizes = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]), np.array([[0.25, 0.5, 0.25]] * 2)
    upper, lower, _ = figures.choice_figure([1, 2], shares, sizes).axes
    assert [bar.get_height() for bar in upper.patches] == pytest.approx([0, 0.5, 0.5, 0.25, 0.5, 0.25])
    shown = lower.images[0].get_array()
    assert shown[:, 1].tolist() == pytest.approx([0, -1, 1])  # twice as often is +1
    assert shown[0, 0] == 1


def test_curves_and_choices_are_read_from_the_rows_of_a_run():
    columns = {"a/error": 0.5, "a/baseline_error": 0.6, "a/reward": 0.1, "a/group_0": 1.0, "a/size_0": 1.0}
    rows = [{"update": update, "iteration": 10 * update, **columns} for update in (1, 2)]
    assert figures.curves(rows) == {
        "a": {"iteration": [10, 20], "error": [0.5] * 2, "baseline_error": [0.6] * 2, "reward": [0.1] * 2}
    }
    assert len(figures.choices_of_run(rows, "a").axes) == 3


@pytest.mark.parametrize("task", ["spatial", "temporal"])
def test_examples_are_shown_for_every_task(make_env, task):
    env = make_env(task=task)
    env.reset(seed=0)
    figure = figures.examples_of_run(env.unwrapped.run, task, seed=0)
    assert len(figure.axes) == {"spatial": 12, "temporal": 4}[task]
