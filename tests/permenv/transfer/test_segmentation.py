"""FCN: interpolation, the crop, convolutions for fully connected layers, void pixels, learning."""

import dataclasses

import numpy as np
import pytest
import torch

from permenv.data.voc import VOID
from permenv.networks import BACKBONES
from permenv.transfer.finetuning import Schedule
from permenv.transfer.segmentation import (
    FullyConvolutional,
    SegmentationOptions,
    SegmentedImages,
    bilinear_kernel,
    pixel_loss,
    segmentation,
    upsampled,
)
from permenv.transfer.voc_metrics import confusion, mean_iou

CLASSES = ("background", "red", "green")
OPTIONS = SegmentationOptions(
    padding=16, kernel=(3, 3), batch=4, hidden=32, dropout=0.2, stride=None, schedule=Schedule(100, 0.05, 80)
)


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return BACKBONES["two-convolutions"]()


def scenes(number, seed):
    """A coloured rectangle with a void border; sizes differ."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(number):
        rows, columns = rng.integers(40, 64, 2)
        image, mask = rng.integers(0, 80, (rows, columns, 3), dtype=np.uint8), np.zeros((rows, columns), np.uint8)
        label, top, left = rng.integers(1, 3), rng.integers(rows - 30), rng.integers(columns - 30)
        mask[top : top + 30, left : left + 30] = VOID
        mask[top + 1 : top + 29, left + 1 : left + 29] = label
        image[top : top + 30, left : left + 30, label - 1] = 250
        images.append(image)
        masks.append(mask)
    return SegmentedImages(images, masks)


# Interpolation


def slow_upsampling(scores, stride):
    """Each unit adds its tent, pixel by pixel."""
    number, channels, rows, columns = scores.shape
    result = torch.zeros(number, channels, (rows + 1) * stride - 1, (columns + 1) * stride - 1)
    for i in range(rows):
        for j in range(columns):
            for down in range(-stride + 1, stride):
                for right in range(-stride + 1, stride):
                    weight = (1 - abs(down) / stride) * (1 - abs(right) / stride)
                    place = stride - 1 + i * stride + down, stride - 1 + j * stride + right
                    result[:, :, place[0], place[1]] += weight * scores[:, :, i, j]
    return result


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_interpolation_agrees_with_the_slow_version(stride):
    scores = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(upsampled(scores, bilinear_kernel(stride), stride), slow_upsampling(scores, stride))


def test_between_units_it_is_linear():
    ramp = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    inner = upsampled(ramp, bilinear_kernel(4), 4)[0, 0, 5, 3:20]
    torch.testing.assert_close(inner, torch.arange(17.0) / 4)


def test_the_gradient_is_that_of_finite_differences():
    scores = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: upsampled(each, bilinear_kernel(3).double(), 3), scores)


# The network


def test_the_crop_of_caffenet_is_the_published_one():
    """Offset 18, stride 32 and a kernel of 63: the released FCN-32s on AlexNet."""
    options = dataclasses.replace(SegmentationOptions(), hidden=4)
    network = FullyConvolutional(BACKBONES["caffenet"](), 21, options)
    assert network.offset == (18, 18)
    assert network.stride == 32
    assert network.bilinear.shape == (63,)
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 281, 500)).shape == (1, 21, 281, 500)


@pytest.mark.parametrize("backbone", ["caffenet", "quarter-caffenet"])
def test_the_scores_cover_images_of_every_size(backbone):
    options = SegmentationOptions() if backbone == "caffenet" else SegmentationOptions.small()
    network = FullyConvolutional(BACKBONES[backbone](), 2, dataclasses.replace(options, hidden=2)).eval()
    with torch.no_grad():
        for columns in range(100, 100 + network.stride):
            assert network(torch.zeros(1, 3, 40, columns)).shape[2:] == (40, columns)


def test_fc6_and_fc7_as_convolutions_compute_what_they_compute_fully_connected(trunk):
    network = FullyConvolutional(trunk, 3, OPTIONS).eval()
    inner = network.network
    with torch.no_grad():
        inner.outputs["score"].weight.normal_(generator=torch.Generator().manual_seed(0))
        images = torch.randn(1, 3, 30, 30, generator=torch.Generator().manual_seed(1))
        features = inner.trunk(images)
        scores = network(images)
        (top, left), stride = network.offset, network.stride
        for row, column in ((1, 1), (2, 3)):
            window = features[:, :, row : row + 3, column : column + 3]
            expected = inner.outputs["score"](inner.hidden(window))[0]
            # a unit's own pixel has its own score
            found = scores[0, :, stride - 1 + row * stride - top, stride - 1 + column * stride - left]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_too_little_padding_is_refused(trunk):
    with pytest.raises(ValueError, match="padding 2 of conv1 is too small; add at least"):
        FullyConvolutional(trunk, 3, dataclasses.replace(OPTIONS, padding=2))


def test_images_without_masks_are_refused():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(
        ValueError, match="1 images with masks of 0: give at least one image, and a mask for every image"
    ):
        SegmentedImages([image], [])


# Training


def test_void_pixels_do_not_count():
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[[0, VOID], [2, VOID]]], dtype=torch.uint8)
    log = scores[0].double().log_softmax(0)
    expected = -(log[0, 0, 0] + log[2, 1, 0]) / 2
    assert pixel_loss(scores, masks, 3).item() == pytest.approx(expected.item(), abs=1e-6)
    assert pixel_loss(scores, torch.full_like(masks, VOID), 3).item() == 0
    with pytest.raises(ValueError, match="label 2; expected 0 to 1, or 255"):
        pixel_loss(scores[:, :2], masks, 2)


def test_rectangles_are_segmented_and_a_seed_decides_the_result(trunk):
    state = torch.get_rng_state()
    train, test = scenes(16, 0), scenes(10, 1)
    result = segmentation(trunk, train, test, CLASSES, OPTIONS, seed=1, progress=False)
    assert result.mean > 0.6
    assert result.by_class.keys() == set(CLASSES)
    assert result.counts.sum() == sum((mask != VOID).sum() for mask in test.masks)
    options = dataclasses.replace(OPTIONS, schedule=dataclasses.replace(OPTIONS.schedule, iterations=4))
    first, second = (segmentation(trunk, train, test, CLASSES, options, seed=1, progress=False) for _ in range(2))
    assert (first.losses == second.losses).all()
    assert (first.losses == result.losses[:4]).all()
    assert (first.counts == second.counts).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_predictions_have_the_size_of_the_image(trunk):
    network = FullyConvolutional(trunk, 3, OPTIONS).eval()
    data = scenes(1, 0)
    predicted = network.predict(data.images[0])
    assert predicted.shape == data.masks[0].shape
    assert (predicted == 0).all(), "scores start with zero, and of equal ones the first is taken"
    mask = data.masks[0]
    share = (mask == 0).sum() / (mask != VOID).sum()
    assert mean_iou(confusion(predicted, mask, 3)) == pytest.approx(share / 2), "of the two classes that are there"
