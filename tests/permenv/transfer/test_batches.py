"""Parts of large sets, and batches of images of several sizes."""

import numpy as np
import pytest
import torch

from permenv.transfer.batches import chunks, padded


@pytest.mark.parametrize(("number", "lengths"), [(0, [0]), (1, [1]), (4, [4]), (5, [3, 2]), (12, [4, 4, 4])])
def test_parts_are_nearly_equal_and_have_every_row_in_order(number, lengths):
    rows = np.arange(2 * number).reshape(number, 2)
    parts = chunks(rows, 4)
    assert [len(part) for part in parts] == lengths
    np.testing.assert_array_equal(np.concatenate(parts), rows)


def test_smaller_images_are_padded_at_the_right_and_at_the_bottom():
    wide, high = torch.ones(3, 2, 4), 2 * torch.ones(3, 5, 1)
    batch = padded([wide, high], 7)
    assert batch.shape == (2, 3, 5, 4)
    assert torch.equal(batch[0, :, :2], wide)
    assert torch.equal(batch[1, :, :, :1], high)
    assert (batch[0, :, 2:] == 7).all()
    assert (batch[1, :, :, 1:] == 7).all()
