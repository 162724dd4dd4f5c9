"""The run as a picture. Figures are plain matplotlib objects, which need no display."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from permenv.episode import Episode
from permenv.grouping import HIGHEST_RATIO
from permenv.reward import extrapolate
from permenv.tasks import Task

BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
COLOURS = (BLUE, VERMILION, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Colours of lines, of Okabe and Ito and dark grey: people with any kind of colour vision can tell them apart."""
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
"""Settings of matplotlib that all figures have in common."""

_GROUPS = "RdYlBu"  # from hard (red) to easy (blue)
_GREY, _GOOD, _BAD = "0.5", GREEN, VERMILION
_WIDTH, _HEADER, _ROW = 1000, 36, 364  # of the dashboard, in pixels
_STEM: dict[str, Any] = {"linewidth": 5, "alpha": 0.5}  # from E^BL to E
_DASHBOARD_STYLE: dict[Any, Any] = {
    **STYLE,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlepad": 5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def to_array(figure: Figure) -> np.ndarray:
    """Draw a figure as (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


@dataclass(frozen=True)
class Predictions:
    """Shuffled samples, and what a network predicts for them.

    Attributes:
        originals: The samples before they are cut, see `Task.originals`.
        pieces: (B, n, ...), in their shuffled order, see `Task.raw_pieces`.
        orders: (B, n) int, the piece of the true order at each position.
        labels: (B,) int, the permutations that were applied, as indices into Ψ.
        probabilities: (B, |Ψ|), the network's probability of each permutation.
        guesses: (B, n) int, the most probable permutation of each sample.
        columns: Pieces in a row of a picture.
    """

    originals: np.ndarray
    pieces: np.ndarray
    orders: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    guesses: np.ndarray
    columns: int

    @property
    def is_grid(self) -> bool:
        """Whether samples are images that are cut into a grid, and do not come in pieces already, as clips do."""
        return self.originals.ndim < self.pieces.ndim

    def verdict(self, sample: int) -> str:
        """Whether the permutation of a sample was recognised, else the most probable one, and its probability."""
        probabilities, label = self.probabilities[sample], self.labels[sample]
        if not np.isfinite(probabilities).all():
            return "not finite"
        rank = int((probabilities > probabilities[label]).sum()) + 1
        verdict = "recognised" if rank == 1 else f"predicted {probabilities.argmax()}, true ψ ranks {rank}"
        return f"{verdict}\np = {probabilities[label]:.2f}"


def predict(task: Task, network: Callable[[Tensor], Tensor], samples: np.ndarray, labels: np.ndarray) -> Predictions:
    """Shuffle samples without augmentation and apply a network.

    Args:
        task: The task that the samples are of.
        network: From normalised pieces (B, n, *piece) to logits (B, |Ψ|).
        samples: (B, k) int64.
        labels: (B,) int, the permutations to apply, as indices into Ψ.
    """
    orders = task.permutations[labels]
    probabilities = torch.softmax(network(task.pieces(samples, orders)), dim=1).cpu().numpy()
    return Predictions(
        originals=task.originals(samples),
        pieces=task.raw_pieces(samples, orders),
        orders=orders,
        labels=labels,
        probabilities=probabilities,
        guesses=task.permutations[probabilities.argmax(axis=1)],
        columns=task.picture_columns,
    )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What the dashboard shows of one task.

    Attributes:
        iterations: Of every validation, and of a divergence.
        errors: E at each, 1 where the run diverged.
        credited: Of each, whether it was rewarded: the end of an update, or a divergence.
        diverged: Whether the last one is a divergence.
        next_validation: Iteration of the next validation; None where the run is over.
        observation: (|C|, 2), ŝ.
        choices: (|C|,) int, how often each group was chosen before the last validation; all 0 where nothing was.
        sizes: (|C|,) share of Ψ of each group that was chosen from.
        predictions: A shuffled sample, and what the network predicts.
    """

    iterations: Sequence[int]
    errors: Sequence[float]
    credited: Sequence[bool]
    diverged: bool
    next_validation: int | None
    observation: np.ndarray
    choices: np.ndarray
    sizes: np.ndarray
    predictions: Predictions


def dashboard(title: str, episode: Episode) -> Figure:
    """Show a run as of its last validation, see `dashboard_figure`.

    Args:
        title: Of the whole picture.
        episode: The run and its rewards.
    """
    run, config, rewards = episode.run, episode.run.config, episode.rewards
    records, last = run.records, run.records[-1]
    chosen_from = records[max(len(records) - 2, 0)].observation.reshape(len(run.tasks), -1, 2)
    observations = last.observation.reshape(len(run.tasks), -1, 2)
    rng = np.random.default_rng(len(records))  # its own: drawing a picture must not change the run
    panels = {}
    for row, (name, task) in enumerate(run.tasks.items()):
        samples, label = run.held_out[name][:1], rng.integers(config.num_permutations, size=1)
        iterations, errors = run.error_curve(name)
        panels[name] = Panel(
            iterations=iterations,
            errors=errors,
            credited=[record.phase == "update" for record in records] + [True] * run.diverged,
            diverged=run.diverged,
            next_validation=episode.next_validation,
            observation=observations[row],
            choices=last.choices[row],
            sizes=chosen_from[row, :, 0],
            predictions=predict(task, functools.partial(run.network, name), samples, label),
        )
    error = run.error_curve()[1][-1]
    gain = f"{rewards[-1]:+.3f}" if rewards else "–"
    status = (
        f"update {episode.updates} of {config.total_updates}   iteration {last.iteration}   error {error:.3f}   "
        f"last reward {gain}"
    )
    return dashboard_figure(title, status, panels, config.total_iterations)


def dashboard_figure(title: str, status: str, panels: Mapping[str, Panel], last_iteration: int) -> Figure:
    """Show a run at one moment.

    The layout is fixed, so that the pictures of a run form a video: E with the straight line of the baseline; ŝ; the
    last choices; a shuffled sample, and the same sample in the predicted order.

    Args:
        title: Of the whole picture, on the left.
        status: On the right of the title.
        panels: By task.
        last_iteration: Where the run ends.

    Returns:
        The figure, 1000 × 400 pixels for one task, 1000 × 764 for two: sides are even, as videos need them.
    """
    height = _HEADER + _ROW * len(panels)
    with matplotlib.rc_context(_DASHBOARD_STYLE):
        figure = Figure(figsize=(_WIDTH / 100, height / 100), dpi=100)
        middle = 1 - _HEADER / 2 / height
        figure.text(0.016, middle, title, fontsize=12, fontweight="bold", verticalalignment="center")
        figure.text(0.984, middle, status, fontsize=10, horizontalalignment="right", verticalalignment="center")
        for row, (task, panel) in enumerate(panels.items()):
            top = _HEADER + _ROW * row
            _draw_errors(_axes(figure, 46, top + 26, 400, 292), task, panel, last_iteration)
            _draw_state(_axes(figure, 508, top + 26, 210, 112), panel)
            _draw_choices(_axes(figure, 508, top + 206, 210, 112), panel)
            _draw_prediction(
                _axes(figure, 756, top + 26, 228, 142), _axes(figure, 756, top + 196, 228, 142), panel.predictions
            )
    return figure


def draw_piece(axis: Axes, piece: np.ndarray, corner: tuple[float, float], colour: np.ndarray | str) -> None:
    """Draw a piece in a coloured frame of side 1.

    Args:
        axis: Where to draw.
        piece: An image (h, w, 3), or numbers (channels, length) in [0, 1], which become a line per channel.
        corner: Lower left corner of the frame.
        colour: Of the frame.
    """
    left, bottom = corner
    if piece.ndim == 3:
        axis.imshow(piece, extent=(left, left + 1, bottom, bottom + 1))
    else:
        columns, heights = np.linspace(left + 0.05, left + 0.95, piece.shape[1]), bottom + 0.05 + 0.9 * piece
        axis.plot(columns, heights.T, color=BLUE, linewidth=1)
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=2.5))


