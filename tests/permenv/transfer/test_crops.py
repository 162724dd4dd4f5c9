"""Crops: sides, places and mirroring are those of the code of Wang et al."""

import numpy as np
import pytest

from permenv.transfer.crops import SCALES, evaluated_crops, training_crop


def test_a_training_crop_is_one_that_wang_et_al_list():
    """All crops of a frame whose pixels are numbered: sides, places and mirroring are those of their code."""
    side = 256
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    frame = np.stack([rows, columns, rows], axis=2)
    sides = [256, 224, 192, 169]
    expected = set()
    for first, height in enumerate(sides):
        for second, width in enumerate(sides):
            if abs(first - second) <= 1:
                down, right = (side - height) // 4, (side - width) // 4
                places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
                places += [(1, 1), (3, 1), (1, 3), (3, 3)]
                expected |= {(height, width, down * y, right * x) for y, x in places}
    found, mirrored, rng = set(), 0, np.random.default_rng(0)

    def uncropped(image, wanted_rows, wanted_columns):
        found.add((*image.shape[:2], int(image[0, 0, 0]), int(image[0, 0, 1])))
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("permenv.transfer.crops.resized", uncropped)
        for _ in range(3000):
            crop = training_crop(frame, 224, SCALES, rng)
            mirrored += crop[0, 0, 1] > crop[0, -1, 1]
    assert found == expected
    assert 1350 < mirrored < 1650


def test_crops_have_the_size_of_the_input():
    frame = np.full((80, 80, 3), 9, dtype=np.uint8)
    crop = training_crop(frame, 54, SCALES, np.random.default_rng(0))
    assert crop.shape == (54, 54, 3)
    assert (crop == 9).all()
    assert evaluated_crops(frame, 54, 0.875, ten=False).shape == (1, 54, 54, 3)
    assert evaluated_crops(frame, 54, 0.875, ten=True).shape == (10, 54, 54, 3)


def test_the_corners_the_centre_and_their_mirrors_are_evaluated():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    slices = [(slice(0, 56), slice(0, 56)), (slice(0, 56), slice(8, 64)), (slice(8, 64), slice(0, 56))]
    slices += [(slice(8, 64), slice(8, 64)), (slice(4, 60), slice(4, 60))]
    expected = [frame[rows, columns] for rows, columns in slices]
    crops = evaluated_crops(frame, 56, 0.875, ten=True)
    np.testing.assert_array_equal(crops, expected + [each[:, ::-1] for each in expected])
    np.testing.assert_array_equal(evaluated_crops(frame, 56, 0.875, ten=False), expected[-1:])
