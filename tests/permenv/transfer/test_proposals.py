"""Proposals: the published files, and the windows that stand in for them."""

import numpy as np
import pytest

from permenv import DataError
from permenv.transfer.proposals import edge_windows, selective_search
from permenv.transfer.voc_metrics import intersection_over_union


def cells(*values):
    """A MATLAB cell array."""
    array = np.empty((1, len(values)), dtype=object)
    for place, value in enumerate(values):
        array[0, place] = value
    return array


@pytest.fixture
def released(tmp_path):
    """Return a function that writes a file as it was released."""
    from scipy.io import savemat

    def write(boxes, images):
        path = tmp_path / "voc_2007_test.mat"
        savemat(path, {"boxes": boxes, "images": images})
        return path

    return write


def test_published_boxes_are_read_by_name_and_counted_from_zero(released):
    boxes = cells(np.array([[1.0, 2, 30, 40], [5, 6, 7, 8], [1, 2, 30, 40]]), np.empty((0, 4)))
    found = selective_search(released(boxes, cells("000001", "000002").T))
    assert list(found) == ["000001", "000002"]
    assert found["000001"].tolist() == [[1, 0, 39, 29], [5, 4, 7, 6]]  # [xmin, ymin, xmax, ymax], each once
    assert found["000002"].shape == (0, 4)


def test_one_image_and_integers_are_read_as_well(released):
    found = selective_search(released(cells(np.array([[1, 1, 9, 9]], dtype=np.uint16)), cells("000005")))
    assert found["000005"].tolist() == [[0, 0, 8, 8]]


@pytest.mark.parametrize(
    ("boxes", "images", "message"),
    [
        (cells(np.ones((1, 4))), cells("a", "b"), "2 images and boxes of 1"),
        (cells(np.ones((2, 5))), cells("a"), r"shape \(2, 5\)"),
        (cells(np.array([[9.0, 1, 2, 5]])), cells("a"), "ends before it begins"),
        (cells(np.ones((1, 4))), cells(cells("a", "b")), "an image with 2 names instead of one"),
    ],
)
def test_files_with_other_content_are_refused(released, boxes, images, message):
    with pytest.raises(DataError, match=message + r".*; pass a file as released"):
        selective_search(released(boxes, images))


def test_files_that_are_none_are_refused(tmp_path):
    from scipy.io import savemat

    with pytest.raises(DataError, match=r"cannot be read.*voc_2007_trainval\.mat"):
        selective_search(tmp_path / "absent.mat")
    (tmp_path / "text.mat").write_text("boxes")
    with pytest.raises(DataError, match="no MATLAB file"):
        selective_search(tmp_path / "text.mat")
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(DataError, match="no variables `boxes` and `images`"):
        selective_search(tmp_path / "other.mat")


def scene(left, top, width, height):
    """A textured rectangle on a plain ground."""
    image = np.full((120, 160, 3), 90, dtype=np.uint8)
    texture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[top : top + height, left : left + width] = texture
    return image, np.array([[left, top, left + width - 1, top + height - 1]])


def recall(objects, proposals):
    """Share of objects, by image (n, 4), that a proposal of their image overlaps by half or more."""
    overlaps = [intersection_over_union(*each).max(axis=1) for each in zip(objects, proposals, strict=True)]
    return np.mean(np.concatenate(overlaps) >= 0.5)


@pytest.mark.parametrize("place", [(20, 30, 40, 40), (90, 10, 30, 90), (10, 70, 120, 40), (0, 0, 160, 120)])
def test_an_object_is_among_few_windows(place):
    image, boxes = scene(*place)
    windows = edge_windows(image, 50)
    assert len(windows) == 50
    assert recall([boxes], [windows]) == 1.0


def test_windows_are_inside_the_image_distinct_and_the_same_every_time():
    image, _ = scene(20, 30, 40, 40)
    windows = edge_windows(image, 2000)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [159, 119]).all()
    assert (windows[:, :2] <= windows[:, 2:]).all()
    assert len(np.unique(windows, axis=0)) == len(windows)
    assert (windows == edge_windows(image, 2000)).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (30, 20)])
def test_small_images_have_a_window(size):
    windows = edge_windows(np.zeros((*size, 3), dtype=np.uint8), 100)
    assert len(windows) >= 1
    assert (windows[:, 2:] < [size[1], size[0]]).all()


@pytest.mark.ci
def test_the_stand_in_finds_most_objects_of_real_photos(real_data):
    from xml.etree import ElementTree

    from PIL import Image

    devkit = real_data / "davis_voc/VOCdevkit/VOC2007"
    objects, proposals = [], []
    for name in (devkit / "ImageSets/Main/test.txt").read_text().split()[::15]:
        root = ElementTree.parse(devkit / f"Annotations/{name}.xml").getroot()
        sides = ("xmin", "ymin", "xmax", "ymax")
        objects.append(
            np.array([[float(box.findtext(side)) - 1 for side in sides] for box in root.iter("bndbox")]).reshape(-1, 4)
        )
        proposals.append(edge_windows(np.asarray(Image.open(devkit / f"JPEGImages/{name}.jpg")), 300))
    assert recall(objects, proposals) > 0.9
