"""The VOC devkit: lists, annotations, masks; faults are named and counted."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from permenv.data import DataError, voc
from permenv.data.voc import VOC_CLASSES, VocObject, find_release, load_voc_image, load_voc_mask, voc_images


def annotation(*objects, width=40, height=30):
    """The devkit's XML of objects (name, xmin, ymin, xmax, ymax, difficult)."""
    body = "".join(
        f"<object><name>{name}</name><truncated>0</truncated><difficult>{difficult}</difficult>"
        f"<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, *box, difficult in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{body}</annotation>"


@pytest.fixture
def release(tmp_path):
    """A release with two good images, `a` and `b`."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    folders = ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass")
    for folder in folders:
        (root / folder).mkdir(parents=True)
    add(root, "a", annotation(("dog", 1, 1, 40, 30, 0), ("person", 11, 6, 20, 15, 1)))
    add(root, "b", annotation(("cat", 2, 3, 4, 5, 0)))
    write_lists(root, "a", "b")
    return root


def add(root, name, xml):
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "Annotations" / f"{name}.xml").write_text(xml)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:9, 5:9], mask[9] = 12, 255
    Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")


def write_lists(root, *names):
    for kind in ("Main", "Segmentation"):
        (root / "ImageSets" / kind / "trainval.txt").write_text("\n".join(names) + "\n")


def test_boxes_are_zero_based_and_half_open(release):
    first, second = voc_images(release, "trainval")
    assert (first.name, first.width, first.height, first.mask) == ("a", 40, 30, None)
    assert first.objects == (
        VocObject("dog", (0, 0, 40, 30), difficult=False),
        VocObject("person", (10, 5, 20, 15), difficult=True),
    )
    assert [each.area for each in first.objects] == [1200, 100]
    assert load_voc_image(second).shape == (30, 40, 3)


def test_masks_hold_classes_and_void(release):
    record = voc_images(release, "trainval", "Segmentation")[0]
    mask = load_voc_mask(record)
    assert mask.shape == (30, 40)
    assert np.unique(mask).tolist() == [0, 12, 255]
    assert VOC_CLASSES[12 - 1] == "dog"


@pytest.mark.parametrize("above", [0, 1, 2])
def test_the_release_is_found_from_the_folders_above(release, above):
    root = [release, *release.parents][above]
    assert find_release(root) == release


def test_several_releases_are_named(release):
    for folder in ("JPEGImages", "ImageSets"):
        (release.parent / "VOC2012" / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"several releases: .*VOC2007, .*VOC2012; pass the folder"):
        find_release(release.parent)


def test_no_release_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no release of VOC; pass the folder"):
        find_release(tmp_path)


@pytest.mark.parametrize(
    ("box", "left", "said"),
    [
        ((0, 1, 41, 30), (0, 0, 40, 30), None),
        ((1.5, 2, 9, 9), (0.5, 1, 9, 9), None),
        ((20, 5, 10, 9), None, "the box 20, 5, 10, 9 is empty"),
        ((50, 5, 60, 9), None, "outside of 40 × 30"),
        (("nan", 1, 2, 2), None, "not four numbers"),
        (("", 1, 2, 2), None, "not four numbers"),
    ],
)
def test_bad_boxes_are_cut_off_or_left_out(release, box, left, said, caplog):
    add(release, "a", annotation(("dog", *box, 0)))
    found = voc_images(release, "trainval")
    assert [each.box for each in found[0].objects] == ([] if left is None else [left])
    if said:
        assert "1 faults of images that are used: a (object 1: " in caplog.text
        assert said in caplog.text
    else:
        assert not caplog.records


def test_an_unknown_class_is_left_out(release, caplog):
    caplog.set_level(logging.INFO, "permenv")
    add(release, "a", annotation(("unicorn", 1, 1, 5, 5, 0)))
    assert voc_images(release, "trainval")[0].objects == ()
    assert "1 faults of images that are used: a (object 1: the class 'unicorn' is none of VOC)" in caplog.text
    assert "1 of 2 images have no objects" in caplog.text


def spoil(release, fault):
    xml, jpeg = release / "Annotations" / "a.xml", release / "JPEGImages" / "a.jpg"
    if fault == "missing annotation":
        xml.unlink()
    elif fault == "broken annotation":
        xml.write_text("<annotation><object>")
    elif fault == "entities":
        xml.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    elif fault == "other size":
        xml.write_text(annotation(width=10))
    elif fault == "missing image":
        jpeg.unlink()
    else:
        jpeg.write_bytes(b"not a JPEG")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing annotation", "its annotation cannot be read"),
        ("broken annotation", "its annotation is no XML"),
        ("entities", "declares a document type"),
        ("other size", "of an image of 10 × 30, not 40 × 30"),
        ("missing image", "its JPEG cannot be read"),
        ("corrupt image", "its JPEG cannot be read"),
    ],
)
def test_what_cannot_be_used_is_skipped_and_named(release, fault, said, caplog):
    spoil(release, fault)
    found = voc_images(release, "trainval")
    assert [record.name for record in found] == ["b"]
    assert "1 of 2 images skipped: a (" in caplog.text
    assert said in caplog.text


def test_segmentation_needs_no_annotation_but_a_mask(release, caplog):
    spoil(release, "missing annotation")
    (release / "SegmentationClass" / "b.png").unlink()
    found = voc_images(release, "trainval", "Segmentation")
    assert [(record.name, record.objects) for record in found] == [("a", ())]
    assert "1 of 2 images skipped: b (its mask is missing)" in caplog.text


def test_faults_of_masks_are_said(release):
    record = voc_images(release, "trainval", "Segmentation")[0]
    Image.fromarray(np.full((30, 40), 21, np.uint8)).save(record.mask)
    assert load_voc_mask(record) == "the indices [21] of the mask are no classes"
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(record.mask)
    assert load_voc_mask(record) == "a mask of 4 × 3 for an image of 40 × 30"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(record.mask)
    assert load_voc_mask(record) == "a PNG of mode RGB, not of indices"
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(record.mask)
    record.mask.write_bytes(record.mask.read_bytes()[:50])
    assert "damaged mask" in load_voc_mask(record)


class CountedFile(io.FileIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def readinto(self, buffer):
        """Read and count."""
        number = super().readinto(buffer)
        CountedFile.count += number
        return number


@pytest.mark.parametrize("header", [0, 100_000])
def test_of_an_image_only_the_header_is_read(release, monkeypatch, header):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = release / "JPEGImages" / "a.jpg"
    Image.fromarray(noise).save(path, quality=100, icc_profile=bytes(header))  # a profile stands in the header
    (release / "Annotations" / "a.xml").write_text(annotation(width=400, height=300))
    write_lists(release, "a")
    monkeypatch.setattr(CountedFile, "count", 0)
    monkeypatch.setattr(voc, "open_regular", lambda path: io.BufferedReader(CountedFile(path)))
    [record] = voc_images(release, "trainval")
    assert (record.width, record.height) == (400, 300)
    assert path.stat().st_size - header > 150_000
    assert header <= CountedFile.count < header + 50_000


def test_a_truncated_image_is_said_when_it_is_decoded(release):
    record = voc_images(release, "trainval")[0]
    record.path.write_bytes(record.path.read_bytes()[:-40])
    assert "damaged or unsupported" in load_voc_image(record)


@pytest.mark.parametrize("shape", [(30, 40, 3), (30, 30, 3)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_as_it_is_stored_like_its_boxes_and_its_mask(release, orientation, shape):
    height, width, _ = shape
    stored = np.zeros(shape, np.uint8)
    stored[2:10, 3:17] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(release / "JPEGImages" / "a.jpg", quality=95, exif=exif)
    xml = annotation(("dog", 4, 3, 17, 10, 0), width=width, height=height)
    (release / "Annotations" / "a.xml").write_text(xml)
    record = voc_images(release, "trainval")[0]
    left, top, right, bottom = map(int, record.objects[0].box)
    light = load_voc_image(record)[..., 0] > 128
    assert light.shape == (height, width)
    assert light[top:bottom, left:right].all()
    assert light.sum() == record.objects[0].area


def test_an_image_that_was_replaced_by_one_of_another_size_is_said(release):
    record = voc_images(release, "trainval")[0]
    Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(record.path)
    assert load_voc_image(record) == "it has been replaced by an image of 50 × 20 since its header was read"


@pytest.mark.parametrize("line", ["../../secret", "a 1", "/etc/passwd"])
def test_a_list_holds_names_only(release, line):
    write_lists(release, "a", line)
    with pytest.raises(DataError, match=r"trainval\.txt, line 2: .* is not the name of an image"):
        voc_images(release, "trainval")


def test_a_name_counts_once(release, caplog):
    write_lists(release, "a", "b", "a")
    assert [record.name for record in voc_images(release, "trainval")] == ["a", "b"]
    assert "1 of 3 images skipped: a (in the list already)" in caplog.text


def test_a_missing_list_names_those_that_are_there(release):
    with pytest.raises(DataError, match=r"test\.txt cannot be read: .*there are \['trainval'\]"):
        voc_images(release, "test")


def test_if_no_image_is_left_it_is_an_error(release):
    write_lists(release, "c")
    with pytest.raises(DataError, match="none of 1 images can be used: c"):
        voc_images(release, "trainval")


def test_the_stand_in_for_voc(real_data, caplog):
    main, masks = (voc_images(real_data / "davis_voc", "test", kind) for kind in ("Main", "Segmentation"))
    assert len(main) == len(masks) == 153
    assert "skipped" not in caplog.text
    assert all(record.objects for record in main)
    assert all(isinstance(load_voc_mask(record), np.ndarray) for record in masks[::30])
