"""From images to shuffled, augmented, normalised pieces: batched, on the images' device (appendix B).

"As augmentation, we randomly crop each tile/frame, apply a random color jittering to each of them and normalize the
tiles/frames separately." All random numbers are drawn on the CPU from the caller's generator, so that a seed gives the
same pieces on every device. Shuffling is free: position k of a sample is cut from the cell, or the frame, that ψ names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma of red, green, blue
_SMALLEST_DEVIATION = 1 / 255  # a constant piece stays constant: its rounding noise is not amplified


@dataclass(frozen=True)
class ColourJitter:
    """How strongly colours are changed.

    `normalise` gives each channel of a piece mean 0 and deviation 1 (appendix B: "normalize the tiles/frames
    separately"). That undoes brightness and contrast, except where values are clipped; saturation stays.

    Attributes:
        strength: Brightness, contrast and saturation of every piece are each multiplied by their own factor, uniform
            in [1 - strength, 1 + strength]; 0 to 1.
        grey_probability: Chance that all pieces of a sample are grey; 0 to 1.
    """

    strength: float
    grey_probability: float


def random_offsets(rng: np.random.Generator, batch: int, num_pieces: int, slack: int) -> np.ndarray:
    """Where each piece is cropped inside its cell.

    Args:
        rng: Source of the draws.
        batch: B, number of samples.
        num_pieces: n, pieces a sample.
        slack: Pixels by which a cell is larger than a piece, at least 0.

    Returns:
        (B, n, 2) int64, each row and column offset in [0, slack].
    """
    return rng.integers(0, slack + 1, size=(batch, num_pieces, 2))


def centre_offsets(batch: int, num_pieces: int, slack: int) -> np.ndarray:
    """The crops of validation: the middle of every cell; (batch, num_pieces, 2) int64."""
    return np.full((batch, num_pieces, 2), slack // 2)


def cut_tiles(images: torch.Tensor, order: np.ndarray, offsets: np.ndarray, grid: int, piece_size: int) -> torch.Tensor:
    """Cut images into grid × grid cells, order them, crop one piece from each.

    Args:
        images: (B, S, S, 3) uint8, S a multiple of `grid`.
        order: (B, n) int, n = grid²; position k receives the cell order[b, k] (Eq. 1). Cells are counted row by row.
        offsets: (B, n, 2) int, row and column of the crop inside the cell, by *position*; 0 to S / grid - piece_size.
        grid: m, cells a side.
        piece_size: h = w of a piece in pixels, at most S / grid.

    Returns:
        (B, n, piece_size, piece_size, 3) uint8 on the images' device.

    Raises:
        ValueError: If the side does not divide into cells or a crop would leave its cell.
    """
    side = images.shape[1]
    cell = side // grid
    if side % grid:
        raise ValueError(f"images of side {side} do not divide into {grid} × {grid} cells; use a multiple of {grid}")
    _check_offsets(offsets, cell, piece_size)
    corners = np.stack(np.divmod(order, grid), axis=-1) * cell + offsets  # [B, n, (row, column)]
    samples = np.arange(len(images)).repeat(order.shape[1]).reshape(order.shape)
    return _crop(images, samples, corners, piece_size)


def crop_frames(frames: torch.Tensor, offsets: np.ndarray, piece_size: int) -> torch.Tensor:
    """Crop one piece from every frame.

    Args:
        frames: (B, n, S, S, 3) uint8, already in the order that is wanted.
        offsets: (B, n, 2) int, row and column of the crop; 0 to S - piece_size.
        piece_size: h = w of a piece in pixels, at most S.

    Returns:
        (B, n, piece_size, piece_size, 3) uint8 on the frames' device.

    Raises:
        ValueError: If a crop would leave its frame.
    """
    batch, num_pieces, side = frames.shape[:3]
    _check_offsets(offsets, side, piece_size)
    return _crop(frames.flatten(0, 1), np.arange(batch * num_pieces).reshape(batch, num_pieces), offsets, piece_size)


def _check_offsets(offsets: np.ndarray, cell: int, piece_size: int) -> None:
    if offsets.min() < 0 or offsets.max() > cell - piece_size:
        raise ValueError(
            f"crop offsets {offsets.min()} to {offsets.max()} leave a cell of {cell} pixels with pieces of "
            f"{piece_size}; offsets go from 0 to {cell - piece_size}"
        )


def _crop(images: torch.Tensor, which: np.ndarray, corners: np.ndarray, piece_size: int) -> torch.Tensor:
    """Crop pieces (B, n, h, w, 3) from images (N, S, S, 3): of image `which` (B, n) at `corners` (B, n, 2)."""
    places = np.stack([which, corners[:, :, 0], corners[:, :, 1]])
    image, row, column = torch.from_numpy(places).to(images.device, non_blocking=True)  # one transfer
    windows = images.unfold(1, piece_size, 1).unfold(2, piece_size, 1)  # a view, [N, row, column, 3, h, w]
    return windows[image, row, column].permute(0, 1, 3, 4, 2)


def jitter_parameters(rng: np.random.Generator, batch: int, num_pieces: int, jitter: ColourJitter) -> np.ndarray:
    """Draw the colour change of every piece.

    Args:
        rng: Source of the draws.
        batch: B, number of samples.
        num_pieces: n, pieces a sample.
        jitter: How strongly.

    Returns:
        (B, n, 3, 4) float32: the affine map [A | b] that takes a piece's RGB in [0, 1] to A·rgb + b.
    """
    factors = rng.uniform(1 - jitter.strength, 1 + jitter.strength, size=(3, batch, num_pieces))
    brightness, contrast, saturation = factors
    grey = rng.random(batch) < jitter.grey_probability
    saturation = np.where(grey[:, None], 0.0, saturation)[:, :, None, None]  # grey means no saturation
    colours = saturation * np.eye(3) + (1 - saturation) * np.array(_GREY)  # [B, n, 3, 3]
    scale = (brightness * contrast)[:, :, None, None]
    shift = (brightness * (1 - contrast) * 0.5)[:, :, None, None]  # contrast turns about mid grey
    affine = np.concatenate([scale * colours, np.broadcast_to(shift, (*shift.shape[:2], 3, 1))], axis=3)
    return affine.astype(np.float32)


def normalise(pieces: torch.Tensor, colours: np.ndarray | None = None) -> torch.Tensor:
    """Jitter the colours of each piece, then give each of its channels mean 0 and deviation 1.

    Args:
        pieces: (B, n, h, w, 3) uint8.
        colours: (B, n, 3, 4) float32 from `jitter_parameters`, or None to leave colours alone.

    Returns:
        (B, n, 3, h, w) float32.
    """
    batch, num_pieces, height, width, _ = pieces.shape
    # one contiguous row per channel: three times as fast as working on RGB triples
    channels = pieces.permute(0, 1, 4, 2, 3).reshape(batch * num_pieces, 3, height * width).to(torch.float32)
    if colours is None:
        channels.div_(255)
    else:
        affine = torch.from_numpy(colours).to(channels.device, non_blocking=True).flatten(0, 1)  # [B·n, 3, 4]
        channels = torch.baddbmm(affine[:, :, 3:], affine[:, :, :3] / 255, channels).clamp_(0, 1)
    channels.sub_(channels.mean(dim=2, keepdim=True))
    # torch.var_mean would take seven times as long
    deviation = torch.linalg.vector_norm(channels, dim=2, keepdim=True).div_(math.sqrt(height * width))
    channels.div_(deviation.clamp_min_(_SMALLEST_DEVIATION))
    return channels.view(batch, num_pieces, 3, height, width)
