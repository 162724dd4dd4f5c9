"""The run as a picture. Figures are plain matplotlib objects: nothing here but `Window` needs or starts a display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from permenv.augment import normalise
from permenv.config import ConfigurationError
from permenv.reward import extrapolated_error
from permenv.state import HIGHEST_RATIO
from permenv.tasks import Task

_COLOURS = "RdYlGn"  # groups from hard (red) to easy (green)
_TIMES = "plasma"  # frames from early (dark) to late (light)
_BLUE, _GREY, _GOOD, _BAD = "tab:blue", "0.5", "tab:green", "tab:red"
_WIDTH, _HEADER, _ROW = 1000, 36, 364  # of the dashboard, in pixels
_STEM: dict[str, Any] = {"linewidth": 5, "alpha": 0.5}  # from E^BL to E
_DASHBOARD_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Window:
    """A window on the screen that shows one picture after the other.

    Args:
        title: Of the window.

    Raises:
        ConfigurationError: If matplotlib can open none here.
    """

    def __init__(self, title: str):
        from matplotlib import pyplot  # it looks for a GUI toolkit, which nothing else needs

        self._pyplot = pyplot
        try:
            self._figure = pyplot.figure(dpi=100)  # not on the screen yet
        except Exception as error:  # a toolkit or a screen is missing: every toolkit has an exception of its own
            raise self._impossible() from error
        manager = self._figure.canvas.manager
        if manager is None or type(manager).show is FigureManagerBase.show:  # the backend has no way to show one
            pyplot.close(self._figure)
            raise self._impossible()
        manager.set_window_title(title)
        self._image: AxesImage | None = None
        self._shown: np.ndarray | None = None

    def show(self, picture: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 picture and answer what the window was asked meanwhile; nothing if it was closed.

        The window comes to the front with its first picture only.
        """
        if not self._pyplot.fignum_exists(self._figure.number):
            return
        if self._image is None:
            height, width = picture.shape[:2]
            self._figure.set_size_inches(width / 100, height / 100)
            axis = self._figure.add_axes((0, 0, 1, 1))
            axis.set_axis_off()
            self._image = axis.imshow(picture)
            self._figure.show()
        elif picture is not self._shown:
            self._image.set_data(picture)
            self._figure.canvas.draw_idle()
        self._shown = picture
        self._figure.canvas.flush_events()

    def close(self) -> None:
        """Close the window."""
        self._pyplot.close(self._figure)

    def _impossible(self) -> ConfigurationError:
        backend = matplotlib.rcParams["backend"]
        return ConfigurationError(
            f"render_mode='human': matplotlib opens no window here, its backend is {backend!r}; use "
            f"render_mode='rgb_array', or, where there is a screen, set MPLBACKEND to a backend with windows, such as "
            f"tkagg or qtagg, and install its toolkit"
        )


def to_array(figure: Figure) -> np.ndarray:
    """Draw a figure as (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


@dataclass(frozen=True)
class Answers:
    """Samples as a network sees them, and what it makes of them.

    Attributes:
        originals: (B, S, S, 3) uint8 images, or (B, n, S, S, 3) frames in their true order.
        pieces: (B, n, h, w, 3) uint8, in their shuffled order.
        orders: (B, n) int, which piece of the true order lies at each position.
        labels: (B,) int, the permutations that were applied, as indices into Ψ.
        probabilities: (B, |Ψ|), what the network gives each permutation.
        guesses: (B, n) int, `orders` as the network has it: its most probable permutation.
    """

    originals: np.ndarray
    pieces: np.ndarray
    orders: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    guesses: np.ndarray

    def verdict(self, sample: int) -> str:
        """Whether the permutation of a sample was recognised, or what it was taken for, and its probability."""
        probabilities, label = self.probabilities[sample], self.labels[sample]
        if not np.isfinite(probabilities).all():
            return "no finite answer"
        place = int((probabilities > probabilities[label]).sum()) + 1
        verdict = "recognised" if place == 1 else f"taken for {probabilities.argmax()}, true is no. {place}"
        return f"{verdict}\np = {probabilities[label]:.2f}"


def ask(task: Task, network: Callable[[Tensor], Tensor], samples: np.ndarray, labels: np.ndarray) -> Answers:
    """Shuffle centre crops of samples and ask a network how.

    Args:
        task: What the samples are of.
        network: From normalised pieces (B, n, 3, h, w) to logits (B, |Ψ|).
        samples: (B, k) int64.
        labels: (B,) int, the permutations to apply, as indices into Ψ.

    Returns:
        What the network sees and says.
    """
    orders = task.permutations[labels]
    pieces = task.centre_pieces(samples, orders)
    probabilities = torch.softmax(network(normalise(pieces)), dim=1).cpu().numpy()
    return Answers(
        originals=task.originals(samples).cpu().numpy(),
        pieces=pieces.cpu().numpy(),
        orders=orders,
        labels=labels,
        probabilities=probabilities,
        guesses=task.permutations[probabilities.argmax(axis=1)],
    )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What the dashboard shows of one task.

    Attributes:
        history: (iteration, E) of every validation.
        credited: Of every validation, whether it ended an update.
        next_validation: Iteration of the next one; None where the run is over.
        diverged: Iteration at which the run diverged, or None.
        observation: (|C|, 2), ŝ.
        choices: (|C|,) int, how often each group was chosen before the last validation; all 0 where nothing was.
        sizes: (|C|,) share of Ψ of each group that was chosen from.
        answers: A shuffled sample, and what the network makes of it.
    """

    history: Sequence[tuple[int, float]]
    credited: Sequence[bool]
    next_validation: int | None
    diverged: int | None
    observation: np.ndarray
    choices: np.ndarray
    sizes: np.ndarray
    answers: Answers


