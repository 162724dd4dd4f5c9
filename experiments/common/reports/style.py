"""The look of all figures: one style, and lines that are labelled at their ends instead of in a legend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

P = ParamSpec("P")

_SIZE = 9  # of a label, in points
_OUTSIDE = 1.03  # where labels begin, in widths of the axes


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw its figure in the style of `permenv.render`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib  # slow to import

        from permenv.render import STYLE

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def add_title(figure: Figure, title: str) -> None:
    """Write the title of the whole figure in its upper left corner."""
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=12, fontweight="bold")


def label_lines(axis: Axes, lines: Sequence[Line2D]) -> None:
    """Write the label of each line to the right of the axes, in the colour of the line, at the height of its end.

    Labels that would overlap are moved apart, and a thin line connects each with the end of its line.

    Args:
        axis: The axes, of a figure with constrained layout. Their limits must be final.
        lines: The lines. Their last points must be finite.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays out the axes
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = [tuple(to_axes.transform(np.asarray(line.get_xydata())[-1])) for line in lines]
    gap = 1.3 * _SIZE / 72 * figure.dpi / axis.get_window_extent().height
    for line, end, height in zip(lines, ends, move_apart([end[1] for end in ends], gap), strict=True):
        axis.annotate(
            str(line.get_label()),
            xy=end,
            xytext=(_OUTSIDE, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.get_color(),
            fontsize=_SIZE,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
        )


def move_apart(positions: Sequence[float], gap: float) -> np.ndarray:
    """Move positions until neighbours are at least `gap` apart, as little as possible in the sense of least squares.

    Args:
        positions: (n,), in any order.
        gap: The least distance.

    Returns:
        (n,), in the same order.
    """
    from scipy.optimize import isotonic_regression  # slow to import

    order, steps = np.argsort(positions, kind="stable"), gap * np.arange(len(positions))
    moved = np.empty(len(positions))
    moved[order] = isotonic_regression(np.asarray(positions, dtype=float)[order] - steps).x + steps
    return moved
