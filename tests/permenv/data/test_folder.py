"""Folders of images as squares: files, pixels, labels, and errors about bad files."""

import dataclasses
import io
import os
import pickle
import struct
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from permenv.data import decode as decode_module
from permenv.data import folder, sets
from permenv.data.embedded import embedded_scenes
from permenv.data.folder import file_names, image_folder
from permenv.data.messages import DataError
from permenv.data.parallel import Budget
from tests.helpers import REAL_DATA, global_states
from tests.permenv.data.helpers import Crowd, fail_to_open

CPU = torch.device("cpu")
PHOTOS = REAL_DATA / "imagenette" / "val"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def no_decoding(monkeypatch):
    """Return a function that makes any later decoding fail."""

    def decode(*_):
        raise AssertionError("decoded again")

    return lambda: monkeypatch.setattr(folder, "decode", decode)


def picture(height=30, width=40, seed=0):
    """Smooth colours that no codec changes much, (height, width, 3) uint8 RGB, without any symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, format, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def put(root, files):
    """Write {relative path: content}; an array is written as PNG."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(content, "PNG") if isinstance(content, np.ndarray) else content)
    return root


def resizing(side, size):
    """Weights (size, side) of one axis: the mean over each new pixel's area, or linear interpolation."""
    weights = np.zeros((size, side))
    for new in range(size):
        if side > size:
            start, end = new * side / size, (new + 1) * side / size
            for old in range(side):
                weights[new, old] = max(0, min(end, old + 1) - max(start, old)) / (end - start)
        else:
            at = min(max((new + 0.5) * side / size - 0.5, 0), side - 1)
            low = min(int(at), max(side - 2, 0))
            weights[new, low] += 1 - (at - low)
            weights[new, min(low + 1, side - 1)] += at - low
    return weights


