"""From the devkit to the protocols: labels, boxes, masks, files that break; the protocols on real photos."""

import dataclasses
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from permenv import DataError
from permenv.data.voc import VOC_CLASSES, VocImage, VocObject, voc_images
from permenv.networks import BACKBONES
from permenv.transfer.classification import ClassificationOptions, classification
from permenv.transfer.detection import DetectionOptions, detection
from permenv.transfer.retrieval import TABLE_1, retrieval
from permenv.transfer.segmentation import SegmentationOptions, segmentation
from permenv.transfer.voc_metrics import classification_precision, confusion, mean_average_precision, mean_iou
from permenv.transfer.voc_sets import detection_images, labelled_images, object_crops, segmented_images

CAT, DOG = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")


@pytest.fixture
def records(tmp_path):
    """Three images with objects and masks; the third is damaged."""
    made = []
    for number, flags in enumerate([("cat", False), ("cat", True), ("dog", False)]):
        image, mask = tmp_path / f"{number}.jpg", tmp_path / f"{number}.png"
        Image.new("RGB", (60, 40), (50 * number, 0, 0)).save(image)
        Image.fromarray(np.full((40, 60), VOC_CLASSES.index(flags[0]) + 1, dtype=np.uint8)).save(mask)
        objects = (VocObject(flags[0], (10.0, 5.0, 30.0, 25.0), flags[1]),)
        made.append(VocImage(str(number), image, 60, 40, objects, mask))
    made[2].path.write_bytes(made[2].path.read_bytes()[:200])
    return made


def test_labels_are_those_of_the_devkit(records, caplog):
    with caplog.at_level(logging.WARNING):
        data = labelled_images(records, progress=False)
    assert "1 of 3 images skipped: 2 (" in caplog.text
    assert data.labels[:, CAT].tolist() == [1, 0]  # the second has a difficult one only
    assert data.labels[:, DOG].tolist() == [-1, -1]
    assert data.images[0].shape == (40, 60, 3)
    assert len(data.images[1:]) == 1


def test_boxes_contain_their_last_pixels(records):
    data = detection_images(records[:2], {"0": np.array([[0, 0, 9, 9]]), "1": np.empty((0, 4))}, progress=False)
    assert data.objects[0].boxes.tolist() == [[10, 5, 29, 24]]
    assert data.objects[0].labels.tolist() == [CAT]
    assert [each.difficult.tolist() for each in data.objects] == [[False], [True]]
    assert data.proposals[0].tolist() == [[0, 0, 9, 9]]
    assert len(detection_images(records[:2], windows=20, progress=False).proposals[1]) == 20


def test_an_image_without_proposals_is_named(records):
    with pytest.raises(DataError, match="no proposals for 1 of 2 images, such as 1"):
        detection_images(records[:2], {"0": np.array([[0, 0, 9, 9]])}, progress=False)


