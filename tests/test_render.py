"""The pictures say what the numbers say."""

import numpy as np
import pytest

from permenv import render


def curve(error):
    return {"iteration": [10, 20], "error": [0.9, error], "baseline_error": [0.95, 0.8], "reward": [0.05, 0.8 - error]}


@pytest.mark.parametrize("names", [("spatial",), ("spatial, a", "temporal, a", "spatial, b", "temporal, b")])
def test_every_curve_has_a_colour_of_its_own_and_one_line_of_the_legend(names):
    figure = render.error_figure({name: curve(0.1 * index) for index, name in enumerate(names)})
    upper, lower = figure.axes
    assert [text.get_text() for text in upper.get_legend().get_texts()] == [*names, "extrapolated"]
    errors = [line for line in upper.lines if line.get_label() in names]
    assert [line.get_ydata()[-1] for line in errors] == pytest.approx([0.1 * index for index in range(len(names))])
    assert len({line.get_color() for line in errors}) == len(names)
    for index, line in enumerate(errors):  # E, its extrapolation and its reward look alike
        assert {line.get_color()} == {upper.lines[2 * index + 1].get_color(), lower.lines[1 + index].get_color()}
    assert render.to_array(figure).shape == (720, 960, 3)


def test_strips_show_each_frame_in_its_place_and_where_it_went():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    orders = np.array([[2, 0, 3, 1], [0, 1, 2, 3]])
    pieces = np.stack([clip[order] for clip, order in zip(originals, orders, strict=True)])
    figure = render.frames_figure(originals, pieces, orders, ["ψ 3: recognised\np = 0.50", "ψ 0"])
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
    assert render.to_array(figure).shape == (624, 576, 3)


def test_tiles_are_shown_beside_their_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 4, 3), dtype=np.uint8)
    figure = render.shuffle_figure(np.zeros((2, 12, 12, 3), np.uint8), pixels, ["a", "b"])
    below = figure.axes[2].images[0].get_array()
    assert below.shape == (16, 16, 3)
    assert np.array_equal(below[6:10, 12:16], pixels[0, 5])
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "a", "b"]
