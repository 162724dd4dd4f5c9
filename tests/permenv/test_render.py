"""The pictures say what the numbers say."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

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


PSI = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0], [1, 2, 3, 0]])


def answers(label=4, guess=4, stills=True, broken=False):
    """A sample of four pieces under the permutations PSI, and a network that is sure of one of them."""
    probabilities = np.full((1, 5), 0.1, np.float32)
    probabilities[0, [label, guess]] = 0.2, 0.6
    if broken:
        probabilities[:] = np.nan
    originals = np.zeros((1, 8, 8, 3) if stills else (1, 4, 4, 4, 3), np.uint8)
    true_order = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)  # n, h, w, 3
    return render.Answers(
        originals, true_order[PSI[label]][None], PSI[[label]], np.array([label]), probabilities, PSI[[guess]]
    )


def panel(**changes):
    shown = {
        "history": [(0, 0.8), (10, 0.7), (20, 0.65), (30, 0.5)],
        "credited": [False, True, False, True],
        "next_validation": 40,
        "diverged": None,
        "observation": np.array([[0.2, 0.9], [0.5, 1.0], [0.3, 1.2]]),
        "choices": np.array([6, 1, 3]),
        "sizes": np.array([0.4, 0.4, 0.2]),
        "answers": answers(),
    }
    return render.Panel(**{**shown, **changes})


def draw(**changes):
    figure = render.dashboard_figure("title", "status", {"spatial": panel(**changes)}, 60)
    assert render.to_array(figure).shape == (400, 1000, 3)
    return figure


def test_the_dashboard_shows_the_error_and_the_line_that_it_is_judged_by():
    axis = draw().axes[0]
    assert axis.get_title(loc="left") == "spatial: E = 0.500"
    assert axis.get_xlim() == (0, 60)
    chance, errors, line, ahead = axis.lines
    assert set(chance.get_ydata()) == {0.8}
    assert list(zip(*errors.get_data(), strict=True)) == [(0, 0.8), (10, 0.7), (20, 0.65), (30, 0.5)]
    assert line.get_linestyle() == ":"
    assert line.get_xydata() == pytest.approx(np.array([[30, 0.5], [40, 0.35]]))
    assert ahead.get_xydata() == pytest.approx(np.array([[40, 0.35]]))
    # rewards: 0.1 over a flat line, 0.1 over the line through the last two; what ends free iterations earns none
    stems = [stem.get_segments()[0] for stem in axis.collections]
    assert np.array(stems) == pytest.approx(np.array([[[10, 0.7], [10, 0.8]], [[30, 0.5], [30, 0.6]]]))


def test_the_dashboard_shows_the_end_of_a_run_and_its_divergence():
    assert len(draw(next_validation=None).axes[0].lines) == 2
    axis = draw(next_validation=None, diverged=31, answers=answers(broken=True)).axes[0]
    assert axis.get_title(loc="left") == "spatial: diverged"
    assert axis.lines[1].get_xydata()[-1].tolist() == [31, 1]
    assert axis.collections[-1].get_segments()[0] == pytest.approx(np.array([[31, 1], [31, 0.485]]))
    assert to_rgba(axis.collections[-1].get_color()[0])[:3] == to_rgba("tab:red")[:3]


def test_the_dashboard_shows_the_state_and_how_the_choices_lean():
    state, choices = draw().axes[1:3]
    boxes = np.array([bar.get_bbox().extents for bar in state.patches])  # left, from, right, to
    assert boxes == pytest.approx(np.array([[0, 1, 0.2, 0.9], [0.2, 1, 0.7, 1], [0.7, 1, 1, 1.2]]))
    assert [bar.get_facecolor() for bar in state.patches] == [tuple(colour) for colour in render.figure_colours(3)]
    assert [bar.get_height() for bar in choices.patches] == pytest.approx([0.4, 0.4, 0.2, 0.6, 0.1, 0.3])
    assert not choices.texts


def test_before_the_first_choice_the_dashboard_says_so():
    figure = draw(history=[(0, 0.8)], credited=[False], choices=np.zeros(3, int), next_validation=10)
    assert [text.get_text() for text in figure.axes[2].texts] == ["none yet"]
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[10, 0.8]]


def shown_pieces(axis):
    """What lies where, row by row, and the colour around it."""
    places = sorted(axis.images, key=lambda image: (-image.get_extent()[2], image.get_extent()[0]))
    corners = {box.get_xy(): box.get_edgecolor() for box in axis.patches}
    outlines = [corners[image.get_extent()[0], image.get_extent()[2]] for image in places]
    return [int(image.get_array()[0, 0, 0]) for image in places], outlines


@pytest.mark.parametrize("stills", [True, False])
def test_the_dashboard_puts_a_sample_back_as_the_network_takes_it(stills):
    good, bad = to_rgba("tab:green"), to_rgba("tab:red")
    *_, shuffled, back = draw(answers=answers(stills=stills)).axes
    assert shown_pieces(shuffled)[0] == [1, 2, 3, 0]
    assert shown_pieces(back) == ([0, 1, 2, 3], [good] * 4)
    assert back.texts[-1].get_text() == "recognised, p = 0.60"
    *_, shuffled, back = draw(answers=answers(guess=1, stills=stills)).axes
    # it takes 1, 2, 3, 0 for 1, 0, 3, 2: what it takes for the first is the third, and so on
    assert shown_pieces(back) == ([2, 1, 0, 3], [bad, good, bad, good])
    assert back.texts[-1].get_text() == "taken for 1, true is no. 2, p = 0.20"
    numbers = [text.get_text() for text in shuffled.texts]
    assert numbers == ([] if stills else ["2", "3", "4", "1"])


def test_an_answer_that_is_not_finite_puts_nothing_back():
    *_, shuffled, back = draw(answers=answers(broken=True)).axes
    assert len(shuffled.images) == 4
    assert not back.images
    assert back.texts[-1].get_text() == "no finite answer"


def test_two_tasks_are_two_rows():
    figure = render.dashboard_figure("title", "status", {"spatial": panel(), "temporal": panel()}, 60)
    assert render.to_array(figure).shape == (764, 1000, 3)
    assert [axis.get_title(loc="left") for axis in figure.axes[::5]] == ["spatial: E = 0.500", "temporal: E = 0.500"]
