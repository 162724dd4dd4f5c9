"""The protocols of Tables 3 and 4 with the paper's sizes: CaffeNet, its layers, an iteration of each."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from permenv.data import StillImages, VideoClips
from permenv.networks import BACKBONES
from permenv.transfer.action_recognition import ActionOptions, ActionSplit, action_recognition
from permenv.transfer.classification import ClassificationOptions, LabelledImages, classification
from permenv.transfer.detection import DetectionImages, DetectionOptions, Objects, detection
from permenv.transfer.segmentation import SegmentationOptions, SegmentedImages, segmentation
from permenv.transfer.trunks import load_trunk

pytestmark = pytest.mark.ci
CLASSES = tuple(f"class {number}" for number in range(20))


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    trunk = BACKBONES["caffenet"]()
    for layer in trunk:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return trunk


@pytest.fixture(scope="module")
def photo():
    """An image of VOC's usual size."""
    return np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)


def briefly(options, **changes):
    return dataclasses.replace(options, **changes, schedule=dataclasses.replace(options.schedule, iterations=1))


def test_classification(trunk, photo):
    labels = np.where(np.arange(20) < 2, 1, -1)[None]
    data = LabelledImages([photo], labels)
    result = classification(trunk, data, data, CLASSES, briefly(ClassificationOptions(), batch=2, test_crops=2))
    network = result.network
    assert network.fc6.weight.shape == (4096, 9216)
    assert network.fc7.weight.shape == (4096, 4096)
    assert np.isfinite(result.losses).all()
    assert result.mean.all_point == 1.0  # of one image


def test_detection(trunk, photo):
    objects = Objects(np.array([[100.0, 100, 299, 299]]), np.array([3]), np.array([False]))
    data = DetectionImages([photo], [objects], [np.array([[90.0, 90, 310, 310], [0, 0, 220, 220], [0, 0, 499, 374]])])
    result = detection(trunk, data, data, CLASSES, briefly(DetectionOptions()))
    assert np.isfinite(result.losses).all()
    assert result.by_class.keys() == set(CLASSES)


def test_segmentation(trunk, photo):
    mask = np.zeros((375, 500), dtype=np.uint8)
    mask[100:200, 100:200] = 4
    data = SegmentedImages([photo], [mask])
    result = segmentation(trunk, data, data, ("background", *CLASSES), briefly(SegmentationOptions(), batch=1))
    assert result.losses[0] == pytest.approx(np.log(21), abs=1e-4)  # the score layer starts with zero
    assert result.counts.sum() == 375 * 500


def test_action_recognition():
    trunk = load_trunk("random")
    frames = np.random.default_rng(0).integers(0, 256, (4, 259, 259, 3), dtype=np.uint8)
    images = StillImages(frames, np.array([0, 0, 100, 100]), tuple(f"class {n}" for n in range(101)), "clips", "digest")
    clips = VideoClips(images, np.array([0, 2, 4]), ("a", "b"))
    split = ActionSplit(1, np.arange(2), np.arange(1))
    (result,) = action_recognition(trunk, clips, [split], briefly(ActionOptions(), batch=2)).splits
    assert result.losses[0] == pytest.approx(np.log(101), rel=0.2)  # the last layer starts near zero
    assert result.scores.shape == (1, 101)
