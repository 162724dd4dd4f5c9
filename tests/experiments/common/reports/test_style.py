"""Figures have one style, and lines are labelled at their ends."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.common.reports import style
from permenv.render import COLOURS, to_array


@style.styled
def draw(ends):
    figure = Figure(figsize=(4, 3), layout="constrained")
    style.add_title(figure, "all")
    axis = figure.subplots()
    lines = [axis.plot([0, 1], [0, end], label=f"to {end}")[0] for end in ends]
    axis.set(xlim=(0, 1), ylim=(0, 1))
    style.label_lines(axis, lines)
    return figure


def test_figures_have_the_colours_and_the_title_of_the_style():
    figure = draw([0.2, 0.8])
    (axis,) = figure.axes
    assert [line.get_color() for line in axis.lines] == list(COLOURS[:2])
    assert not axis.spines["top"].get_visible()
    assert figure.get_suptitle() == "all"


def test_labels_are_at_the_ends_of_their_lines():
    (axis,) = draw([0.8, 0.2]).axes
    assert [text.get_text() for text in axis.texts] == ["to 0.8", "to 0.2"]
    assert [text.xyann[1] for text in axis.texts] == pytest.approx([0.8, 0.2])
    assert [text.xy[1] for text in axis.texts] == pytest.approx([0.8, 0.2])


def test_labels_do_not_overlap_and_are_inside_the_figure():
    ends = [0.5, 0.5, 0.51, 0.05, 0.0]
    figure = draw(ends)
    to_array(figure)
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == len(ends)
    for below, above in itertools.pairwise(boxes):
        assert below.y1 <= above.y0
    assert max(box.x1 for box in boxes) <= figure.bbox.width


def test_places_are_moved_as_little_as_possible():
    assert style.move_apart([3.0, 1.0, 2.0], 1) == pytest.approx([3, 1, 2])
    assert style.move_apart([0.0, 0.0], 1) == pytest.approx([-0.5, 0.5])
    assert style.move_apart([5.0, 0.0, 0.2], 1) == pytest.approx([5, -0.4, 0.6])


def test_the_colours_differ_in_lightness_or_hue_for_every_kind_of_colour_vision():
    """Okabe and Ito's colours as people see them who lack one kind of cone (Viénot et al. 1999)."""
    missing = {
        "red": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "green": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    linear = np.array([to_rgb(colour) for colour in COLOURS]) ** 2.2
    for matrix in (np.eye(3), *map(np.array, missing.values())):
        seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
        distances = np.abs(seen[:, None] - seen[None]).max(axis=2)
        assert distances[~np.eye(len(COLOURS), dtype=bool)].min() > 0.1
