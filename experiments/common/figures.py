"""Figures of a finished run, as plain matplotlib objects; none needs a display."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from permenv import Pretraining, render

_TIMES = "plasma"  # frames from early (dark) to late (light)
_MOST_EXAMPLES, _MOST_STRIPS = 6, 4


def error_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Show error and reward over the run.

    Args:
        curves: By label (a task, of a run), the columns "iteration", "error", "baseline_error" and
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
    upper.plot([], [], linestyle=(0, (1, 2)), color="grey", label="extrapolated")  # one entry for all
    upper.set(title="validation error E", ylim=(0, 1.02))
    lower.set(title="reward: gain over the extrapolated error", xlabel="SGD iteration")
    upper.legend()
    return figure


def choice_figure(updates: Sequence[float], frequencies: np.ndarray, fractions: np.ndarray) -> Figure:
    """Show how often each group was chosen, update by update (the paper's Fig. 4), and how that differs from chance.

    Args:
        updates: (T,) numbers of the updates.
        frequencies: (T, |C|) share of an update's actions that chose each group; rows sum to 1.
        fractions: (T, |C|) share of the permutations that each group holds; rows sum to 1.

    Returns:
        The figure, hardest group on top, as in the paper. Below, how many times as often as by chance (all
        permutations equally likely) each group was chosen, on a scale of powers of two.
    """
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    below = np.zeros(len(updates))
    num_groups = frequencies.shape[1]
    colours = render.figure_colours(num_groups)
    for group in reversed(range(num_groups)):  # easiest at the bottom
        label = {0: "hardest", num_groups - 1: "easiest"}.get(group)
        upper.bar(updates, frequencies[:, group], bottom=below, width=1, color=colours[group], label=label)
        below = below + frequencies[:, group]
    upper.set(title="groups chosen", ylabel="share of the actions", ylim=(0, 1))
    upper.legend(loc="upper left")
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty group stays white
        ratio = np.log2(frequencies / fractions)
    extent = (updates[0] - 0.5, updates[-1] + 0.5, num_groups - 0.5, -0.5)
    shown = lower.imshow(ratio.T, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto", interpolation="none", extent=extent)
    lower.set(title="against chance: +1 is twice as often", xlabel="update", ylabel="group, hardest 0")
    figure.colorbar(shown, ax=lower, label="log2")
    return figure


def shuffle_figure(originals: np.ndarray, pieces: np.ndarray, captions: Sequence[str]) -> Figure:
    """Show samples beside their shuffled pieces.

    Args:
        originals: (B, S, S, 3) uint8 images.
        pieces: (B, n, h, w, 3) uint8 or float in [0, 1], in their shuffled order, n a square.
        captions: (B,) text under each.

    Returns:
        The figure, one column a sample.
    """
    count, num_pieces = pieces.shape[:2]
    grid = round(num_pieces**0.5)
    figure = Figure(figsize=(2 * count, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for column in range(count):
        axes[0, column].imshow(originals[column])
        axes[1, column].imshow(tiled(pieces[column], grid))
        axes[1, column].set_xlabel(captions[column], fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def frames_figure(originals: np.ndarray, pieces: np.ndarray, orders: np.ndarray, captions: Sequence[str]) -> Figure:
    """Show frames of clips in their true order, and below in the shuffled order.

    Args:
        originals: (B, n, ...) frames in their true order; images or lines, see `render.draw_piece`.
        pieces: (B, n, ...), likewise, in their shuffled order.
        orders: (B, n) int, the frame at each position of the shuffled order.
        captions: (B,) text above each.

    Returns:
        The figure, two strips a sample; a line connects the two places of each frame.
    """
    count, num_frames = orders.shape
    step, gap = 1.06, 0.45  # a frame's side is 1
    colours = matplotlib.colormaps[_TIMES](np.linspace(0.05, 0.9, num_frames))
    figure = Figure(figsize=(num_frames + 0.8, 2.6 * count), dpi=120, layout="constrained")
    for index, axis in enumerate(figure.subplots(count, 1, squeeze=False)[:, 0]):
        for position, frame in enumerate(orders[index]):
            render.draw_piece(axis, originals[index, position], (step * position, 1 + gap), colours[position])
            render.draw_piece(axis, pieces[index, position], (step * position, 0), colours[frame])
            ends = step * np.array([frame, position]) + 0.5
            axis.plot(ends, (1 + gap, 1), color=colours[frame], linewidth=2.5, solid_capstyle="round")
        for height, text in ((1.5 + gap, "true\norder"), (0.5, "as the\nnetwork\nsees it")):
            axis.text(-0.12, height, text, fontsize=8, horizontalalignment="right", verticalalignment="center")
        axis.set(xlim=(-0.8, step * num_frames), ylim=(-0.05, 2.05 + gap), aspect="equal")
        axis.set_axis_off()
        axis.set_title(captions[index].replace("\n", ", "), fontsize=9, loc="left")
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


def curves(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Sequence[float]]]:
    """Return the curves of `error_figure` of each task, from the rows of a run's metrics.csv."""
    table = {name: [row[name] for row in rows] for name in rows[0]}
    tasks = [name.removesuffix("/error") for name in table if name.endswith("/error")]
    shown = ("error", "baseline_error", "reward")
    return {
        task: {"iteration": table["iteration"], **{name: table[f"{task}/{name}"] for name in shown}} for task in tasks
    }


def choices_of_run(rows: Sequence[Mapping[str, float]], task: str) -> Figure:
    """Show the groups of one task that were chosen over a run, from the rows of its metrics.csv."""

    def table(prefix: str) -> np.ndarray:  # [updates, groups]
        return np.array([[value for name, value in row.items() if name.startswith(prefix)] for row in rows])

    return choice_figure([row["update"] for row in rows], table(f"{task}/group_"), table(f"{task}/size_"))


def examples_of_run(run: Pretraining, task: str, seed: int) -> Figure:
    """Show shuffled samples of the validation set, and the network's predictions.

    Args:
        run: The run.
        task: Name of the task.
        seed: Draws the permutations.
    """
    samples = run.held_out[task][:_MOST_EXAMPLES]
    labels = np.random.default_rng(seed).integers(run.config.num_permutations, size=len(samples))
    found = render.predict(run.tasks[task], functools.partial(run.network, task), samples, labels)
    captions = [f"ψ {label}: {found.verdict(index)}" for index, label in enumerate(labels)]
    if found.originals.ndim < found.pieces.ndim:  # whole images, and their tiles
        return shuffle_figure(found.originals, found.pieces, captions)
    shown = slice(_MOST_STRIPS)
    return frames_figure(found.originals[shown], found.pieces[shown], found.orders[shown], captions[shown])