def reference(image, size):
    """The centre square of (H, W, 3), resized plainly and slowly."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = image[top : top + side, left : left + side].astype(float)
    weights = resizing(side, size)
    return np.einsum("ih,jw,hwc->ijc", weights, weights, square, optimize=True)


def assert_close(pixels, expected, most=1.0):
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(float)).max() <= most


# Files and labels


def test_the_first_folder_is_the_class_and_images_are_sorted_by_path(tmp_path):
    names = ["dog/b.png", "cat/deep/er/a.png", "dog/a.png", "z.png", "cat/z.PNG", "a.png"]
    root = put(tmp_path / "train", {name: picture(seed=seed) for seed, name in enumerate(names)})

    images = image_folder(root, 8)

    assert images.classes == ("cat", "dog")
    np.testing.assert_array_equal(images.labels, [-1, 0, 0, 1, 1, -1])
    assert images.labels.dtype == np.int64
    assert (len(images), images.size, images.name, images.skipped) == (6, 8, "train", ())
    for pixels, name in zip(images.pixels, sorted(names), strict=True):
        assert_close(pixels, reference(picture(seed=names.index(name)), 8))


def test_without_class_folders_there_are_no_labels(tmp_path):
    images = image_folder(put(tmp_path, {"a.png": picture()}), 8)
    assert images.labels is None
    assert images.classes == ()


def test_hidden_and_other_files_are_not_read(tmp_path):
    files = {
        "a/b.png": picture(),
        "a/._b.png": b"",
        ".git/c.png": b"",
        "a/notes.txt": b"",
        "a/list.json": b"",
    }
    images = image_folder(put(tmp_path, files), 8)
    assert len(images) == 1
    assert images.skipped == ()


def test_links_are_followed_except_to_a_parent_folder(tmp_path):
    put(tmp_path / "elsewhere", {"a.png": picture(), "more/b.png": picture(seed=1)})
    root = put(tmp_path / "root", {"real/c.png": picture(seed=2)})
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "real" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")

    images = image_folder(root, 8)

    assert images.classes == ("linked", "real")
    np.testing.assert_array_equal(images.labels, [0, 0, 1])


def test_the_file_of_each_image_can_be_named(tmp_path):
    root = put(tmp_path / "train", {"b.png": picture(seed=0), "a/c.png": picture(seed=1), "a/d.png": picture(seed=0)})
    (root / "a" / "cc.png").write_bytes(b"no picture")
    images = image_folder(root, 8)
    assert file_names(images) == ["a/c.png", "a/d.png"], "b is a copy of d"
    assert file_names(images.to(torch.device("meta"))) == file_names(images), "as of images on a GPU"
    with pytest.raises(DataError, match="is not what image_folder returned"):
        file_names(as_tensor(images))


@pytest.mark.parametrize("name", ["été/été.png", "猫/図 1.png", os.fsdecode(b"latin-\xe9/\xe9.png")])
def test_names_beyond_ascii(tmp_path, name, no_decoding):
    try:
        root = put(tmp_path, {name: picture(), f"{name[:-4]}-bad.png": b""})
    except OSError:
        pytest.skip("this file system does not take the name")
    first = image_folder(root, 8)
    no_decoding()
    second = image_folder(root, 8)
    assert len(first) == len(second) == 1
    assert first.classes == second.classes == (name.split("/")[0],)
    assert first.skipped == second.skipped == ((f"{name[:-4]}-bad.png", "empty file"),)


def test_a_root_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, {"photos/a.png": picture()})
    assert len(image_folder("~/photos", 8)) == 1


# Pixels


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (64, 64, 16),
        (48, 64, 24),
        (64, 48, 24),
        (50, 70, 17),
        (16, 16, 16),
        (9, 15, 16),
        (1, 1, 5),
        (3, 201, 7),
    ],
)
def test_resize_and_crop_against_a_plain_reference(tmp_path, height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    images = image_folder(put(tmp_path, {"a.png": image}), size)
    assert_close(images.pixels[0], reference(image, size), most=1.0 if min(height, width) > size else 2.0)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 120), width=st.integers(1, 120), size=st.integers(1, 60))
def test_any_shape_gives_exactly_the_centre_square(height, width, size):
    side = min(height, width)
    image = np.full((height, width, 3), (255, 0, 0), np.uint8)
    for top in {(height - side) // 2, (height - side + 1) // 2}:  # either centre where there are two
        for left in {(width - side) // 2, (width - side + 1) // 2}:
            image[top : top + side, left : left + side] = (0, 200, 100)
    with tempfile.TemporaryDirectory() as root:
        images = image_folder(put(Path(root), {"a.png": image}), size)
    assert images.pixels.shape == (1, size, size, 3)
    assert (np.asarray(images.pixels) == (0, 200, 100)).all()


def kinds():
    """Every kind of file, with its (H, W, 3) RGB content and the largest error of its codec."""
    rgb = picture()
    image, other = Image.fromarray(rgb), Image.fromarray(picture(seed=1))
    grey = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
    palette, black_and_white, cmyk = image.quantize(32), image.convert("1"), image.convert("CMYK")
    of_palette = np.asarray(palette.convert("RGB"))
    opacity = np.linspace(0, 255, 30 * 40).reshape(30, 40).astype(np.uint8)
    alpha, grey_alpha = np.dstack([rgb, opacity]), np.dstack([grey[..., 0], opacity])
    jpeg = {"format": "JPEG", "quality": 95, "subsampling": 0}
    more = {"save_all": True, "append_images": [other]}
    fine = np.dstack([rgb[..., ::-1], opacity]).astype(np.uint16) * 256 + 200  # BGR, as OpenCV writes
    return {
        "jpg": (encode(rgb, **jpeg), rgb, 6),
        "4-2-2.jpg": (encode(rgb, "JPEG", quality=95, subsampling=1), rgb, 40),
        "4-2-0.jpg": (encode(rgb, "JPEG", quality=95, subsampling=2), rgb, 40),
        "progressive.jpeg": (encode(rgb, **jpeg, progressive=True), rgb, 6),
        "grey.jpg": (encode(grey[..., 0], "JPEG", quality=95), grey, 4),
        "cmyk.jpg": (encode(cmyk, **jpeg), rgb, 6),
        "ycck.jpg": (simplejpeg.encode_jpeg(255 - np.asarray(cmyk), 95, "CMYK", "444"), rgb, 8),
        "two-pictures.jpg": (encode(image, "MPO", quality=95, subsampling=0, **more), rgb, 6),
        "followed-by-more.jpg": (encode(rgb, **jpeg) + b"\xff\xda trailer" * 9000, rgb, 6),
        "with-thumbnail.jpg": (with_thumbnail(encode(rgb, **jpeg)), rgb, 6),
        "png-named.jpg": (encode(rgb, "PNG"), rgb, 0),
        "png": (encode(rgb, "PNG"), rgb, 0),
        "grey.png": (encode(grey[..., 0], "PNG"), grey, 0),
        "grey-alpha.png": (encode(grey_alpha, "PNG"), grey, 0),
        "palette.png": (encode(palette, "PNG"), of_palette, 0),
        "palette-alpha.png": (encode(palette, "PNG", transparency=bytes(range(0, 256, 8))), of_palette, 0),
        "1-bit.png": (encode(black_and_white, "PNG"), np.asarray(black_and_white.convert("RGB")), 0),
        "alpha.png": (encode(alpha, "PNG"), rgb, 0),
        "transparent-colour.png": (encode(rgb, "PNG", transparency=tuple(map(int, rgb[0, 0]))), rgb, 0),
        "16-bit-grey.png": (encode(grey[..., 0].astype(np.uint16) * 256 + 200, "PNG"), grey, 0),
        "16-bit.png": (cv2.imencode(".png", fine[..., :3])[1].tobytes(), rgb, 0),
        "16-bit-alpha.png": (cv2.imencode(".png", fine)[1].tobytes(), rgb, 0),
        "animated.png": (encode(image, "PNG", **more), rgb, 0),
        "webp": (encode(rgb, "WEBP", lossless=True), rgb, 0),
        "alpha.webp": (encode(alpha, "WEBP", lossless=True, exact=True), rgb, 0),
        "animated.webp": (encode(image, "WEBP", lossless=True, **more), rgb, 0),
        "lossy.WebP": (encode(rgb, "WEBP", quality=95), rgb, 16),
    }


def with_thumbnail(jpeg):
    """Put another, complete JPEG into the header of a JPEG."""
    thumbnail = b"Exif\0\0" + encode(picture(8, 8), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_file_gives_rgb(tmp_path, kind):
    content, rgb, most = kinds()[kind]
    images = image_folder(put(tmp_path, {f"a.{kind}": content}), 15)
    assert_close(images.pixels[0], reference(rgb, 15), most + 1)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, of the plain conversion
@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_file_is_decoded_as_by_pillow(tmp_path, kind):
    content = kinds()[kind][0]
    expected = Image.open(io.BytesIO(content))
    if kind == "16-bit-grey.png":
        expected = Image.fromarray((np.asarray(expected) >> 8).astype(np.uint8))
    images = image_folder(put(tmp_path, {f"a.{kind}": content}), 30)  # its height, so that it is not resized
    most = 1 if kind in ("cmyk.jpg", "ycck.jpg") else 0  # converted to RGB with another rounding
    assert_close(images.pixels[0], np.asarray(expected.convert("RGB"))[:, 5:35], most)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are not defined
def test_exif_orientation_is_honoured(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(), format, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))

    images = image_folder(put(tmp_path, {f"a.{format}": content}), 30)

    assert upright.shape == ((40, 30, 3) if orientation in (5, 6, 7, 8) else (30, 40, 3))
    np.testing.assert_array_equal(images.pixels[0], upright[:, 5:35] if upright.shape[0] == 30 else upright[5:35])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF data", b"Exif\0\0II*\0\1", b"Exif\0\0"])
def test_broken_exif_data_do_not_matter(tmp_path, format, exif):
    images = image_folder(put(tmp_path, {f"a.{format}": encode(picture(), format, exif=exif)}), 30)
    assert images.skipped == ()


# Bad files


def png_that_claims(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_that_claims(width, height, content):
    content = bytearray(content)
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def webp_that_claims(width, height):
    """An animation whose only frame is smaller than its canvas."""
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(2)]
    content = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


def bombs():
    """Small files whose headers claim very many pixels."""
    return {
        "huge.png": (png_that_claims(10**5, 10**5), "10000000000 pixels are more than the 134217728 allowed"),
        "huge.jpg": (jpeg_that_claims(60000, 60000, encode(picture(), "JPEG")), "3600000000 pixels are more than"),
        "huge.webp": (webp_that_claims(16000, 16000), "pixels are more than"),
    }


def bad_files():
    """Every kind of bad file: its content, and the reason that is reported."""
    large = picture(200, 300)
    jpeg, png, webp, tiff, bmp = (encode(large, format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"))
    progressive = encode(large, "JPEG", progressive=True)
    cmyk = encode(Image.fromarray(large).convert("CMYK"), "JPEG")
    middle = len(jpeg) // 2
    checksum = png.index(b"IEND") - 8  # of the pixels
    return {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"<html>404 not found</html>", "not a JPEG, PNG or WebP file"),
        "tiff.jpg": (tiff, "not a JPEG, PNG or WebP file"),
        "bmp.png": (bmp, "not a JPEG, PNG or WebP file"),
        "hdr.jpg": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n" + bytes(4), "not a JPEG, PNG or WebP file"),
        "pfm.jpg": (b"PF\n1 1\n-1.0\n" + bytes(12), "not a JPEG, PNG or WebP file"),
        "sound.webp": (b"RIFF" + struct.pack("<I", 4) + b"WAVE", "not a JPEG, PNG or WebP file"),
        "half.jpg": (jpeg[:middle], "damaged or unsupported: Premature end of JPEG file"),
        "header-only.jpg": (jpeg[:300], "damaged or unsupported"),
        "first-bytes.jpg": (jpeg[:5], "damaged or unsupported"),
        "no-end.jpg": (jpeg[:-2], "Premature end of JPEG file"),
        "half-progressive.jpg": (progressive[: len(progressive) // 2], "Premature end of JPEG file"),
        "half-cmyk.jpg": (cmyk[: len(cmyk) // 2], "Premature end of JPEG file"),
        "half-with-thumbnail.jpg": (with_thumbnail(jpeg)[:-20], "Premature end of JPEG file"),
        "half-with-end.jpg": (jpeg[:middle] + b"\xff\xd9", "premature end of data segment"),
        "half-progressive-with-end.jpg": (
            progressive[: len(progressive) // 2] + b"\xff\xd9",
            "premature end of data segment",
        ),
        "garbled.jpg": (jpeg[:middle] + bytes(50) + jpeg[middle + 50 :], "Corrupt JPEG data"),
        "too-tall.jpg": (jpeg_that_claims(300, 400, jpeg), "premature end of data segment"),
        "too-wide.jpg": (jpeg_that_claims(400, 200, jpeg), "premature end of data segment"),
        "too-short.jpg": (jpeg_that_claims(300, 100, jpeg), "extraneous bytes"),
        "no-height.jpg": (jpeg_that_claims(300, 0, jpeg), "damaged or unsupported"),
        "half.png": (png[: len(png) // 2], "image file is truncated"),
        "no-end.png": (png[:-12], "truncated PNG file"),
        "first-bytes.png": (png[:12], "damaged or unsupported"),
        "header-only.png": (png[:33], "damaged or unsupported"),
        "garbled.png": (png[:500] + bytes(200) + png[700:], "damaged or unsupported"),
        "wrong-checksum.png": (png[:checksum] + bytes(4) + png[checksum + 4 :], "checksum"),
        "too-tall.png": (png_that_claims(100, 100), "image file is truncated"),
        "half.webp": (webp[: len(webp) // 2], "damaged or unsupported"),
        "all-but-one-byte.webp": (webp[:-1], "damaged or unsupported"),
        **bombs(),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_named_and_skipped_on_every_start(tmp_path, name, caplog, no_decoding):
    content, reason = bad_files()[name]
    root = put(tmp_path, {"a/good.png": picture(seed=1), f"b/{name}": content, "c/good.png": picture(seed=2)})
    for _ in range(2):
        caplog.clear()

        images = image_folder(root, 8)

        [(skipped, said)] = images.skipped
        assert skipped == f"b/{name}"
        assert reason in said
        assert images.classes == ("a", "b", "c")
        np.testing.assert_array_equal(images.labels, [0, 2])
        assert_close(images.pixels[1], reference(picture(seed=2), 8))
        [warning] = caplog.records
        assert warning.name == "permenv"
        assert "1 of 3" in warning.getMessage()
        assert f"b/{name}" in warning.getMessage()
        no_decoding()  # the second start


@pytest.mark.parametrize("name", bombs())
def test_pixel_bombs_are_not_decoded(tmp_path, monkeypatch, name):
    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(decode_module, "_jpeg", decode)
    monkeypatch.setattr(decode_module, "_png_or_webp", decode)
    content, reason = bombs()[name]
    with pytest.raises(DataError, match=reason):
        image_folder(put(tmp_path, {name: content}), 8)


def test_the_limit_of_pixels_is_inclusive(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 30 * 40)
    images = image_folder(put(tmp_path, {"a.png": picture(30, 40), "b.png": picture(30, 41)}), 8)
    assert images.skipped == (("b.png", "1230 pixels are more than the 1200 allowed"),)


def test_threads_decode_no_more_pixels_at_a_time_than_allowed(tmp_path, monkeypatch):
    crowd, decode = Crowd(3), decode_module._png_or_webp

    def decode_in_crowd(*args):
        with crowd.joined():
            return decode(*args)

    monkeypatch.setattr(decode_module, "_png_or_webp", decode_in_crowd)
    monkeypatch.setattr(decode_module, "decoding", Budget(3 * 30 * 40 + 1))
    images = image_folder(put(tmp_path, {f"{number}.png": picture(seed=number) for number in range(12)}), 8)
    assert (len(images), crowd.all, crowd.most) == (12, 12, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("limit", [None, 1, 1000])  # of 1200 pixels, `Image.open` warns at 1000 and refuses at 1
def test_pillows_own_limit_of_pixels_does_not_matter(tmp_path, monkeypatch, format, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert len(image_folder(put(tmp_path, {f"a.{format}": encode(picture(), format)}), 8)) == 1


def test_pillows_own_limit_of_pixels_is_named_where_it_does_matter(tmp_path, monkeypatch):
    """From Pillow 13 on, WebP files are refused by it as soon as they are opened."""

    def refuse(content):
        raise Image.DecompressionBombError("too large")

    root = put(tmp_path, {"a.webp": encode(picture(), "WEBP")})
    monkeypatch.setattr(decode_module, "_open", refuse)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(DataError, match=r"MAX_IMAGE_PIXELS is 1, .* set it to at least 67108864"):
        image_folder(root, 8)


def test_pillow_must_not_accept_damaged_images(tmp_path, monkeypatch, cache):
    png = encode(picture(), "PNG")
    root = put(tmp_path, {"good.png": png, "half.png": png[: len(png) // 2]})
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match=r"LOAD_TRUNCATED_IMAGES is set.*set it to False"):
        image_folder(root, 8)

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    strictly = image_folder(root, 8)
    assert [file for file, _ in strictly.skipped] == ["half.png"]

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert image_folder(root, 8).skipped == strictly.skipped  # from the cache, nothing is decoded


def test_without_memory_an_image_is_not_called_damaged(tmp_path, monkeypatch):
    def decode(*_):
        raise MemoryError

    monkeypatch.setattr(decode_module, "_jpeg", decode)
    with pytest.raises(MemoryError):
        image_folder(put(tmp_path, {"good.png": picture(), "large.jpg": encode(picture(), "JPEG")}), 8)


def test_many_bad_files_make_one_short_warning(tmp_path, caplog):
    root = put(tmp_path, {"good.png": picture(), **{f"{number:02}.jpg": b"" for number in range(20)}})
    images = image_folder(root, 8)
    assert len(images.skipped) == 20
    [warning] = caplog.records
    assert "20 of 21" in warning.getMessage()
    assert "04.jpg (empty file) and 15 more" in warning.getMessage()


def test_of_identical_files_the_first_is_used(tmp_path, caplog):
    same = picture()
    root = put(tmp_path, {"a/1.png": same, "a/2.png": picture(seed=1), "b/3.png": same, "b/4.png": b"", "b/5.png": b""})
    for _ in range(2):
        images = image_folder(root, 8)
        assert len(images) == 2
        assert images.skipped[0] == ("b/3.png", "identical to a/1.png")
        assert [name for name, _ in images.skipped] == ["b/3.png", "b/4.png", "b/5.png"]
        assert images.skipped[1][1] == images.skipped[2][1]  # why they cannot be read
        assert images.labels.tolist() == [0, 0]
    assert "b/3.png (identical to a/1.png)" in caplog.text


def test_folders_that_link_to_each_other_give_each_image_once(tmp_path):
    root = put(tmp_path, {f"{name}/{name}.png": picture(seed=seed) for seed, name in enumerate("abcdefg")})
    for name in "abcdefg":
        for other in "abcdefg":
            (root / name / f"to-{other}").symlink_to(root / other)
    assert len(image_folder(root, 8)) == 7


def test_files_that_cannot_be_opened_are_skipped(tmp_path, monkeypatch):
    root = put(tmp_path, {"good.png": picture(), "closed.png": picture(seed=1)})
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    with monkeypatch.context() as patch:
        fail_to_open(patch, "closed.png", PermissionError(13, "Permission denied"))
        images = image_folder(root, 8)

    assert [file for file, _ in images.skipped] == ["closed.png", "dangling.png", "pipe.png"]
    assert images.skipped[0][1] == "Permission denied"
    assert len(images) == 1
    assert len(image_folder(root, 8)) == 2


def test_a_folder_that_cannot_be_listed_is_skipped(tmp_path, monkeypatch):
    root = put(tmp_path, {"open/good.png": picture(), "closed/good.png": picture()})
    scandir = os.scandir

    def scan_if_allowed(path):
        if not isinstance(path, int) and Path(path).name == "closed":  # an open folder is a number
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan_if_allowed)
    images = image_folder(root, 8)
    assert [file for file, _ in images.skipped] == ["closed"]
    assert images.classes == ("open",)


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ({}, "missing", r"missing cannot be listed: No such file.*\.jpg.*folder/<class>"),
        ({"a.png": b""}, "a.png", r"a\.png cannot be listed: Not a directory.*\.jpg.*folder/<class>"),
        ({"a/notes.txt": b""}, ".", r"no image files in.*\.jpg.*folder/<class>"),
        (
            {"a.jpg": b"", "b.jpg": b"text"},
            ".",
            r"no readable image: a\.jpg \(empty file\).*folder/<class>",
        ),
    ],
)
def test_a_folder_without_images_is_named_with_the_remedy(tmp_path, files, root, message):
    put(tmp_path, files)
    with pytest.raises(DataError, match=message) as error:
        image_folder(tmp_path / root, 8)
    assert str(tmp_path / root) in str(error.value)


def test_a_size_below_one(tmp_path):
    with pytest.raises(DataError, match="size 0"):
        image_folder(put(tmp_path, {"a.png": picture()}), 0)


# Cache and identity


def test_the_second_start_decodes_nothing(tmp_path, no_decoding):
    root = put(tmp_path, {f"{seed}.png": picture(seed=seed) for seed in range(5)})
    first = image_folder(root, 8)
    os.utime(root / "3.png", (1, 1))
    no_decoding()
    second = image_folder(root, 8)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.fingerprint == second.fingerprint


CHANGES = {
    "edited": lambda root: put(root, {"a/0.png": picture(seed=9)}),
    "added": lambda root: put(root, {"a/9.png": picture(seed=9)}),
    "removed": lambda root: (root / "a/0.png").unlink(),
    "renamed": lambda root: (root / "a/0.png").rename(root / "a/00.png"),
    "moved": lambda root: (root / "a").rename(root / "b"),
    "swapped": lambda root: put(root, {"a/0.png": picture(seed=1), "a/1.png": picture(seed=0)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_has_another_fingerprint(tmp_path, change):
    root = put(tmp_path, {f"a/{seed}.png": picture(seed=seed) for seed in range(3)})
    before = image_folder(root, 8)
    CHANGES[change](root)
    after = image_folder(root, 8)
    assert after.fingerprint != before.fingerprint
    files = sorted(root.rglob("*.png"))
    assert len(after) == len(files)
    for pixels, file in zip(after.pixels, files, strict=True):
        assert_close(pixels, reference(np.asarray(Image.open(file)), 8))


def test_another_size_has_another_fingerprint(tmp_path):
    root = put(tmp_path, {"a.png": picture()})
    assert image_folder(root, 8).fingerprint != image_folder(root, 9).fingerprint


def test_a_copy_of_the_folder_has_the_same_fingerprint(tmp_path):
    files = {"a/0.png": picture(), "1.png": picture(seed=1)}
    one, two = (image_folder(put(tmp_path / name, files), 8) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert (one.name, two.name) == ("one", "two")


def test_a_file_that_changes_while_it_is_read_is_not_cached(tmp_path, monkeypatch, cache):
    root = put(tmp_path, {"a.png": picture(), "b.png": picture(seed=1)})
    read = decode_module.read_regular

    def read_and_change(path, most):
        content = read(path, most)
        if path.name == "a.png":
            put(root, {"a.png": picture(seed=2)})
        return content

    monkeypatch.setattr(decode_module, "read_regular", read_and_change)
    with pytest.raises(DataError, match=r"a\.png changed while it was read"):
        image_folder(root, 8)
    assert list(cache.rglob("*.safetensors")) == list(cache.rglob("*.images")) == []


# StillImages


@pytest.fixture
def mapped(tmp_path):
    """Five different images, memory-mapped."""
    return image_folder(put(tmp_path, {f"{seed}.png": picture(seed=seed) for seed in range(5)}), 8)


def as_tensor(images):
    """The same images with their pixels as a tensor."""
    return dataclasses.replace(images, pixels=torch.from_numpy(np.array(images.pixels)))


@pytest.mark.parametrize(
    "indices",
    [
        np.array([4, 0, 2, 2]),
        np.arange(5)[::-1],
        np.array([1], dtype=np.uint8),
        np.array([], dtype=np.int64),
    ],
)
def test_take_is_the_same_from_the_memory_map_and_from_a_tensor(mapped, indices):
    from_map, from_tensor = mapped.take(indices, CPU), as_tensor(mapped).take(indices, CPU)
    assert torch.equal(from_map, from_tensor)
    np.testing.assert_array_equal(from_map.numpy(), np.array(mapped.pixels)[indices])
    assert from_map.dtype == from_tensor.dtype == torch.uint8


@pytest.mark.parametrize("index", [5, -1])
def test_take_outside_the_set(mapped, index):
    array = dataclasses.replace(mapped, pixels=np.array(mapped.pixels))
    for images in (mapped, array, as_tensor(mapped), embedded_scenes(5, 16)):
        with pytest.raises(IndexError, match="indices go from 0 to 4"):
            images.take(np.array([0, index]), CPU)


def test_take_gives_a_copy(mapped):
    images = as_tensor(mapped)
    images.take(np.array([0]), CPU).zero_()
    np.testing.assert_array_equal(images.pixels.numpy(), mapped.pixels)
    mapped.take(np.array([0]), CPU).zero_()
    np.testing.assert_array_equal(images.pixels.numpy(), mapped.pixels)


@pytest.mark.parametrize("piece", [1, 400, 2**26])
def test_pixels_are_copied_to_a_device_in_parts(mapped, monkeypatch, piece):
    monkeypatch.setattr(sets, "COPY_BYTES", piece)
    np.testing.assert_array_equal(sets._copy_to(mapped.pixels, CPU).numpy(), mapped.pixels)


def test_pixels_move_to_a_device_where_they_fit(mapped):
    device = torch.device("meta")  # stands for a GPU
    moved = mapped.to(device)
    assert moved.pixels.device == device
    assert (moved.fingerprint, moved.classes, len(moved)) == (mapped.fingerprint, mapped.classes, 5)
    assert moved.to(device) is moved


def test_sets_of_the_same_content_share_their_pixels_on_a_device(mapped, monkeypatch):
    device = torch.device("meta")
    moved = mapped.to(device)
    monkeypatch.setattr(sets, "free_bytes", lambda device: 0)  # so that another copy would not fit
    assert dataclasses.replace(mapped).to(device).pixels is moved.pixels
    other = dataclasses.replace(mapped, fingerprint="other")
    assert other.to(device) is other
    del moved
    assert mapped.to(device) is mapped


def test_a_set_on_a_device_is_pickled_as_its_files_and_moved_again(mapped, monkeypatch):
    moved = mapped.to(torch.device("meta"))
    content = pickle.dumps(moved)
    assert mapped.pixels[0].tobytes() not in content
    assert pickle.loads(content).pixels is moved.pixels
    del moved
    monkeypatch.setattr(sets, "free_bytes", lambda device: 0)
    np.testing.assert_array_equal(pickle.loads(content).pixels, mapped.pixels)


def test_a_set_with_other_pixels_than_the_one_on_a_device_is_pickled_with_them(mapped):
    pixels = torch.zeros(5, 8, 8, 3, dtype=torch.uint8)
    other = dataclasses.replace(mapped.to(torch.device("meta")), pixels=pixels, fingerprint="other")
    assert torch.equal(pickle.loads(pickle.dumps(other)).pixels, pixels)


def test_pixels_stay_memory_mapped_where_they_do_not_fit(mapped, monkeypatch):
    monkeypatch.setattr(sets, "free_bytes", lambda device: 2 * mapped.pixels.nbytes - 1)
    assert mapped.to(torch.device("meta")) is mapped


def test_pixels_stay_memory_mapped_on_a_cpu(mapped):
    assert mapped.to(CPU) is mapped


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_take_onto_a_cuda_device(mapped):
    cuda = torch.device("cuda")
    indices = np.array([4, 0, 2])
    expected = mapped.take(indices, CPU)
    for images in (mapped, as_tensor(mapped), mapped.to(cuda)):
        taken = images.take(indices, cuda)
        assert taken.is_cuda
        assert torch.equal(taken.cpu(), expected)


# Real photos


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}; set PERMENV_DATA to their folder")
def test_real_photos(tmp_path, no_decoding):
    (tmp_path / "photos").mkdir()
    for photos in sorted(PHOTOS.iterdir())[:2]:
        (tmp_path / "photos" / photos.name).symlink_to(photos)
    threads, states = cv2.getNumThreads(), global_states()

    images = image_folder(tmp_path / "photos", 108)

    files = sorted((tmp_path / "photos").glob("*/*"))
    assert len(images) == len(files)
    assert images.skipped == ()
    assert images.classes == tuple(sorted({file.parent.name for file in files}))
    for index in range(0, len(files), 97):
        photo = np.asarray(Image.open(files[index]).convert("RGB"))
        assert np.abs(images.pixels[index] - reference(photo, 108)).mean() < 2
        assert images.classes[images.labels[index]] == files[index].parent.name
    assert cv2.getNumThreads() == threads
    assert global_states() == states
    no_decoding()
    np.testing.assert_array_equal(image_folder(tmp_path / "photos", 108).pixels, images.pixels)