def draw_number(axis: Axes, number: int, corner: tuple[float, float]) -> None:
    """Write a number into the lower left corner of a piece."""
    left, bottom = corner
    tag = {"boxstyle": "square,pad=0.15", "facecolor": "black", "edgecolor": "none", "alpha": 0.6}
    axis.text(left + 0.1, bottom + 0.13, str(number), fontsize=7, color="white", bbox=tag)


def _axes(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes at a place in pixels from the upper left corner."""
    total_width, total_height = 100 * figure.get_size_inches()
    bottom = total_height - top - height
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def _draw_errors(axis: Axes, task: str, panel: Panel, last_iteration: int) -> None:
    points = list(zip(panel.iterations, panel.errors, strict=True))
    iteration, error = points[-1]
    chance = 1 - 1 / panel.predictions.probabilities.shape[1]
    axis.axhline(chance, color=_GREY, linewidth=1, linestyle="--")
    axis.text(last_iteration, chance - 0.015, "chance", color=_GREY, fontsize=8, ha="right", va="top")
    # a divergence lies an iteration later than its baseline where a validation was not finite
    for index in range(1, len(points)):
        if panel.credited[index]:
            at, reached = points[index]
            baseline = extrapolate(points[:index], at)
            axis.vlines(at, reached, baseline, color=_GOOD if reached <= baseline else _BAD, **_STEM)
    axis.plot(panel.iterations, panel.errors, marker=".", color=BLUE)
    if panel.diverged:
        axis.plot(iteration, error, marker="X", markersize=9, color=_BAD, clip_on=False)
    if panel.next_validation is not None:
        baseline = extrapolate(points, panel.next_validation)
        axis.plot([iteration, panel.next_validation], [error, baseline], ":", color=BLUE)
        axis.plot(panel.next_validation, baseline, marker="o", color=BLUE, fillstyle="none")
    shown = "diverged" if panel.diverged else f"E = {error:.3f}"
    axis.set_title(f"{task}: {shown}")
    axis.set(xlabel="SGD iteration", xlim=(0, max(last_iteration, iteration)), ylim=(0, 1.05))
    handles = [
        Line2D([], [], color=BLUE, linestyle="none", marker="o", fillstyle="none"),
        Line2D([], [], color=_GOOD, **_STEM),
        Line2D([], [], color=_BAD, **_STEM),
    ]
    labels = ["E$^{BL}$", "reward > 0", "reward < 0"]
    tight: dict[str, Any] = {"handlelength": 1, "handletextpad": 0.7, "columnspacing": 1.1, "borderpad": 0.2}
    beside_title: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    axis.legend(handles, labels, ncols=3, fontsize=8, frameon=False, **tight, **beside_title)


def _draw_state(axis: Axes, panel: Panel) -> None:
    sizes, ratios = panel.observation[:, 0], panel.observation[:, 1]
    left = np.cumsum(sizes) - sizes
    colours: Any = figure_colours(len(sizes))
    axis.set_yscale("log", base=2)
    axis.bar(left, ratios - 1, sizes, bottom=1, align="edge", color=colours, edgecolor="white", linewidth=0.5)
    axis.hlines(ratios, left, left + sizes, colors=colours, linewidth=2.5)  # ratios near 1 leave no bar to see
    axis.axhline(1, color=_GREY, linewidth=1, zorder=0)
    farthest = np.exp(np.abs(np.log(ratios)).max())
    limit = next((limit for limit in (1.1, 1.25, 1.5) if farthest <= limit), HIGHEST_RATIO)
    axis.set_title("ŝ: median ratio of each group")
    axis.set(xlabel="share of Ψ, hardest group first", xlim=(0, 1), ylim=(1 / limit, limit))
    ticks = [1 / limit, limit**-0.5, 1, limit**0.5, limit]
    axis.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())


def _draw_choices(axis: Axes, panel: Panel) -> None:
    groups, total = np.arange(len(panel.choices)), panel.choices.sum()
    shares = panel.choices / max(total, 1)
    axis.bar(groups - 0.2, panel.sizes, 0.4, color="0.8")
    axis.bar(groups + 0.2, shares, 0.4, color=figure_colours(len(groups)), edgecolor="0.4", linewidth=0.5)
    if not total:
        axis.text(1, 0.97, "none yet", color=_GREY, ha="right", va="top", transform=axis.transAxes)
    highest = max(shares.max(), panel.sizes.max())
    axis.set_title("last choices (grey: by chance)")
    axis.set(xlabel="group, hardest 0", ylim=(0, next((limit for limit in (0.25, 0.5) if highest <= limit), 1)))
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))


def _draw_prediction(upper: Axes, lower: Axes, predictions: Predictions) -> None:
    """The first sample as the network sees it, and in the predicted order."""
    draw_shuffled(upper, predictions)
    upper.set_title(f"held out, shuffled by ψ {predictions.labels[0]}")
    lower.set_title("put back by the network")
    text: dict[str, Any] = {"fontsize": 8.5, "verticalalignment": "top", "transform": lower.transAxes}
    is_finite = draw_put_back(lower, predictions)
    lower.text(0, -0.05 if is_finite else 1, predictions.verdict(0).replace("\n", ", "), **text)


def draw_shuffled(axis: Axes, predictions: Predictions) -> None:
    """Draw the first sample as the network sees it."""
    count = len(predictions.orders[0])
    neutral = "white" if predictions.pieces.ndim == 5 else "0.8"  # lines have a white background
    _draw_pieces(axis, predictions, np.arange(count), [neutral] * count)


def draw_put_back(axis: Axes, predictions: Predictions) -> bool:
    """Draw the first sample in the predicted order, pieces in their true places in green frames, others in orange ones.

    Returns:
        Whether the predictions are finite; nothing is drawn otherwise.
    """
    if not np.isfinite(predictions.probabilities[0]).all():
        axis.set_axis_off()
        return False
    order, guess = predictions.orders[0], predictions.guesses[0]
    back = np.argsort(guess)  # the piece that is guessed to be the first, the second, ...
    _draw_pieces(axis, predictions, back, [_GOOD if right else _BAD for right in (order == guess)[back]])
    return True


def _draw_pieces(axis: Axes, predictions: Predictions, arrangement: np.ndarray, colours: Sequence[str]) -> None:
    """Lay out the pieces of the first sample in coloured frames; without a grid they show their true positions."""
    count = len(arrangement)
    step = 1.06  # a piece's side is 1
    for index, (piece, colour) in enumerate(zip(arrangement, colours, strict=True)):
        row, column = divmod(index, predictions.columns)
        corner = step * column, -step * row
        draw_piece(axis, predictions.pieces[0, piece], corner, colour)
        if not predictions.is_grid:
            draw_number(axis, predictions.orders[0, piece] + 1, corner)
    lowest = -step * ((count - 1) // predictions.columns)
    axis.set(xlim=(-0.04, step * predictions.columns), ylim=(lowest - 0.04, 1.04), aspect="equal", anchor="NW")
    axis.set_axis_off()


def figure_colours(num_groups: int) -> np.ndarray:
    """One colour a group, (|C|, 4), from hard (red) to easy (blue)."""
    return matplotlib.colormaps[_GROUPS](np.linspace(0, 1, num_groups))
