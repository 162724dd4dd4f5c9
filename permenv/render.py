"""The run as a picture. Figures are plain matplotlib objects: nothing here needs or starts a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_COLOURS = "RdYlGn"  # groups from hard (red) to easy (green)
_TIMES = "plasma"  # frames from early (dark) to late (light)


def to_array(figure: Figure) -> np.ndarray:
    """Draw a figure as (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def run_figure(history: Mapping[str, Sequence[tuple[int, float]]], observations: Mapping[str, np.ndarray]) -> Figure:
    """Show a run at one moment: its error so far, and ŝ.

    Args:
        history: By task, (iteration, E) of every validation.
        observations: By task, (|C|, 2), ŝ.

    Returns:
        The figure, 800 × 320 pixels a task, one row a task.
    """
    figure = Figure(figsize=(8, 3.2 * len(history)), dpi=100, layout="constrained")
    for (left, right), task in zip(figure.subplots(len(history), 2, squeeze=False), history, strict=True):
        iterations, errors = zip(*history[task], strict=True)
        left.plot(iterations, errors, marker=".", color="tab:blue")
        left.set(title=f"{task}: validation error E", xlabel="SGD iteration", ylim=(0, 1.02))
        observation = observations[task]
        groups = np.arange(len(observation))
        colours = figure_colours(len(observation))
        right.bar(groups, observation[:, 1] - 0.5, bottom=0.5, width=0.2 + 0.7 * observation[:, 0], color=colours)
        right.axhline(1, color="grey", linewidth=1)
        right.set(
            title=f"{task}: state ŝ (width: share of Ψ)",
            xlabel="group, hardest first",
            ylabel="median ratio",
            ylim=(0.5, 2),
        )
    return figure


def error_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Show error and reward over the run.

    Args:
        curves: By what the legend calls it (a task, of a run), the columns "iteration", "error", "baseline_error" and
            "reward", one entry an update.

    Returns:
        The figure: E with the extrapolated E^BL above, r below, one colour a curve.
    """
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    lower.axhline(0, color="grey", linewidth=1)
    for index, (name, run) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": f"C{index}", "linewidth": 1.5 if len(curves) < 3 else 1.2}
        upper.plot(run["iteration"], run["error"], marker=".", label=name, **look)
        upper.plot(run["iteration"], run["baseline_error"], linestyle=(0, (1, 2)), alpha=0.7, **look)
        lower.plot(run["iteration"], run["reward"], marker=".", alpha=0.8, **look)
    upper.plot([], [], linestyle=(0, (1, 2)), color="grey", label="extrapolated")  # one line of the legend for all
    upper.set(title="validation error E", ylim=(0, 1.02))
    lower.set(title="reward: gain over the extrapolated error", xlabel="SGD iteration")
    upper.legend()
    return figure


def choice_figure(updates: Sequence[float], frequencies: np.ndarray, fractions: np.ndarray) -> Figure:
    """Show how often each group was chosen, update by update (the paper's Fig. 4), and how that leans.

    Args:
        updates: (T,) numbers of the updates.
        frequencies: (T, |C|) share of an update's actions that chose each group; rows sum to 1.
        fractions: (T, |C|) share of the permutations that each group holds; rows sum to 1.

    Returns:
        The figure, hardest group on top, as in the paper. Below, how many times as often as by chance (all
        permutations alike) each group was chosen, on a scale of powers of two.
    """
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    below = np.zeros(len(updates))
    num_groups = frequencies.shape[1]
    colours = figure_colours(num_groups)
    for group in reversed(range(num_groups)):  # easiest at the bottom
        label = {0: "hardest", num_groups - 1: "easiest"}.get(group)
        upper.bar(updates, frequencies[:, group], bottom=below, width=1, color=colours[group], label=label)
        below = below + frequencies[:, group]
    upper.set(title="groups chosen", ylabel="share of the actions", ylim=(0, 1))
    upper.legend(loc="upper left")
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty group has no lean, and stays white
        lean = np.log2(frequencies / fractions)
    extent = (updates[0] - 0.5, updates[-1] + 0.5, num_groups - 0.5, -0.5)
    shown = lower.imshow(lean.T, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto", interpolation="none", extent=extent)
    lower.set(title="against chance: +1 is twice as often", xlabel="update", ylabel="group, hardest 0")
    figure.colorbar(shown, ax=lower, label="log2")
    return figure


def shuffle_figure(originals: np.ndarray, pieces: np.ndarray, guesses: Sequence[str]) -> Figure:
    """Show samples beside their shuffled pieces.

    Args:
        originals: (B, S, S, 3) uint8 images.
        pieces: (B, n, h, w, 3) uint8 or float in [0, 1], in their shuffled order, n a square.
        guesses: (B,) text under each.

    Returns:
        The figure, one column a sample.
    """
    count, num_pieces = pieces.shape[:2]
    grid = round(num_pieces**0.5)
    figure = Figure(figsize=(2 * count, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for column in range(count):
        axes[0, column].imshow(originals[column])
        axes[1, column].imshow(_tile(pieces[column], grid))
        axes[1, column].set_xlabel(guesses[column], fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def frames_figure(originals: np.ndarray, pieces: np.ndarray, orders: np.ndarray, guesses: Sequence[str]) -> Figure:
    """Show frames of clips in their true order, and below in the order that the network sees.

    Args:
        originals: (B, n, S, S, 3) uint8 frames in their true order.
        pieces: (B, n, h, w, 3) uint8 or float in [0, 1], in their shuffled order.
        orders: (B, n) int, which frame lies at each position of the shuffled order.
        guesses: (B,) text above each.

    Returns:
        The figure, two strips a sample; a line in the colour of its time leads from each frame to where it went.
    """
    count, num_frames = orders.shape
    step, gap = 1.06, 0.45  # a frame's side is 1
    colours = matplotlib.colormaps[_TIMES](np.linspace(0.05, 0.9, num_frames))
    figure = Figure(figsize=(num_frames + 0.8, 2.6 * count), dpi=120, layout="constrained")
    for index, axis in enumerate(figure.subplots(count, 1, squeeze=False)[:, 0]):
        for position, frame in enumerate(orders[index]):
            _frame(axis, originals[index, position], (step * position, 1 + gap), colours[position])
            _frame(axis, pieces[index, position], (step * position, 0), colours[frame])
            ends = step * np.array([frame, position]) + 0.5
            axis.plot(ends, (1 + gap, 1), color=colours[frame], linewidth=2.5, solid_capstyle="round")
        for height, text in ((1.5 + gap, "true\norder"), (0.5, "as the\nnetwork\nsees it")):
            axis.text(-0.12, height, text, fontsize=8, horizontalalignment="right", verticalalignment="center")
        axis.set(xlim=(-0.8, step * num_frames), ylim=(-0.05, 2.05 + gap), aspect="equal")
        axis.set_axis_off()
        axis.set_title(guesses[index].replace("\n", ", "), fontsize=9, loc="left")
    return figure


def _frame(axis: Axes, pixels: np.ndarray, corner: tuple[float, float], colour: np.ndarray) -> None:
    """Draw a picture of side 1 with its lower left corner there, in a coloured frame."""
    left, bottom = corner
    axis.imshow(pixels, extent=(left, left + 1, bottom, bottom + 1))
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=2.5))


def figure_colours(num_groups: int) -> np.ndarray:
    """One colour a group, (|C|, 4), from hard (red) to easy (green)."""
    return matplotlib.colormaps[_COLOURS](np.linspace(0, 1, num_groups))


def _tile(pieces: np.ndarray, grid: int, gap: int = 2) -> np.ndarray:
    """Lay pieces (n, h, w, 3) out on a grid, with white gaps."""
    _, height, width, _ = pieces.shape
    white = 255 if pieces.dtype == np.uint8 else 1
    canvas = np.full((grid * (height + gap) - gap, grid * (width + gap) - gap, 3), white, dtype=pieces.dtype)
    for position, piece in enumerate(pieces):
        row, column = divmod(position, grid)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = piece
    return canvas
