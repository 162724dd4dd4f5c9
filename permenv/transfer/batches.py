"""How many images are computed at once: large sets in parts, images of several sizes as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 64
"""Images in the trunk at once."""


def chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Divide an array along its first axis into nearly equal parts of at most `size`; an empty one is one part."""
    return np.array_split(rows, max(1, -(-len(rows) // size)))


def padded(images: Sequence[Tensor], value: float) -> Tensor:
    """One batch of images (..., h, w) of several sizes; smaller ones are padded at the right and at the bottom."""
    rows, columns = (max(each.shape[dim] for each in images) for dim in (-2, -1))
    return torch.stack(
        [
            nn.functional.pad(each, (0, columns - each.shape[-1], 0, rows - each.shape[-2]), value=value)
            for each in images
        ]
    )
