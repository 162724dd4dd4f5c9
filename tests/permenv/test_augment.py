"""Pieces are cut where their offsets say, shuffled as ψ says, and coloured and normalised as documented."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv.augment import (
    ColourJitter,
    centre_offsets,
    crop_frames,
    cut_tiles,
    jitter_parameters,
    normalise,
    random_offsets,
)


def in_true_order(batch: int, num_pieces: int) -> np.ndarray:
    return np.tile(np.arange(num_pieces), (batch, 1))


def images(batch: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), dtype=np.uint8))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6), st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_pieces_in_their_true_order_rebuild_the_region_they_were_cut_from(batch, grid, piece_size, slack):
    cell = piece_size + slack
    pictures = images(batch, grid * cell)
    offsets = random_offsets(np.random.default_rng(1), batch, grid**2, slack)
    pieces = cut_tiles(pictures, in_true_order(batch, grid**2), offsets, grid, piece_size)
    for b in range(batch):
        for position in range(grid**2):
            row, column = divmod(position, grid)
            top, left = row * cell + offsets[b, position, 0], column * cell + offsets[b, position, 1]
            region = pictures[b, top : top + piece_size, left : left + piece_size]
            assert torch.equal(pieces[b, position], region)


@given(st.integers(1, 3), st.integers(2, 4), st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_pieces_as_large_as_their_cells_rebuild_the_whole_image(batch, grid, cell):
    pictures = images(batch, grid * cell)
    pieces = cut_tiles(pictures, in_true_order(batch, grid**2), centre_offsets(batch, grid**2, 0), grid, cell)
    rows = pieces.view(batch, grid, grid, cell, cell, 3).permute(0, 1, 3, 2, 4, 5)
    assert torch.equal(rows.reshape(pictures.shape), pictures)


def test_position_k_holds_the_piece_that_the_permutation_names():
    pictures = images(2, 12)
    order = np.array([[3, 1, 0, 2], [2, 3, 1, 0]])
    straight = cut_tiles(pictures, in_true_order(2, 4), centre_offsets(2, 4, 2), 2, 4)
    shuffled = cut_tiles(pictures, order, centre_offsets(2, 4, 2), 2, 4)
    for b in range(2):
        for k in range(4):
            assert torch.equal(shuffled[b, k], straight[b, order[b, k]])


def test_validation_crops_are_centred():
    picture = images(1, 10)
    piece = cut_tiles(picture, in_true_order(1, 1), centre_offsets(1, 1, 4), 1, 6)
    assert torch.equal(piece[0, 0], picture[0, 2:8, 2:8])


def test_random_crops_reach_every_place_of_the_cell():
    offsets = random_offsets(np.random.default_rng(0), 200, 9, 3)
    assert sorted(set(offsets.ravel())) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("side", "offset", "message"),
    [(10, 0, "do not divide into 3 × 3"), (9, 2, "leave a cell of 3"), (9, -1, "leave a cell of 3")],
)
def test_crops_outside_their_cell_are_refused(side, offset, message):
    with pytest.raises(ValueError, match=message):
        cut_tiles(images(1, side), in_true_order(1, 9), np.full((1, 9, 2), offset), 3, 2)


def frames(batch: int, num_frames: int, side: int) -> torch.Tensor:
    return images(batch * num_frames, side).unflatten(0, (batch, num_frames))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 4))
@settings(deadline=None, max_examples=30)
def test_frames_are_cropped_where_their_offsets_say(batch, num_frames, piece_size, slack):
    clips = frames(batch, num_frames, piece_size + slack)
    offsets = random_offsets(np.random.default_rng(1), batch, num_frames, slack)
    pieces = crop_frames(clips, offsets, piece_size)
    assert pieces.shape == (batch, num_frames, piece_size, piece_size, 3)
    for b in range(batch):
        for k in range(num_frames):
            top, left = offsets[b, k]
            assert torch.equal(pieces[b, k], clips[b, k, top : top + piece_size, left : left + piece_size])


def test_frames_without_slack_are_left_as_they_are():
    clips = frames(2, 3, 5)
    assert torch.equal(crop_frames(clips, centre_offsets(2, 3, 0), 5), clips)


@pytest.mark.parametrize("offset", [-1, 3])
def test_crops_outside_their_frame_are_refused(offset):
    with pytest.raises(ValueError, match="leave a cell of 6 pixels with pieces of 4; offsets go from 0 to 2"):
        crop_frames(frames(1, 2, 6), np.full((1, 2, 2), offset), 4)


def slow_normalise(piece: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """One piece (h, w, 3), written out pixel by pixel."""
    rgb = piece.astype(np.float64) / 255
    if affine is not None:
        for y in range(rgb.shape[0]):
            for x in range(rgb.shape[1]):
                rgb[y, x] = np.clip(affine[:, :3] @ rgb[y, x] + affine[:, 3], 0, 1)
    for channel in range(3):
        values = rgb[:, :, channel]
        rgb[:, :, channel] = (values - values.mean()) / max(values.std(), 1 / 255)
    return rgb.transpose(2, 0, 1)


@pytest.mark.parametrize("coloured", [False, True])
def test_normalisation_equals_a_plain_reference(coloured):
    pieces = cut_tiles(images(2, 12), in_true_order(2, 4), centre_offsets(2, 4, 0), 2, 6)
    colours = jitter_parameters(np.random.default_rng(2), 2, 4, ColourJitter(0.5, 0.5)) if coloured else None
    result = normalise(pieces, colours)
    assert result.shape == (2, 4, 3, 6, 6)
    for b in range(2):
        for k in range(4):
            expected = slow_normalise(pieces[b, k].numpy(), None if colours is None else colours[b, k])
            np.testing.assert_allclose(result[b, k].numpy(), expected, atol=2e-5)


def test_a_flat_piece_stays_flat():
    flat = torch.full((1, 1, 4, 4, 3), 77, dtype=torch.uint8)
    assert normalise(flat).abs().max() < 1e-3


def slow_jitter(rgb: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """One pixel, changed as the names say, one after the other."""
    luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    coloured = luma + saturation * (rgb - luma)
    return brightness * (0.5 + contrast * (coloured - 0.5))


def test_brightness_contrast_and_saturation_change_what_their_names_say():
    affine = jitter_parameters(np.random.default_rng(0), 50, 3, ColourJitter(0.4, 0.3))
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.6, 1.4, (3, 50, 3))
    is_grey = rng.random(50) < 0.3
    assert is_grey.any()
    for sample, piece in np.ndindex(50, 3):
        brightness, contrast, saturation = factors[:, sample, piece]
        for rgb in np.random.default_rng(1).random((4, 3)):
            expected = slow_jitter(rgb, brightness, contrast, 0 if is_grey[sample] else saturation)
            found = affine[sample, piece, :, :3] @ rgb + affine[sample, piece, :, 3]
            np.testing.assert_allclose(found, expected, atol=1e-6)
    none = jitter_parameters(np.random.default_rng(0), 2, 3, ColourJitter(0.0, 0.0))
    np.testing.assert_allclose(none, np.broadcast_to(np.eye(3, 4), none.shape), atol=1e-7)


def test_all_pieces_of_a_sample_are_grey_or_none():
    colours = jitter_parameters(np.random.default_rng(0), 400, 4, ColourJitter(0.2, 0.3))
    pieces = images(400 * 4, 2).view(400, 4, 2, 2, 3)
    result = normalise(pieces, colours)
    is_grey = ((result - result.mean(2, keepdim=True)).abs().amax((2, 3, 4)) < 1e-4).numpy()  # [samples, pieces]
    assert (is_grey.all(1) == is_grey.any(1)).all()
    assert 0.22 < is_grey.all(1).mean() < 0.38


def test_the_seed_decides_the_augmentation():
    def draw(seed: int) -> np.ndarray:
        return jitter_parameters(np.random.default_rng(seed), 3, 9, ColourJitter(0.4, 0.3))

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
