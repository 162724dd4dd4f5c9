"""Figures of a finished run, as plain matplotlib objects; none needs a display."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.reports.style import add_title, label_lines, styled
from permenv import Pretraining, render

_TIMES = "plasma"  # frames from early (dark) to late (light)
_MOST_EXAMPLES, _MOST_STRIPS = 6, 4


@styled
def error_figure(title: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Show error and reward over the run.

    Args:
        title: Of the figure.
        curves: By label (a policy, a task), the columns "iteration", "error", "baseline_error" and "reward": the
            untrained network, whose last two are NaN, and one entry an update.

    Returns:
        The figure: E with the extrapolated E^BL above, r below, one colour a curve.
    """
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    add_title(figure, title)
    lower.axhline(0, color="grey", linewidth=1)
    lines = []
    for colour, (name, run) in zip(itertools.cycle(render.COLOURS), curves.items(), strict=False):
        lines += upper.plot(run["iteration"], run["error"], marker=".", color=colour, label=name)
        upper.plot(run["iteration"], run["baseline_error"], linestyle=(0, (1, 2)), color=colour, alpha=0.8)
        lower.plot(run["iteration"], run["reward"], marker=".", color=colour)
    upper.set(title="validation error E (dotted: extrapolated from the last two)", ylim=(0, 1.02))
    lower.set(title="reward: by how much E is below the extrapolated error", xlabel="SGD iteration")
    lower.set_xlim(0, max(run["iteration"][-1] for run in curves.values()))
    label_lines(upper, lines)
    return figure


@styled
def choice_figure(title: str, updates: Sequence[float], frequencies: np.ndarray, fractions: np.ndarray) -> Figure:
    """Show how often each group was chosen, update by update (the paper's Fig. 4), and how that differs from chance.

    Args:
        title: Of the figure.
        updates: (T,) numbers of the updates.
        frequencies: (T, |C|) share of an update's actions that chose each group; rows sum to 1.
        fractions: (T, |C|) share of the permutations that each group holds; rows sum to 1.

    Returns:
        The figure, hardest group on top, as in the paper. Below, how many times as often as by chance (all
        permutations equally likely) each group was chosen, on a scale of powers of two.
    """
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    add_title(figure, title)
    stack_choices(upper, updates, frequencies)
    upper.set(title="groups chosen", ylabel="share of the actions")
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty group stays white
        ratio = np.log2(frequencies / fractions)
    last = frequencies.shape[1] - 1
    extent = (updates[0] - 0.5, updates[-1] + 0.5, last + 0.5, -0.5)
    shown = lower.imshow(ratio.T, cmap="PuOr_r", vmin=-2, vmax=2, aspect="auto", interpolation="none", extent=extent)
    lower.set(title="compared with chance", xlabel="update", xlim=extent[:2])
    lower.set_yticks([0, last], ["hardest", "easiest"])
    bar = figure.colorbar(shown, cax=lower.inset_axes((1.02, 0, 0.025, 1)))
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼", "½", "as often", "2 times", "4 times"])
    return figure


def stack_choices(axis: Axes, updates: Sequence[float], frequencies: np.ndarray) -> None:
    """Draw how often each group was chosen as a bar an update, the easiest group at the bottom.

    Args:
        axis: Where to draw.
        updates: (T,) numbers of the updates.
        frequencies: (T, |C|) share of an update's actions that chose each group; rows sum to 1.
    """
    below = np.zeros(len(updates))
    colours = render.figure_colours(frequencies.shape[1])
    for group in reversed(range(len(colours))):
        axis.bar(updates, frequencies[:, group], bottom=below, width=1, color=colours[group])
        below = below + frequencies[:, group]
    axis.set(ylim=(0, 1))
    for height, alignment, group in ((1, "top", 0), (0, "bottom", -1)):
        text = "hardest\ngroup" if group == 0 else "easiest\ngroup"
        dark = 0.8 * colours[group][:3]
        axis.text(1.02, height, text, color=dark, fontsize=9, verticalalignment=alignment, transform=axis.transAxes)


@styled
def shuffle_figure(title: str, originals: np.ndarray, pieces: np.ndarray, captions: Sequence[str]) -> Figure:
    """Show samples beside their shuffled pieces.

    Args:
        title: Of the figure.
        originals: (B, S, S, 3) uint8 images.
        pieces: (B, n, h, w, 3) uint8 or float in [0, 1], in their shuffled order, n a square.
        captions: (B,) text under each.

    Returns:
        The figure, one column a sample.
    """
    count, num_pieces = pieces.shape[:2]
    grid = round(num_pieces**0.5)
    figure = Figure(figsize=(2 * count + 0.3, 4.9), dpi=120, layout="constrained")
    add_title(figure, title)
    axes = figure.subplots(2, count, squeeze=False)
    for column in range(count):
        axes[0, column].imshow(originals[column])
        axes[1, column].imshow(tiled(pieces[column], grid))
        axes[1, column].set_xlabel(captions[column], fontsize=9)
    axes[0, 0].set_ylabel("held-out image")
    axes[1, 0].set_ylabel("as the network sees it")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure


@styled
def frames_figure(
    title: str, originals: np.ndarray, pieces: np.ndarray, orders: np.ndarray, captions: Sequence[str]
) -> Figure:
    """Show frames of clips in their true order, and below in the shuffled order.

    Args:
        title: Of the figure.
        originals: (B, n, ...) frames in their true order; images or lines, see `render.draw_piece`.
        pieces: (B, n, ...), likewise, in their shuffled order.
        orders: (B, n) int, the frame at each position of the shuffled order.
        captions: (B,) text above each.

    Returns:
        The figure, two strips a sample; a line connects the two places of each frame, and its number is on both.
    """
    count, num_frames = orders.shape
    step, gap = 1.06, 0.45  # a frame's side is 1
    colours = matplotlib.colormaps[_TIMES](np.linspace(0.05, 0.9, num_frames))
    figure = Figure(figsize=(num_frames + 0.8, 2.6 * count + 0.3), dpi=120, layout="constrained")
    add_title(figure, title)
    for index, axis in enumerate(figure.subplots(count, 1, squeeze=False)[:, 0]):
        for position, frame in enumerate(orders[index]):
            for piece, number, height in ((originals, position, 1 + gap), (pieces, frame, 0)):
                corner = (step * position, height)
                render.draw_piece(axis, piece[index, position], corner, colours[number])
                render.draw_number(axis, number + 1, corner)
            ends = step * np.array([frame, position]) + 0.5
            axis.plot(ends, (1 + gap, 1), color=colours[frame], linewidth=2.5, solid_capstyle="round")
        for height, text in ((1.5 + gap, "true\norder"), (0.5, "as the\nnetwork\nsees it")):
            axis.text(-0.12, height, text, fontsize=9, horizontalalignment="right", verticalalignment="center")
        axis.set(xlim=(-0.8, step * num_frames), ylim=(-0.05, 2.05 + gap), aspect="equal")
        axis.set_axis_off()
        axis.set_title(captions[index].replace("\n", ", "), fontsize=9, fontweight="normal")
    return figure


def tiled(pieces: np.ndarray, grid: int, gap: int = 2) -> np.ndarray:
    """Lay pieces (n, h, w, 3) out on a grid, with white gaps."""
    _, height, width, _ = pieces.shape
    white = 255 if pieces.dtype == np.uint8 else 1
    canvas = np.full((grid * (height + gap) - gap, grid * (width + gap) - gap, 3), white, dtype=pieces.dtype)
    for position, piece in enumerate(pieces):
        row, column = divmod(position, grid)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = piece
    return canvas


def curves(
    rows: Sequence[Mapping[str, float]], untrained: Mapping[str, float]
) -> dict[str, dict[str, Sequence[float]]]:
    """Return the curves of `error_figure` of each task.

    Args:
        rows: Of a run's metrics.csv.
        untrained: By task, the error of the untrained network.
    """
    iterations = [0, *(row["iteration"] for row in rows)]
    return {
        task: {
            "iteration": iterations,
            "error": [error, *(row[f"{task}/error"] for row in rows)],
            **{name: [math.nan, *(row[f"{task}/{name}"] for row in rows)] for name in ("baseline_error", "reward")},
        }
        for task, error in untrained.items()
    }


def choices_of_run(title: str, rows: Sequence[Mapping[str, float]], task: str) -> Figure:
    """Show the groups of one task that were chosen over a run, from the rows of its metrics.csv."""

    def table(prefix: str) -> np.ndarray:  # [updates, groups]
        return np.array([[value for name, value in row.items() if name.startswith(prefix)] for row in rows])

    return choice_figure(title, [row["update"] for row in rows], table(f"{task}/group_"), table(f"{task}/size_"))


def examples_of_run(title: str, run: Pretraining, task: str, seed: int) -> Figure:
    """Show shuffled samples of the validation set, and the network's predictions.

    Args:
        title: Of the figure.
        run: The run.
        task: Name of the task.
        seed: Draws the permutations.
    """
    samples = run.held_out[task][:_MOST_EXAMPLES]
    labels = np.random.default_rng(seed).integers(run.config.num_permutations, size=len(samples))
    found = render.predict(run.tasks[task], functools.partial(run.network, task), samples, labels)
    captions = [f"ψ {label}: {found.verdict(index)}" for index, label in enumerate(labels)]
    if found.is_grid:
        return shuffle_figure(title, found.originals, found.pieces, captions)
    shown = slice(_MOST_STRIPS)
    return frames_figure(title, found.originals[shown], found.pieces[shown], found.orders[shown], captions[shown])
