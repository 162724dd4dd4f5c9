"""What units and networks respond to, as pictures (figure 3, appendix I).

`neighbour_figure` is figure 3; `top_activations` and `activation_figure` are figures I.1 and I.2; `class_saliency` and
`saliency_figure` are figure I.3. Figures are plain matplotlib objects that need no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from permenv.data import StillImages
from permenv.networks import eval_mode
from permenv.progress import progress_bar
from permenv.transfer.crops import resized
from permenv.transfer.plain import FineTunedNetwork, network_input, receptive_field

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT: dict[str, Any] = {"color": "#0072b2", "linewidth": 2.5, "linestyle": "solid"}
_WRONG: dict[str, Any] = {"color": "#d55e00", "linewidth": 1.2, "linestyle": (0, (2, 2))}
"""Frames: they differ in colour, width and line style, and the right ones have a mark besides."""

_MARK = "✓"


@dataclass(frozen=True, eq=False)
class Activations:
    """Where units of a convolution respond most, in descending order.

    Attributes:
        units: (u,) int, channels of the convolution.
        values: (u, top) activations after the ReLU.
        images: (u, top) int, indices of the images.
        boxes: (u, top, 4) int receptive fields [xmin, ymin, xmax, ymax] in pixels of the images, cut at their borders.
    """

    units: np.ndarray
    values: np.ndarray
    images: np.ndarray
    boxes: np.ndarray


@torch.no_grad()
def top_activations(
    trunk: nn.Sequential,
    images: Sequence[np.ndarray],
    *,
    convolution: int = 5,
    units: Sequence[int] | None = None,
    top: int = 9,
    short_side: int | None = None,
    progress: bool = True,
) -> Activations:
    """Find the images, and the parts of them, that activate units most; each image counts once for a unit.

    Args:
        trunk: Plain trunk, see `plain_trunk`.
        images: (H, W, 3) uint8 RGB, of any sizes; they may be decoded when they are asked for.
        convolution: Its number from 1; conv5 by default.
        units: Channels; all by default.
        top: Images of each unit, at most their number.
        short_side: Images are resized to this short side first; None to leave them as they are.
        progress: Show a progress bar, see `permenv.progress`.

    Raises:
        ValueError: If there is no such convolution or unit, or no image.
    """
    layers = _up_to(trunk, convolution)
    channels = next(layer for layer in reversed(layers) if isinstance(layer, nn.Conv2d)).out_channels
    chosen = np.arange(channels) if units is None else np.asarray(units, dtype=np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < channels:
        raise ValueError(f"units {chosen.tolist()} of convolution {convolution}: it has units 0 to {channels - 1}")
    if not len(images):
        raise ValueError("no images: pass at least one")
    device = next(trunk.parameters()).device
    field = receptive_field(layers)
    values, positions, factors, sizes = [], [], [], []
    for image in progress_bar(images, label="activations", unit="image", show=progress):
        height, width = image.shape[:2]
        factor = 1.0 if short_side is None else short_side / min(height, width)
        pixels = image if short_side is None else resized(image, round(height * factor), round(width * factor))
        maps = layers(network_input(pixels[None], device))[0, torch.from_numpy(chosen).to(device)]
        highest, position = maps.flatten(1).max(1)
        values.append(highest.cpu().numpy())
        positions.append(np.stack(np.divmod(position.cpu().numpy(), maps.shape[2]), axis=1))  # [u, (row, column)]
        factors.append(factor)
        sizes.append((width, height))
    all_values = np.stack(values, axis=1)  # [u, N]
    best = np.argsort(-all_values, axis=1, kind="stable")[:, :top]
    centres = np.take_along_axis(np.stack(positions, axis=1), best[:, :, None], axis=1)[:, :, ::-1] * field.stride
    centres = centres + field.first  # [u, top, (x, y)] in pixels of the resized images
    reach = (field.size - 1) / 2
    corners = np.concatenate([centres - reach, centres + reach], axis=2) / np.array(factors)[best][:, :, None]
    limits = np.tile(np.array(sizes)[best] - 1, 2)
    boxes = np.clip(corners.round().astype(np.int64), 0, limits)
    return Activations(chosen, np.take_along_axis(all_values, best, axis=1), best, boxes)


def class_saliency(network: FineTunedNetwork, image: np.ndarray, label: int, side: int) -> np.ndarray:
    """How much each pixel of an image changes the score of a class (Simonyan et al. 2014, section 3).

    Args:
        network: Fine-tuned on classification, see `classification`.
        image: (H, W, 3) uint8 RGB; it is resized to the square that the network takes.
        label: Index of the class.
        side: Of that square in pixels.

    Returns:
        (side, side) float32: the absolute derivative of the score by the normalised input, of its channels the
        largest.
    """
    device = next(network.parameters()).device
    with torch.enable_grad(), eval_mode(network):
        pixels = network_input(resized(image, side, side)[None], device).requires_grad_()
        score = network(pixels)["score"][0, label]
        (gradient,) = torch.autograd.grad(score, pixels)
    return gradient[0].abs().amax(0).cpu().numpy()


def activation_figure(images: Sequence[np.ndarray], found: Activations, names: Sequence[str] | None = None) -> Figure:
    """Draw the receptive fields of the top activations: a row for each unit, by default named by its number."""
    rows, columns = found.images.shape
    figure, axes = _grid(rows, columns)
    for row in range(rows):
        for column in range(columns):
            left, top, right, bottom = found.boxes[row, column]
            image = images[found.images[row, column]]
            axes[row, column].imshow(image[top : bottom + 1, left : right + 1])
            axes[row, column].set_title(f"{found.values[row, column]:.2f}", fontsize=7)
        axes[row, 0].set_ylabel(f"unit {found.units[row]}" if names is None else names[row], fontsize=8)
    return figure


def saliency_figure(
    images: Sequence[np.ndarray], names: Sequence[str], maps: Mapping[str, Sequence[np.ndarray]]
) -> Figure:
    """Draw class saliency maps: a row for each image, a column for each network.

    Args:
        images: (H, W, 3) uint8 RGB.
        names: The class of each map's row.
        maps: By name of the network, a map of each image; each is drawn from 0 to its 99th percentile.
    """
    figure, axes = _grid(len(images), 1 + len(maps))
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(names[row])
        for column, each in enumerate(maps.values(), start=1):
            highest = max(float(np.percentile(each[row], 99)), 1e-12)
            axes[row, column].imshow(each[row], cmap="gray", vmin=0, vmax=highest)
    for column, title in enumerate(["image", *maps]):
        axes[0, column].set_title(title, fontsize=9)
    return figure


def neighbour_figure(
    queries: StillImages, rows: np.ndarray, database: StillImages, found: Mapping[str, np.ndarray]
) -> Figure:
    """Draw queries and their nearest neighbours, from left to right, by several networks below each other (figure 3).

    A neighbour of the query's class has a solid blue frame and a mark, another one a dashed orange frame.

    Args:
        queries: Labelled images.
        rows: (Q,) int, which of them are shown.
        database: Labelled images; classes are compared by name.
        found: By name of the network, (Q, k) rows of the database, such as of `permenv.transfer.nearest`. The k of
            all must be equal.

    Raises:
        ValueError: If images have no labels, or neighbours are not those of all queries.
    """
    from matplotlib.lines import Line2D

    if queries.labels is None or database.labels is None:
        raise ValueError("neighbours are right or wrong by their labels: pass labelled images")
    shapes = {name: each.shape for name, each in found.items()}
    k = next((shape[-1] for shape in shapes.values()), 0)
    if set(shapes.values()) != {(len(rows), k)}:
        raise ValueError(f"neighbours of {len(rows)} queries of shapes {shapes}: pass ({len(rows)}, k) of each network")
    figure, axes = _grid(len(rows) * len(found), 1 + k)
    for number, row in enumerate(rows):
        own = queries.classes[queries.labels[row]]
        for index, (name, its) in enumerate(found.items()):
            line = axes[number * len(found) + index]
            line[0].set_ylabel(name, fontsize=8)
            if index == 0:
                line[0].imshow(_pixels(queries, row))
                line[0].set_title(own, fontsize=8)
            for axis, neighbour in zip(line[1:], its[number], strict=True):
                right = database.classes[database.labels[neighbour]] == own
                axis.imshow(_pixels(database, neighbour))
                _frame(axis, right)
    for rank, axis in enumerate(axes[0, 1:], start=1):
        axis.set_title(f"Top{rank}", fontsize=8)
    styles = {f"same class {_MARK}": _RIGHT, "another class": _WRONG}
    lines = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(lines, list(styles), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _pixels(images: StillImages, row: int) -> np.ndarray:
    return images.take(np.array([row]), torch.device("cpu"))[0].numpy()


def _frame(axes: Axes, right: bool) -> None:
    """Show whether a neighbour is of the right class."""
    for spine in axes.spines.values():
        spine.set(visible=True, **(_RIGHT if right else _WRONG))
    if right:
        box: dict[str, Any] = {
            "boxstyle": "circle,pad=0.15",
            "facecolor": "white",
            "edgecolor": _RIGHT["color"],
            "linewidth": 0.8,
        }
        align: dict[str, Any] = {"horizontalalignment": "left", "verticalalignment": "top", "transform": axes.transAxes}
        axes.text(0.05, 0.95, _MARK, fontsize=7, color=_RIGHT["color"], bbox=box, **align)


def _grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure of rows × columns pictures without ticks; `Axes` in an array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * columns + 0.5, 1.5 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        _without_ticks(each)
    return figure, axes


def _without_ticks(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _up_to(trunk: nn.Sequential, convolution: int) -> nn.Sequential:
    """The layers up to a convolution and the ReLU after it."""
    layers = list(trunk)
    convolutions = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if not 1 <= convolution <= len(convolutions):
        raise ValueError(f"convolution {convolution}: the trunk has {len(convolutions)}")
    end = convolutions[convolution - 1] + 1
    if end < len(layers) and isinstance(layers[end], nn.ReLU):
        end += 1
    return nn.Sequential(*layers[:end])