@pytest.fixture
def halves(tmp_path):
    """An image whose left half is red and whose right half is green, with boxes of 20 × 10, 20 × 20 and 5 × 5."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30, 0], image[:, 30:, 1] = 200, 200
    Image.fromarray(image).save(tmp_path / "halves.jpg", quality=100, subsampling=0)
    boxes = [("cat", (10, 5, 30, 15)), ("dog", (30, 5, 50.5, 25)), ("cow", (0, 0, 5, 5)), ("sheep", (0, 0, 60, 40))]
    objects = [VocObject(name, box, name == "sheep") for name, box in boxes]
    return VocImage("halves", tmp_path / "halves.jpg", 60, 40, tuple(objects))


def test_objects_are_cut_out_and_resized_to_squares(halves, records):
    crops = object_crops([halves, records[0]], 16, smallest=200, progress=False)
    assert crops.pixels.shape == (3, 16, 16, 3)
    assert [crops.classes[label] for label in crops.labels] == ["cat", "dog", "cat"]  # neither difficult nor small
    colours = crops.pixels.float().mean((1, 2)).tolist()
    assert colours[0] == pytest.approx([200, 0, 0], abs=3)
    assert colours[1] == pytest.approx([0, 200, 0], abs=3)
    assert crops.fingerprint == object_crops([halves, records[0]], 16, smallest=200, progress=False).fingerprint
    assert crops.fingerprint != object_crops([halves, records[0]], 16, smallest=201, progress=False).fingerprint


def test_a_crop_holds_the_pixels_of_its_box(halves):
    whole = np.asarray(Image.open(halves.path)).astype(int)
    halves = dataclasses.replace(halves, objects=(VocObject("cat", (20.0, 5.0, 40.0, 25.0), False),))
    crop = object_crops([halves], 20, smallest=400, progress=False).pixels[0].numpy()
    assert np.abs(crop - whole[5:25, 20:40]).max() < 5  # decoders differ a little


def test_images_that_break_and_boxes_that_are_small_are_named(records, caplog):
    with caplog.at_level(logging.WARNING):
        crops = object_crops(records, 8, smallest=400, progress=False)
    assert crops.labels.tolist() == [CAT]
    assert "1 of 3 images skipped: 2 (" in caplog.text
    assert crops.skipped[0][0] == "2"
    with pytest.raises(DataError, match="3 images have no object of at least 10000 pixels"):
        object_crops(records, 8, progress=False)


def test_masks_are_read_with_their_images(records):
    data = segmented_images(records, progress=False)
    assert len(data.images) == len(data.masks) == 2
    assert (data.masks[0] == CAT + 1).all()


def test_files_that_cannot_be_used_at_all_or_any_more_are_named(records):
    damaged = re.escape(str(records[2].path))
    with pytest.raises(DataError, match=rf"none of 1 images can be used: {damaged} \(.+\); correct the folder"):
        labelled_images(records[2:], progress=False)
    data = segmented_images(records[:2], progress=False)
    records[0].path.unlink()
    records[1].mask.unlink()
    with pytest.raises(DataError, match=r"0\.jpg cannot be read any more: there is no such file; restore it"):
        data.images[0]
    with pytest.raises(DataError, match=r"1\.png cannot be read any more: damaged mask: there is no such file"):
        data.masks[1]
    with pytest.raises(DataError, match=r"none of 1 images can be used: .*1\.png \(damaged mask"):
        segmented_images(records[1:2], progress=False)


# Real photos


@pytest.fixture(scope="module")
def devkit(real_data):
    return real_data / "davis_voc"


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return BACKBONES["quarter-caffenet"]()


@pytest.mark.ci
def test_labels_agree_with_the_lists_of_the_devkit(devkit):
    records = voc_images(devkit, "test")
    labels = labelled_images(records, progress=False).labels
    for column, name in enumerate(VOC_CLASSES):
        lines = (devkit / f"VOCdevkit/VOC2007/ImageSets/Main/{name}_test.txt").read_text().splitlines()
        assert labels[:, column].tolist() == [int(line.split()[1]) for line in lines]


@pytest.mark.ci
def test_objects_are_retrieved(devkit, trunk):
    """170 and 242 objects, of which these have 10,000 pixels; none is difficult."""
    queries, database = (object_crops(voc_images(devkit, part), 108, progress=False) for part in ("test", "trainval"))
    assert (len(queries), len(database)) == (78, 177)
    found = retrieval(trunk, queries, database, top=TABLE_1)
    assert 0.3 < found[1] <= found[5] <= found[10] <= found[20] <= found[50] <= 1


def briefly(options, iterations):
    return dataclasses.replace(options, schedule=dataclasses.replace(options.schedule, iterations=iterations))


@pytest.mark.ci
def test_every_protocol_runs_on_real_photos(devkit, trunk):
    """After a few iterations the figures are still about those of one answer to everything."""
    train, test = (voc_images(devkit, part)[::24] for part in ("trainval", "test"))
    sets = [labelled_images(each, progress=False) for each in (train, test)]
    guess = mean_average_precision(
        {
            name: classification_precision(np.zeros(len(test)), sets[1].labels[:, column])
            for column, name in enumerate(VOC_CLASSES)
        }
    ).all_point
    options = briefly(ClassificationOptions.small(), 20)
    result = classification(trunk, *sets, VOC_CLASSES, options, progress=False)
    assert result.mean.all_point == pytest.approx(guess, abs=0.15)
    found = [detection_images(each, windows=100, progress=False) for each in (train, test)]
    result = detection(trunk, *found, VOC_CLASSES, briefly(DetectionOptions.small(), 5), progress=False)
    assert 0 < result.mean.all_point < 0.1
    masks = [
        segmented_images(voc_images(devkit, part, "Segmentation")[::40], progress=False)
        for part in ("trainval", "test")
    ]
    counts = sum(confusion(np.zeros_like(mask), mask, 21) for mask in masks[1].masks)
    options = briefly(SegmentationOptions.small(), 3)
    result = segmentation(trunk, *masks, ("background", *VOC_CLASSES), options, progress=False)
    assert result.mean == pytest.approx(mean_iou(counts), abs=0.02), "all is background"
