"""Max pooling of regions of interest (Girshick 2015, section 2.1), from plain tensor operations.

The maximum of a bin, which is a rectangle of units, is looked up instead of searched. For each height and each width
that is a power of two there is a table with the maximum of the rectangle of that size at each unit. Any rectangle is
covered by four of them, at its corners, that may overlap. So all bins of all regions cost four look-ups each, without
a loop over regions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_max_pool(maps: Tensor, regions: Tensor, images: Tensor, output: tuple[int, int]) -> Tensor:
    """Pool regions of feature maps to one size.

    A region of h × w units is cut into bins: the units of bin i of n begin with floor(i · h / n) and end before
    ceil((i + 1) · h / n), so that bins of small regions overlap. The gradient of a bin flows to its
    largest unit, or is shared among them if there are several.

    Args:
        maps: (N, c, H, W).
        regions: (R, 4) int64 [first column, first row, last column, last row] in units. They may reach beyond the
            map; units beyond it do not count, and a bin without a unit is 0. A region that ends before it begins has
            one unit.
        images: (R,) int64, the map of each region.
        output: Rows and columns of bins.

    Returns:
        (R, c, *output).
    """
    rows, columns = maps.shape[2:]
    left, top, right, bottom = regions.unbind(1)
    row, row_end = _bins(top, bottom, output[0], rows)  # [R, output rows]
    column, column_end = _bins(left, right, output[1], columns)
    heights, widths = row_end - row, column_end - column
    filled = (heights > 0)[:, :, None] & (widths > 0)[:, None, :]
    row_level, column_level = _power(heights), _power(widths)
    tables = _tables(maps, int(row_level.max()) if len(regions) else 0, int(column_level.max()) if len(regions) else 0)
    flat = tables.flatten(0, 4)  # [row levels · column levels · N · H · W, c]
    table = row_level[:, :, None] * tables.shape[1] + column_level[:, None, :]
    base = (table * len(maps) + images[:, None, None]) * rows
    corners = []
    for from_row in (row, row_end - (1 << row_level)):
        for from_column in (column, column_end - (1 << column_level)):
            index = (base + from_row.clamp(0, rows - 1)[:, :, None]) * columns
            index = index + from_column.clamp(0, columns - 1)[:, None, :]
            corners.append(flat[index])  # [R, output rows, output columns, c]
    pooled = torch.stack(corners).amax(0)
    return pooled.where(filled[..., None], pooled.new_zeros(())).permute(0, 3, 1, 2)


def _bins(first: Tensor, last: Tensor, number: int, units: int) -> tuple[Tensor, Tensor]:
    """First unit of each bin and the one after its last (R, number), inside the map."""
    length = (last - first + 1).clamp_min(1)[:, None]
    bins = torch.arange(number, device=first.device)
    start = first[:, None] + bins * length // number
    end = first[:, None] - (-(bins + 1) * length // number)  # rounded up
    return start.clamp(0, units), end.clamp(0, units)


def _power(lengths: Tensor) -> Tensor:
    """Exponent of the largest power of two that is not longer; 0 for empty bins."""
    level = torch.zeros_like(lengths)
    power = 2
    while len(lengths) and power <= int(lengths.max()):
        level += lengths >= power
        power *= 2
    return level


def _tables(maps: Tensor, row_levels: int, column_levels: int) -> Tensor:
    """Maxima of rectangles of 2^i × 2^j units that begin at each unit: (i, j, N, H, W, c)."""
    by_row = [maps.permute(0, 2, 3, 1)]
    for level in range(row_levels):
        by_row.append(_longer(by_row[-1], 1, 1 << level))
    tables = []
    for table in by_row:
        by_column = [table]
        for level in range(column_levels):
            by_column.append(_longer(by_column[-1], 2, 1 << level))
        tables.append(torch.stack(by_column))
    return torch.stack(tables)


def _longer(table: Tensor, dim: int, step: int) -> Tensor:
    """Maxima of rectangles that are twice as long; where they would leave the map, of what is inside."""
    length = table.shape[dim]
    if step >= length:
        return table
    inside = torch.maximum(table.narrow(dim, 0, length - step), table.narrow(dim, step, length - step))
    return torch.cat([inside, table.narrow(dim, length - step, step)], dim)
