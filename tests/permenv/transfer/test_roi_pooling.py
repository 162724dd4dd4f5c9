"""RoI max pooling against the rule written slowly, and its gradients."""

import math

import pytest
import torch

from permenv.transfer.roi_pooling import roi_max_pool


def slow_roi_max_pool(maps, regions, images, output):
    """Bin by bin and unit by unit, as the layer of Fast R-CNN is written."""
    rows, columns = maps.shape[2:]
    pooled = torch.zeros(len(regions), maps.shape[1], *output, dtype=maps.dtype)
    for r, (left, top, right, bottom) in enumerate(regions.tolist()):
        height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for i in range(output[0]):
            for j in range(output[1]):
                first_row = min(max(top + math.floor(i * height / output[0]), 0), rows)
                last_row = min(max(top + math.ceil((i + 1) * height / output[0]), 0), rows)
                first_column = min(max(left + math.floor(j * width / output[1]), 0), columns)
                last_column = min(max(left + math.ceil((j + 1) * width / output[1]), 0), columns)
                for channel in range(maps.shape[1]):
                    units = maps[images[r], channel, first_row:last_row, first_column:last_column]
                    if units.numel():
                        pooled[r, channel, i, j] = units.max()
    return pooled


def random_regions(number, rows, columns, seed, beyond=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return torch.randint(low, high, (number,), generator=generator)

    left, top = draw(-beyond, columns), draw(-beyond, rows)
    width, height = draw(0, columns), draw(0, rows)
    right, bottom = left + width, top + height
    if not beyond:
        right, bottom = right.clamp_max(columns - 1), bottom.clamp_max(rows - 1)
    return torch.stack([left, top, right, bottom], 1)


@pytest.mark.parametrize("output", [(6, 6), (1, 1), (3, 2)])
@pytest.mark.parametrize("size", [(13, 21), (4, 3), (1, 1)])
@pytest.mark.parametrize("beyond", [0, 5])
def test_it_agrees_with_the_slow_version(size, output, beyond):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, *size, generator=generator)
    regions = random_regions(30, *size, seed=1, beyond=beyond)
    images = torch.randint(0, 3, (30,), generator=generator)
    expected = slow_roi_max_pool(maps, regions, images, output)
    torch.testing.assert_close(roi_max_pool(maps, regions, images, output), expected, rtol=0, atol=0)


def test_a_region_inside_the_map_is_pooled_as_adaptive_pooling_does():
    maps = torch.randn(1, 4, 20, 30, generator=torch.Generator().manual_seed(0))
    pooled = roi_max_pool(maps, torch.tensor([[3, 5, 21, 17]]), torch.tensor([0]), (6, 6))
    expected = torch.nn.functional.adaptive_max_pool2d(maps[:, :, 5:18, 3:22], (6, 6))
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)


def test_a_region_that_ends_before_it_begins_has_one_unit():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    pooled = roi_max_pool(maps, torch.tensor([[2, 1, 0, 0]]), torch.tensor([0]), (2, 2))
    assert (pooled == 6).all()


def test_no_regions_give_no_features():
    pooled = roi_max_pool(torch.zeros(1, 3, 5, 5), torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0).long(), (6, 6))
    assert pooled.shape == (0, 3, 6, 6)


def test_gradients_are_those_of_finite_differences():
    maps = torch.randperm(2 * 2 * 7 * 9, generator=torch.Generator().manual_seed(0)).double().reshape(2, 2, 7, 9)
    maps.requires_grad_()  # no two units are equal
    regions, images = random_regions(6, 7, 9, seed=2, beyond=2), torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda each: roi_max_pool(each, regions, images, (3, 3)), maps)


def test_equal_units_share_a_gradient_of_one():
    maps = torch.zeros(1, 1, 5, 5, requires_grad=True)
    roi_max_pool(maps, torch.tensor([[0, 0, 4, 4]]), torch.tensor([0]), (1, 1)).sum().backward()
    assert maps.grad.sum().item() == pytest.approx(1)