def dashboard_figure(title: str, status: str, panels: Mapping[str, Panel], last_iteration: int) -> Figure:
    """Show a run at one moment.

    Every place is fixed, so that pictures of a run are a film: E with the straight line that it is judged by; ŝ; what
    was chosen last; a shuffled sample, and what becomes of it in the order that the network takes it to be in.

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
            _draw_answer(_axes(figure, 756, top + 26, 228, 142), _axes(figure, 756, top + 196, 228, 142), panel.answers)
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


def _frame(axis: Axes, pixels: np.ndarray, corner: tuple[float, float], colour: np.ndarray | str) -> None:
    """Draw a picture of side 1 with its lower left corner there, in a coloured frame."""
    left, bottom = corner
    axis.imshow(pixels, extent=(left, left + 1, bottom, bottom + 1))
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=2.5))


def _axes(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes at a place in pixels from the upper left corner."""
    total_width, total_height = 100 * figure.get_size_inches()
    bottom = total_height - top - height
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def _draw_errors(axis: Axes, task: str, panel: Panel, last_iteration: int) -> None:
    iterations, errors = map(list, zip(*panel.history, strict=True))
    chance = 1 - 1 / panel.answers.probabilities.shape[1]
    axis.axhline(chance, color=_GREY, linewidth=1, linestyle="--")
    axis.text(last_iteration, chance - 0.015, "chance", color=_GREY, fontsize=8, ha="right", va="top")
    if panel.diverged is not None:
        iterations, errors = [*iterations, panel.diverged], [*errors, 1.0]
    for place in range(1, len(iterations)):
        if place == len(panel.credited) or panel.credited[place]:  # a divergence is judged too
            baseline = extrapolated_error(panel.history[:place], iterations[place])
            colour = _GOOD if errors[place] <= baseline else _BAD
            axis.vlines(iterations[place], errors[place], baseline, color=colour, **_STEM)
    axis.plot(iterations, errors, marker=".", color=_BLUE)
    if panel.diverged is not None:
        axis.plot(panel.diverged, 1, marker="X", markersize=9, color=_BAD, clip_on=False)
    if panel.next_validation is not None:
        ends = [iterations[-1], panel.next_validation]
        axis.plot(ends, [errors[-1], extrapolated_error(panel.history, ends[1])], ":", color=_BLUE)
        axis.plot(ends[1], extrapolated_error(panel.history, ends[1]), marker="o", color=_BLUE, fillstyle="none")
    shown = "diverged" if panel.diverged is not None else f"E = {errors[-1]:.3f}"
    axis.set_title(f"{task}: {shown}")
    axis.set(xlabel="SGD iteration", xlim=(0, max(last_iteration, iterations[-1])), ylim=(0, 1.05))
    handles = [
        Line2D([], [], color=_BLUE, linestyle="none", marker="o", fillstyle="none"),
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


def _draw_answer(upper: Axes, lower: Axes, answers: Answers) -> None:
    """The first sample as the network sees it, and in the order that it takes it to be in."""
    order, guess = answers.orders[0], answers.guesses[0]
    _draw_pieces(upper, answers, np.arange(len(order)), ["white"] * len(order))
    upper.set_title(f"held out, shuffled by ψ {answers.labels[0]}")
    lower.set_title("put back by the network")
    text: dict[str, Any] = {"fontsize": 8.5, "verticalalignment": "top", "transform": lower.transAxes}
    if not np.isfinite(answers.probabilities[0]).all():
        lower.set_axis_off()
        lower.text(0, 1, answers.verdict(0), **text)
        return
    back = np.argsort(guess)  # the piece that is guessed to be the first, the second, ...
    _draw_pieces(lower, answers, back, [_GOOD if right else _BAD for right in (order == guess)[back]])
    lower.text(0, -0.05, answers.verdict(0).replace("\n", ", "), **text)


def _draw_pieces(axis: Axes, answers: Answers, arrangement: np.ndarray, colours: Sequence[str]) -> None:
    """Lay out the pieces of the first sample, with frames in these colours; those of a clip bear their true places."""
    count = len(arrangement)
    stills = answers.originals.ndim == 4
    columns = round(count**0.5) if stills else (count + 1) // 2
    step = 1.06  # a piece's side is 1
    for place, (piece, colour) in enumerate(zip(arrangement, colours, strict=True)):
        row, column = divmod(place, columns)
        corner = step * column, -step * row
        _frame(axis, answers.pieces[0, piece], corner, colour)
        if not stills:
            tag = {"boxstyle": "square,pad=0.15", "facecolor": "black", "edgecolor": "none", "alpha": 0.6}
            number = str(answers.orders[0, piece] + 1)
            axis.text(corner[0] + 0.1, corner[1] + 0.13, number, fontsize=7, color="white", bbox=tag)
    lowest = -step * ((count - 1) // columns)
    axis.set(xlim=(-0.04, step * columns), ylim=(lowest - 0.04, 1.04), aspect="equal", anchor="NW")
    axis.set_axis_off()


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
