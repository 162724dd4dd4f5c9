"""Folders of videos as clips: files, frames, labels, splits, and errors about bad clips."""

import dataclasses
import hashlib
import logging
import os
import shutil
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from permenv.data import clip_files, store
from permenv.data import decode as decode_module
from permenv.data.folder import file_names, image_folder
from permenv.data.messages import DataError
from permenv.data.parallel import Budget
from permenv.data.sets import StillImages, VideoClips
from permenv.data.stored import StoredImages
from permenv.data.videos import video_folder
from tests.permenv.data.helpers import Crowd, fail_to_open

CPU = torch.device("cpu")
SIDE = 64  # of the frames that the tests write
BITS = 16  # a frame shows its number as 16 light and dark blocks, which survive every codec
FOURCC = {
    ".avi": "MJPG",
    ".mp4": "mp4v",
    ".mkv": "MJPG",
    ".webm": "VP80",
    ".mov": "mp4v",
    ".mpg": "mpg1",
    ".mpeg": "mpg2",
    ".m4v": "mp4v",
}


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def no_decoding(monkeypatch):
    """Return a function that makes any later decoding fail."""

    def decode(*_):
        raise AssertionError("decoded again")

    def forbid():
        monkeypatch.setattr(decode_module, "decode", decode)
        monkeypatch.setattr(cv2, "VideoCapture", decode)

    return forbid


def frame(number, height=SIDE, width=SIDE):
    """(height, width, 3) uint8 whose centre square shows a number."""
    blocks = np.array([220 if number >> bit & 1 else 35 for bit in range(BITS)], np.uint8).reshape(4, 4)
    side = min(height, width)
    square = np.kron(blocks, np.ones((side // 4, side // 4), np.uint8))
    image = np.zeros((height, width), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = square
    return np.repeat(image[..., None], 3, axis=2)


def numbers(frames):
    """The numbers that the frames (F, S, S, 3) of a clip show."""
    size = frames.shape[1]
    blocks = np.asarray(frames).reshape(len(frames), 4, size // 4, 4, size // 4, 3).mean(axis=(2, 4, 5)) > 128
    return [sum(1 << bit for bit in range(BITS) if shown[bit]) for shown in blocks.reshape(-1, BITS)]


def film(path, count=12, first=0, height=SIDE, width=SIDE):
    """Write a video of the frames `first` to `first + count - 1`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [frame(first + place, height, width) for place in range(count)]
    if path.suffix.lower() == ".gif":
        pictures = [Image.fromarray(image) for image in frames]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
        return path
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*FOURCC[path.suffix.lower()]), 25, (width, height)
    )
    assert writer.isOpened()
    for image in frames:
        writer.write(image)
    writer.release()
    return path


def sequence(folder, names, first=0, **shape):
    """Write a folder of frames that show `first` and so on, in the order of `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        Image.fromarray(frame(first + place, **shape)).save(folder / name)
    return folder


def clip(clips, index):
    """The numbers that the frames of a clip show."""
    return numbers(clips.frames.pixels[clips.starts[index] : clips.starts[index + 1]])


def evenly(count, most):
    """Plain reference: the first frame, the last one, and those at equal steps between, rounded down."""
    if count <= most:
        return list(range(count))
    return [int(np.floor(place + 1e-9)) for place in np.linspace(0, count - 1, most)]


def read(root, max_frames=64, **options):
    return video_folder(root, 16, max_frames, progress=False, **options)


# Files and labels


def test_the_first_folder_is_the_class_and_clips_are_sorted_by_path(tmp_path):
    names = ["jump/b.avi", "bend/deep/er/a.avi", "z.avi", "jump/a.AVI"]
    for place, name in enumerate(names):
        film(tmp_path / "set" / name, count=2 + place, first=100 * place)
    sequence(tmp_path / "set" / "jump" / "frames", ["1.png", "2.png"], first=500)
    sequence(tmp_path / "set" / "loose", ["1.png"], first=600)

    clips = read(tmp_path / "set")

    assert clips.names == ("bend/deep/er/a.avi", "jump/a.AVI", "jump/b.avi", "jump/frames", "loose", "z.avi")
    assert clips.frames.classes == ("bend", "jump")
    np.testing.assert_array_equal(clips.lengths, [3, 5, 2, 2, 1, 4])
    np.testing.assert_array_equal(clips.frames.labels, np.repeat([0, 1, 1, 1, -1, -1], clips.lengths))
    assert clips.frames.labels.dtype == clips.starts.dtype == np.int64
    assert [clip(clips, index)[0] for index in range(6)] == [100, 300, 0, 500, 600, 200]
    assert (len(clips), len(clips.frames), clips.frames.size, clips.frames.name) == (6, 17, 16, "set")
    assert (clips.frames.skipped, clips.irregular) == ((), ())


def test_frame_folders_directly_below_the_root_are_unlabelled(tmp_path):
    for place, name in enumerate(("bear", "cow")):
        sequence(tmp_path / name, ["00000.jpg", "00001.jpg"], first=10 * place)
    clips = read(tmp_path)
    assert clips.names == ("bear", "cow")
    assert clips.frames.labels is None
    assert clips.frames.classes == ()


def test_frames_are_in_natural_order(tmp_path):
    names = ["f1.png", "f2.png", "f9.png", "f10.png", "f0011.png", "f100.jpg"]
    sequence(tmp_path / "a", names)
    assert clip(read(tmp_path), 0) == [0, 1, 2, 3, 4, 5]


def test_images_beside_videos_are_no_clip(tmp_path):
    film(tmp_path / "a" / "a.avi")
    sequence(tmp_path / "a", ["cover.png"])
    sequence(tmp_path, ["cover.png"])
    assert read(tmp_path).names == ("a/a.avi",)


def test_frames_in_the_root_itself_are_a_clip_if_there_is_no_other(tmp_path):
    sequence(tmp_path, ["1.png", "2.png", "3.png"], first=7)
    clips = read(tmp_path)
    assert clips.names == (".",)
    assert clip(clips, 0) == [7, 8, 9]
    assert clips.frames.labels is None


def test_frames_in_a_folder_named_as_a_video(tmp_path):
    sequence(tmp_path / "a" / "v.avi", ["1.png", "2.png"])
    assert read(tmp_path).names == ("a/v.avi",)


def test_hidden_and_other_files_are_not_read(tmp_path):
    film(tmp_path / "a" / "a.avi")
    film(tmp_path / "a" / "._b.avi")
    film(tmp_path / ".git" / "c.avi")
    (tmp_path / "a" / "notes.txt").write_text("a film")
    clips = read(tmp_path)
    assert clips.names == ("a/a.avi",)
    assert clips.frames.skipped == ()


# Frames


@pytest.mark.parametrize("extension", [*FOURCC, ".gif"])
def test_every_container_gives_its_frames_in_order(tmp_path, extension):
    film(tmp_path / f"a{extension}", count=20)
    clips = read(tmp_path)
    assert clip(clips, 0) == list(range(20))
    assert clips.irregular == ()


@pytest.mark.parametrize("most", [1, 2, 7, 20, 29, 30, 31, 64])
def test_frames_are_spread_evenly_from_the_first_to_the_last(tmp_path, most):
    film(tmp_path / "a.avi", count=30)
    sequence(tmp_path / "b", [f"{number}.png" for number in range(30)])
    clips = read(tmp_path, most)
    assert clip(clips, 0) == clip(clips, 1) == evenly(30, most)


def test_of_a_long_video_only_the_kept_frames_are_converted(tmp_path, monkeypatch):
    film(tmp_path / "a.avi", count=400)
    converted = []
    square = clip_files.rgb_square
    monkeypatch.setattr(clip_files, "rgb_square", lambda *args: converted.append(1) or square(*args))
    assert clip(read(tmp_path, 8), 0) == evenly(400, 8)
    assert len(converted) == 8


def test_frames_become_squares_as_images_do(tmp_path):
    rough = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.fromarray(rough).save(tmp_path / "a" / "b" / "1.png")
    np.testing.assert_array_equal(read(tmp_path / "a").frames.pixels, image_folder(tmp_path / "a", 16).pixels)


def test_colours_and_crop_of_a_video(tmp_path):
    image = np.full((48, 96, 3), (255, 0, 0), np.uint8)  # BGR
    image[:, 24:72] = (40, 90, 200)
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 48))
    writer.write(image)
    writer.release()
    [square] = read(tmp_path).frames.pixels
    assert np.abs(square[:, 2:-2].astype(int) - (200, 90, 40)).max() < 12


@pytest.mark.parametrize("number", [9, 4660])
def test_frames_of_changing_size(tmp_path, number):
    for place, shape in enumerate([(64, 64), (48, 100), (128, 64)]):
        sequence(tmp_path / "a", [f"{place}.png"], first=number + place, height=shape[0], width=shape[1])
    clips = read(tmp_path)
    assert clip(clips, 0) == [number, number + 1, number + 2]


def test_a_video_whose_frames_change_their_size(tmp_path):
    small, large = film(tmp_path / "1.mpg", 20), film(tmp_path / "2.mpg", 20, first=20, height=128, width=128)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.mpg").write_bytes(small.read_bytes() + large.read_bytes())
    shown = clip(read(tmp_path / "both"), 0)
    assert shown == sorted(shown)
    assert shown[0] == 0
    assert shown[-1] == 39
    assert len(shown) >= 38  # FFmpeg may lose a frame at the seam


def test_rotation_is_honoured(tmp_path):
    path = film(tmp_path / "a.mp4", 3, first=0b0011_0011_0011_0011)
    upright = clip(read(tmp_path), 0)
    content = bytearray(path.read_bytes())
    matrix = content.index(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30), content.index(b"tkhd"))
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    path.write_bytes(content)
    clips = read(tmp_path)
    assert upright[0] == 0b0011_0011_0011_0011  # left half light
    assert clip(clips, 0)[0] == 0b0000_0000_1111_1111  # top half


# Headers and bad files


def promise(path, frames):
    """Write another number of frames into an AVI's header."""
    content = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 16), (b"strh", 32)):
        at = content.index(name) + 8 + offset
        content[at : at + 4] = struct.pack("<I", frames)
    path.write_bytes(content)


@pytest.mark.parametrize("most", [8, 64])
@pytest.mark.parametrize("promised", [0, 1, 7, 29, 31, 1000, 2**31 - 1, 2**32 - 1])
def test_frames_do_not_depend_on_a_wrong_header(tmp_path, promised, most):
    promise(film(tmp_path / "a.avi", count=30), promised)
    assert clip(read(tmp_path, most), 0) == evenly(30, most)


def test_a_clip_with_fewer_frames_than_its_header_says_is_named(tmp_path, caplog):
    film(tmp_path / "a.avi")
    for name, promised in (("few", 32), ("many", 33), ("all", 10)):
        promise(film(tmp_path / f"{name}.avi", count=30), promised)
    clips = read(tmp_path)
    assert clips.irregular == (("many.avi", "30 of 33 promised frames"),)
    assert len(clips) == 4
    [warning] = caplog.records
    assert (warning.name, warning.levelname) == ("permenv", "WARNING")
    assert "1 of 4 clips lack frames: many.avi (30 of 33" in warning.getMessage()


def test_a_truncated_avi_gives_its_first_frames(tmp_path):
    path = film(tmp_path / "a.avi", count=40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    clips = read(tmp_path)
    shown = clip(clips, 0)
    assert 5 < len(shown) < 40
    assert shown[:-1] == list(range(len(shown) - 1))  # the last one is cut through
    assert clips.irregular == (("a.avi", f"{len(shown)} of 40 promised frames"),)
    assert len(read(tmp_path, 4)) == 1


def broken_clips(root):
    """Every kind of unusable clip, with the reason that is reported."""
    half = film(root / "half.mp4", count=40)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.avi").write_text("a film about nothing\n" * 40)
    (root / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (root / "folder.avi").mkdir()
    (root / "dangling.avi").symlink_to(root / "nowhere.avi")
    (root / "itself.avi").symlink_to(root / "itself.avi")
    os.mkfifo(root / "pipe.webm")
    sequence(root / "frames", ["1.png"])
    (root / "frames" / "1.png").write_bytes(b"")
    return {
        "dangling.avi": "dangling link",
        "empty.mp4": "empty file",
        "folder.avi": "not a regular file",
        "frames": "fewer than 1 frames: 0; 1 of 1 frames broken, the first: 1.png (empty file)",
        "half.mp4": "cannot open",
        "itself.avi": "",
        "noise.mkv": "not an AVI, MP4, QuickTime, Matroska, WebM, MPEG or GIF file",
        "pipe.webm": "not a regular file",
        "text.avi": "not an AVI, MP4, QuickTime, Matroska, WebM, MPEG or GIF file",
    }


def test_bad_clips_are_named_and_skipped_on_every_start(tmp_path, caplog, no_decoding):
    root = tmp_path / "b"
    film(tmp_path / "a" / "good.avi", first=3)
    film(tmp_path / "c" / "good.avi", first=50)
    root.mkdir()
    reasons = broken_clips(root)
    for _ in range(2):
        caplog.clear()
        clips = read(tmp_path)
        assert [name for name, _ in clips.frames.skipped] == [f"b/{name}" for name in sorted(reasons)]
        for name, said in clips.frames.skipped:
            assert reasons[name.removeprefix("b/")] in said
        assert clips.names == ("a/good.avi", "c/good.avi")
        assert clips.frames.classes == ("a", "b", "c")
        np.testing.assert_array_equal(clips.frames.labels, np.repeat([0, 2], 12))
        assert clip(clips, 1)[0] == 50
        [warning] = caplog.records
        assert f"{len(reasons)} of {len(reasons) + 2} clips skipped" in warning.getMessage()
        assert f"and {len(reasons) - 5} more" in warning.getMessage()
        no_decoding()  # the second start


@pytest.fixture(params=[True, False], ids=["old", "new"])
def age(request, monkeypatch):
    """Take the files that a test writes for old ones, whose digests are known at the next start, and for new ones."""
    if request.param:
        monkeypatch.setattr(store, "UNSETTLED", 0)


@pytest.mark.usefixtures("age")
def test_clips_without_permission_are_skipped_until_it_is_given(tmp_path, monkeypatch):
    for place, name in enumerate(("a.avi", "closed.avi", "shut/b.avi")):
        film(tmp_path / name, first=place)
    scandir = os.scandir

    def scan_if_allowed(path):
        if not isinstance(path, int) and Path(path).name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:  # the super-user may read all files
        fail_to_open(patch, "closed.avi", PermissionError(13, "Permission denied"))
        patch.setattr(os, "scandir", scan_if_allowed)
        clips = read(tmp_path)
    assert clips.frames.skipped[0] == ("closed.avi", "Permission denied")
    assert clips.frames.skipped[1][0] == "shut"
    assert len(read(tmp_path)) == 3


@pytest.mark.parametrize(
    "name", ["50%d.avi", "a%05d.avi", "a:b.avi", "été 猫.avi", "file:x.mp4", "-i.avi", "a'b\"[c].avi"]
)
def test_strange_names(tmp_path, name, monkeypatch):
    film(tmp_path / "plain.avi").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    clips = read(".")
    assert clips.names == (name,)
    assert clip(clips, 0) == list(range(12))


def test_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"latin-\xe9.avi")
    film(tmp_path / "a.avi")
    try:
        film(tmp_path / "b.avi", first=20).rename(tmp_path / name)
        sequence(tmp_path / os.fsdecode(b"\xe9"), ["1.png"])
    except OSError:
        pytest.skip("this file system does not take the name")
    for _ in range(2):
        clips = read(tmp_path)
        assert clips.frames.skipped == ()
        assert clip(clips, clips.names.index(name)) == list(range(20, 32))
        assert len(clips) == 3


def test_broken_frames_are_left_out_and_the_clip_named(tmp_path, caplog):
    sequence(tmp_path / "a", [f"{number}.png" for number in range(12)])
    (tmp_path / "a" / "3.png").write_bytes(b"")
    (tmp_path / "a" / "7.png").write_text("no picture")
    clips = read(tmp_path)
    assert clip(clips, 0) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert clips.irregular == (("a", "2 of 12 frames broken, the first: 3.png (empty file)"),)
    assert "1 of 1 clips lack frames" in caplog.text


def test_of_identical_clips_the_first_is_used(tmp_path):
    promise(film(tmp_path / "a" / "1.avi"), 100)
    (tmp_path / "a" / "bad.avi").write_text("no video")
    sequence(tmp_path / "a" / "frames", ["1.png"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    clips = read(tmp_path)
    assert clips.names == ("a/1.avi", "a/frames")
    assert clips.irregular == (("a/1.avi", "12 of 100 promised frames"),)
    assert [(name, said.partition(",")[0]) for name, said in clips.skipped] == [
        ("a/bad.avi", "not an AVI"),
        ("b/1.avi", "identical to a/1.avi"),
        ("b/bad.avi", "not an AVI"),
        ("b/frames", "identical to a/frames"),
    ]
    np.testing.assert_array_equal(clips.frames.labels, [0] * 13)


def test_short_clips_are_skipped(tmp_path):
    film(tmp_path / "a.avi", count=1)
    film(tmp_path / "b.avi", count=7)
    film(tmp_path / "c.avi", count=8)
    sequence(tmp_path / "d", ["1.png"])
    clips = read(tmp_path, min_frames=8)
    assert clips.names == ("c.avi",)
    assert clips.frames.skipped == (
        ("a.avi", "fewer than 8 frames: 1"),
        ("b.avi", "fewer than 8 frames: 7"),
        ("d", "fewer than 8 frames: 1"),
    )
    assert clip(read(tmp_path), 0) == [0]  # a clip of one frame is one


def test_frames_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_files, "MAX_PIXELS", SIDE * SIDE)
    film(tmp_path / "a.avi")
    film(tmp_path / "b.avi", width=2 * SIDE)
    clips = read(tmp_path)
    assert clips.frames.skipped == (("b.avi", "8192 pixels of a frame are more than the 4096 allowed"),)


def test_threads_decode_frames_of_no_more_pixels_at_a_time_than_allowed(tmp_path, monkeypatch):
    crowd, grab = Crowd(3), clip_files._grab

    def grab_in_crowd(*args):
        with crowd.joined():
            return grab(*args)

    monkeypatch.setattr(clip_files, "_grab", grab_in_crowd)
    monkeypatch.setattr(clip_files, "decoding", Budget(3 * SIDE**2 + 1))
    for number in range(12):
        film(tmp_path / f"{number}.avi", first=number)
    assert len(read(tmp_path)) == 12
    assert (crowd.all, crowd.most) == (12, 3)


def test_many_bad_clips_make_one_short_warning(tmp_path, caplog):
    film(tmp_path / "good.avi")
    for number in range(20):
        (tmp_path / f"{number:02}.avi").write_bytes(b"")
    assert len(read(tmp_path).frames.skipped) == 20
    [warning] = caplog.records
    assert "20 of 21" in warning.getMessage()
    assert "04.avi (empty file) and 15 more" in warning.getMessage()


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ([], "missing", r"missing cannot be listed: No such file.*\.avi.*folder/<class>"),
        (["a.avi"], "a.avi", r"a\.avi cannot be listed: Not a directory.*\.avi.*folder/<class>"),
        (["a/notes.txt"], ".", r"no videos in.*\.avi.*\.png.*folder/<class>"),
        (["a/a.avi", "b.mp4"], ".", r"no usable clip: a/a\.avi \(empty file\).*folder/<class>"),
    ],
)
def test_a_folder_without_videos_is_named_with_the_remedy(tmp_path, files, root, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / root)
    assert str(tmp_path / root) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size 0"),
        ({"max_frames": 0}, "max_frames 0"),
        ({"min_frames": 0}, "min_frames is 0"),
        ({"max_frames": 8, "min_frames": 9}, "min_frames is 9 and max_frames 8"),
        ({"split": -1}, "split -1"),
        ({"part": "validation"}, "'validation'"),
    ],
)
def test_numbers_out_of_range(tmp_path, options, message):
    film(tmp_path / "a.avi")
    with pytest.raises(DataError, match=message):
        video_folder(tmp_path, **{"size": 16, "max_frames": 64, **options})


# Cache and identity


def test_the_second_start_decodes_nothing(tmp_path, no_decoding):
    promise(film(tmp_path / "a" / "a.avi"), 100)
    sequence(tmp_path / "b" / "b", ["1.png", "2.png"])
    first = read(tmp_path)
    os.utime(tmp_path / "a" / "a.avi", (1, 1))
    no_decoding()
    second = read(tmp_path)
    np.testing.assert_array_equal(first.frames.pixels, second.frames.pixels)
    np.testing.assert_array_equal(first.starts, second.starts)
    np.testing.assert_array_equal(first.frames.labels, second.frames.labels)
    assert first.frames.fingerprint == second.frames.fingerprint
    assert (first.names, first.irregular) == (second.names, second.irregular)
    assert isinstance(second.frames.pixels, StoredImages)


@pytest.fixture
def opened(monkeypatch):
    """The names of all files of clips that are opened, also of those that cannot be read."""
    names = []
    open_regular, read_file = clip_files.open_regular, clip_files.read
    monkeypatch.setattr(clip_files, "open_regular", lambda path: names.append(path.name) or open_regular(path))
    monkeypatch.setattr(clip_files, "read", lambda path: names.append(path.name) or read_file(path))
    return names


@pytest.fixture
def three_clips(tmp_path):
    """A folder of two videos and a folder of frames, and a file that is no video."""
    film(tmp_path / "a" / "0.avi")
    film(tmp_path / "a" / "1.avi", first=20)
    (tmp_path / "a" / "text.avi").write_text("no video")
    sequence(tmp_path / "b" / "b", ["1.png", "2.png"])
    return tmp_path


@pytest.fixture
def settled(monkeypatch):
    """Take the files that a test writes for old ones, whose digests are known at the next start."""
    monkeypatch.setattr(store, "UNSETTLED", 0)


@pytest.mark.usefixtures("settled")
def test_a_later_start_reads_nothing_but_to_decode_frames_that_the_cache_does_not_hold(three_clips, opened):
    first = read(three_clips)
    opened.clear()
    second = read(three_clips)
    assert opened == []
    assert second.frames.fingerprint == first.frames.fingerprint
    assert second.frames.skipped == first.frames.skipped
    np.testing.assert_array_equal(second.frames.pixels, first.frames.pixels)
    other_size = video_folder(three_clips, 8, 64)
    assert other_size.names == first.names
    assert sorted(set(opened)) == ["0.avi", "1.avi", "1.png", "2.png", "text.avi"]


TOUCHED = {"a/1.avi": ["1.avi"], "a/text.avi": ["text.avi"], "b/b/2.png": ["1.png", "2.png"]}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("touched", TOUCHED)
def test_of_the_clips_the_one_that_was_touched_is_read(three_clips, opened, touched):
    first = read(three_clips)
    os.utime(three_clips / touched, (1, 1))
    opened.clear()
    second = read(three_clips)
    assert opened == TOUCHED[touched]
    assert second.frames.fingerprint == first.frames.fingerprint
    opened.clear()
    read(three_clips)
    assert opened == [], "what was read then is known"


STEPS = {
    "edited": (lambda root: film(root / "a" / "1.avi", first=50), ["1.avi", "1.avi"]),
    "added": (lambda root: film(root / "c" / "3.avi", first=30), ["3.avi", "3.avi"]),
    "removed": (lambda root: (root / "a" / "0.avi").unlink(), []),
    "renamed": (lambda root: (root / "a" / "0.avi").rename(root / "a" / "00.avi"), ["00.avi", "00.avi"]),
    "frame added": (lambda root: sequence(root / "b" / "b", ["3.png"], first=9), ["1.png", "2.png", "3.png"]),
    "older frame removed": (lambda root: (root / "b" / "b" / "1.png").unlink(), ["2.png"]),
}
"""What happens to a folder, and what is read for it: a video once for its digest and once for its frames."""


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("step", STEPS)
def test_of_the_clips_only_the_one_that_is_new_or_has_changed_is_read_and_decoded(
    three_clips, opened, step, monkeypatch, tmp_path_factory
):
    take, expected = STEPS[step]
    read(three_clips)
    take(three_clips)
    opened.clear()
    clips = read(three_clips)
    assert sorted(opened) == expected
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path_factory.mktemp("cache")))
    anew = read(three_clips)
    assert (clips.names, clips.fingerprint, clips.skipped) == (anew.names, anew.fingerprint, anew.skipped)
    np.testing.assert_array_equal(clips.starts, anew.starts)
    np.testing.assert_array_equal(clips.frames.pixels, anew.frames.pixels)


def test_clips_are_read_again_until_they_are_too_old_to_change_under_the_same_time(three_clips, opened, monkeypatch):
    monkeypatch.setattr(store, "UNSETTLED", 10**12)  # nobody waits so long
    first = read(three_clips)
    every = ["0.avi", "1.avi", "1.png", "2.png", "text.avi"]
    for unsettled, expected in ((10**12, every), (0, every), (0, [])):
        monkeypatch.setattr(store, "UNSETTLED", unsettled)
        opened.clear()
        assert read(three_clips).frames.fingerprint == first.frames.fingerprint
        assert sorted(opened) == expected


@pytest.mark.usefixtures("settled")
def test_of_the_clips_the_one_that_is_too_young_is_read_again(three_clips, opened):
    young = time.time() + 3600
    os.utime(three_clips / "a" / "1.avi", (young, young))
    read(three_clips)
    for _ in range(2):
        opened.clear()
        read(three_clips)
        assert opened == ["1.avi"]


@pytest.mark.usefixtures("settled")
def test_a_start_that_learns_nothing_new_writes_nothing(three_clips, monkeypatch):
    (three_clips / "a" / "gone.avi").symlink_to(three_clips / "nowhere.avi")
    film(three_clips / "a" / "closed.avi")
    young = time.time() + 3600
    os.utime(three_clips / "a" / "1.avi", (young, young))
    fail_to_open(monkeypatch, "closed.avi", PermissionError(13, "Permission denied"))
    first = read(three_clips)
    assert [name for name, _ in first.frames.skipped] == ["a/closed.avi", "a/gone.avi", "a/text.avi"]
    monkeypatch.setattr(store, "temporary_folder", lambda cache: pytest.fail(f"{cache} is written"))
    assert read(three_clips).frames.fingerprint == first.frames.fingerprint


@pytest.mark.usefixtures("settled")
def test_the_clips_of_one_part_stay_known_when_another_part_is_read(listed, opened):
    read(listed, part="train")
    read(listed, part="test")
    opened.clear()
    read(listed, part="train")
    read(listed, part="test")
    assert opened == []


@pytest.mark.usefixtures("settled")
def test_what_was_known_of_a_clip_that_is_gone_is_forgotten(three_clips, cache):
    read(three_clips)
    (three_clips / "a" / "0.avi").unlink()
    read(three_clips)
    [kept] = cache.glob("*/*.images")
    assert kept.stat().st_size == (12 + 2) * 16**2 * 3  # of 1.avi and the frames


def test_a_change_under_the_same_size_and_time_is_found_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_files, "state_of", lambda path: (1, 1))  # as if size and time could not tell
    film(tmp_path / "a.avi")
    first = read(tmp_path)
    film(tmp_path / "a.avi", first=40)
    assert clip(read(tmp_path), 0)[0] == clip(first, 0)[0] == 0
    assert clip(read(tmp_path, verify=True), 0)[0] == 40
    assert clip(read(tmp_path), 0)[0] == 40, "a later start knows"


def flip_bit_of_the_last_frame(cache):
    """Damage the pixels of the only set that the cache holds; return what they were, and their file."""
    [path] = cache.glob("*/*.images")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return whole, path


def test_a_damaged_frame_is_decoded_again_before_it_is_used(tmp_path, cache, caplog):
    film(tmp_path / "set" / "a.avi")
    sequence(tmp_path / "set" / "b", ["1.png", "2.png"])
    expected = np.array(read(tmp_path / "set").frames.pixels)
    flip_bit_of_the_last_frame(cache)
    clips = read(tmp_path / "set")
    np.testing.assert_array_equal(clips.take(np.array([0]), np.array([[3]]), CPU)[0, 0], expected[3])
    assert caplog.records == []
    np.testing.assert_array_equal(clips.take(np.array([1]), np.array([[1]]), CPU)[0, 0], expected[-1])
    assert "is damaged; its images are checked, and made again where need be" in caplog.text
    whole, path = flip_bit_of_the_last_frame(cache)
    read(tmp_path / "set", verify=True)
    assert path.read_bytes() == whole


def test_frames_are_kept_as_they_are_however_many_they_are(tmp_path, monkeypatch):
    film(tmp_path / "a.avi")
    expected = np.array(read(tmp_path).frames.pixels)
    monkeypatch.setattr(store, "RAW_BYTES", 0)  # images would be kept as JPEG
    np.testing.assert_array_equal(read(tmp_path).frames.pixels, expected)


def test_frames_have_no_files_of_their_own(tmp_path):
    film(tmp_path / "a.avi")
    with pytest.raises(DataError, match="is not what image_folder returned"):
        file_names(read(tmp_path).frames)


CHANGES = {
    "edited": lambda root: film(root / "a" / "0.avi", first=9),
    "added": lambda root: film(root / "a" / "9.avi"),
    "removed": lambda root: (root / "a" / "0.avi").unlink(),
    "renamed": lambda root: (root / "a" / "0.avi").rename(root / "a" / "00.avi"),
    "frame edited": lambda root: sequence(root / "b", ["1.png"], first=9),
    "frame added": lambda root: sequence(root / "b", ["3.png"], first=9),
    "frames swapped": lambda root: (
        (root / "b" / "1.png").rename(root / "b" / "x.png") and (root / "b" / "2.png").rename(root / "b" / "1.png")
    ),
}


@pytest.mark.usefixtures("age")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_has_another_fingerprint(tmp_path, change):
    film(tmp_path / "a" / "0.avi")
    film(tmp_path / "a" / "1.avi", first=20)
    sequence(tmp_path / "b", ["1.png", "2.png"])
    before = read(tmp_path)
    CHANGES[change](tmp_path)
    after = read(tmp_path)
    assert after.frames.fingerprint != before.frames.fingerprint


def test_the_fingerprint_is_a_digest_of_names_and_contents(tmp_path):
    """Checkpoints know their data by it, so it must not change."""

    def digest(content):
        return hashlib.blake2b(content, digest_size=16)

    film(tmp_path / "a.avi")
    sequence(tmp_path / "b", ["1.png", "2.png"])
    (tmp_path / "c.avi").write_text("no video")
    frames = [
        name.encode() + b"\0" + digest((tmp_path / "b" / name).read_bytes()).digest() for name in ("1.png", "2.png")
    ]
    contents = {
        "a.avi": digest((tmp_path / "a.avi").read_bytes()),
        "b": digest(b"frames\0" + b"".join(frames)),
        "c.avi": digest(b"not an AVI, MP4, QuickTime, Matroska, WebM, MPEG or GIF file"),
    }
    key = digest(b"permenv video folder, recipe 3, size 16, 1 to 64 frames\0")
    for name, content in contents.items():
        key.update(name.encode() + b"\0" + content.digest())
    assert read(tmp_path).fingerprint == key.hexdigest()


def test_other_options_have_other_fingerprints(tmp_path):
    film(tmp_path / "a.avi")
    options = [{}, {"size": 8}, {"max_frames": 5}, {"min_frames": 2}]
    sets = [video_folder(tmp_path, **{"size": 16, "max_frames": 64, **option}) for option in options]
    assert len({clips.frames.fingerprint for clips in sets}) == 4
    assert [clips.frames.pixels.shape[:2] for clips in sets] == [(12, 16), (12, 8), (5, 16), (12, 16)]


def test_a_copy_of_the_folder_has_the_same_fingerprint(tmp_path):
    one, two = (read(film(tmp_path / name / "a.avi").parent) for name in ("one", "two"))
    assert one.frames.fingerprint == two.frames.fingerprint
    assert (one.frames.name, two.frames.name) == ("one", "two")


@pytest.mark.parametrize("change", [lambda path: film(path, 30), Path.unlink], ids=["written", "deleted"])
def test_a_video_that_changes_while_it_is_read_is_not_cached(tmp_path, monkeypatch, cache, change):
    film(tmp_path / "a.avi")
    film(tmp_path / "b.avi", first=1)
    capture = cv2.VideoCapture

    def change_and_open(path, *args):
        if Path(path).samefile(tmp_path / "a.avi"):
            change(tmp_path / "a.avi")
        return capture(path, *args)

    monkeypatch.setattr(cv2, "VideoCapture", change_and_open)
    with pytest.raises(DataError, match=r"a\.avi changed while it was read"):
        read(tmp_path)
    assert not list(cache.glob("*/*.images"))


def test_a_frame_that_changes_while_it_is_read_is_not_cached(tmp_path, monkeypatch, cache):
    sequence(tmp_path / "a", ["1.png", "2.png"])
    content = decode_module.read_regular

    def read_and_change(path, most):
        before = content(path, most)
        if path.name == "2.png":
            sequence(tmp_path / "a", ["2.png"], first=9)
        return before

    monkeypatch.setattr(decode_module, "read_regular", read_and_change)
    with pytest.raises(DataError, match=r"2\.png changed while it was read"):
        read(tmp_path)
    assert not list(cache.glob("*/*.images"))


# Splits


LISTED = {"train": ["a/1.avi", "b/1.avi"], "test": ["a/2.avi"]}


@pytest.fixture
def listed(tmp_path):
    """A folder of five clips with lists beside it, that name three of them."""
    root = tmp_path / "set" / "videos"
    for place, name in enumerate(("a/1.avi", "a/2.avi", "a/3.avi", "b/1.avi", "c/1.avi")):
        film(root / name, count=2, first=place)
    lists = root.parent / "ucfTrainTestlist"
    lists.mkdir()
    for part, clips in LISTED.items():
        (lists / f"{part}list01.txt").write_text("".join(f"{clip} 1\n" for clip in clips))
    return root


def test_by_default_the_training_clips_of_split_1_are_used(listed, caplog):
    caplog.set_level(logging.INFO, "permenv")
    clips = read(listed)
    assert clips.names == ("a/1.avi", "b/1.avi")
    assert clips.frames.name == "videos, train split 1"
    assert clips.frames.skipped == ()
    [said] = caplog.records
    assert said.levelname == "INFO"
    assert f"2 clips, train split 1 by the lists in {listed.parent / 'ucfTrainTestlist'}" in said.getMessage()
    assert "2 clips are in neither part" in said.getMessage()


def test_parts_share_no_clip_and_number_the_classes_alike(listed):
    train, test = read(listed, split=1), read(listed, part="test")
    assert test.names == ("a/2.avi",)
    assert test.frames.name == "videos, test split 1"
    assert train.frames.classes == test.frames.classes == ("a", "b", "c")
    np.testing.assert_array_equal(train.frames.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(test.frames.labels, [0, 0])
    assert train.frames.fingerprint != test.frames.fingerprint


def test_split_0_uses_all_clips(listed, caplog):
    caplog.set_level(logging.INFO, "permenv")
    clips = read(listed, split=0)
    assert len(clips) == 5
    assert clips.frames.name == "videos"
    assert "all 5 clips, no official split" in caplog.text


def test_listed_clips_that_are_missing_are_skipped(listed, caplog):
    (listed / "b" / "1.avi").unlink()
    clips = read(listed)
    assert clips.names == ("a/1.avi",)
    assert clips.frames.skipped == (("b/1.avi", "in the train list, but missing"),)
    assert "1 of 2 clips skipped: b/1.avi" in caplog.text


def test_a_part_whose_clips_are_all_missing(listed):
    (listed / "a" / "2.avi").unlink()
    with pytest.raises(DataError, match="none of the 1 test clips of split 1"):
        read(listed, part="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 2}, r"split 2 of .*lone does not exist: no lists .*lone, in .*trainlist01"),
        ({"part": "test"}, "the part 'test' .*trainlist01"),
        ({"split": 0, "part": "test"}, "the part 'test' .*split 0 is all clips"),
    ],
)
def test_a_split_without_lists(tmp_path, options, message):
    root = film(tmp_path / "around" / "lone" / "a" / "a.avi").parent.parent
    with pytest.raises(DataError, match=message):
        read(root, **options)
    assert len(read(root)) == 1


def test_a_split_that_does_not_exist(listed):
    with pytest.raises(DataError, match=r"no split 4 in .*choose one of \[1\]"):
        read(listed, split=4)


def test_frame_folders_are_found_in_the_lists_of_their_videos(tmp_path):
    for name in ("a/1", "a/2"):
        sequence(tmp_path / "set" / name, ["1.png"])
    (tmp_path / "set" / "trainlist01.txt").write_text("a/1.avi 1\n")
    (tmp_path / "set" / "testlist01.txt").write_text("a/2.avi\n")
    assert read(tmp_path / "set").names == ("a/1",)


# VideoClips


@pytest.fixture
def mapped():
    """Three clips of 3, 1 and 4 frames, as the rows of an array; frame r is filled with 10 r."""
    pixels = np.repeat(np.arange(0, 80, 10, dtype=np.uint8), 2 * 2 * 3).reshape(8, 2, 2, 3)
    frames = StillImages(pixels, None, (), "clips", "0")
    return VideoClips(frames, np.array([0, 3, 4, 8]), ("a", "b", "c"))


def as_tensor(clips):
    """The same clips with their pixels as a tensor."""
    pixels = torch.from_numpy(np.array(clips.frames.pixels))
    return dataclasses.replace(clips, frames=dataclasses.replace(clips.frames, pixels=pixels))


@pytest.mark.parametrize(
    ("clips", "places", "rows"),
    [
        ([0, 2], [[0, 1], [3, 0]], [[0, 1], [7, 4]]),
        ([1, 1, 1], [[0], [0], [0]], [[3], [3], [3]]),
        ([2], [[3, 2, 1, 0, 0]], [[7, 6, 5, 4, 4]]),
    ],
)
def test_take_is_the_same_from_the_memory_map_and_from_a_tensor(mapped, clips, places, rows):
    for source in (mapped, as_tensor(mapped)):
        taken = source.take(np.array(clips), np.array(places), CPU)
        assert taken.dtype == torch.uint8
        assert taken.shape == (*np.shape(places), 2, 2, 3)
        np.testing.assert_array_equal(taken[..., 0, 0, 0], 10 * np.array(rows))


@pytest.mark.parametrize(("number", "place"), [(0, 3), (1, 1), (2, 4), (0, -1), (3, 0), (-1, 0), (-2, 0)])
def test_take_outside_the_clips(mapped, number, place):
    for source in (mapped, as_tensor(mapped)):
        with pytest.raises(IndexError):
            source.take(np.array([number]), np.array([[place]]), CPU)


def test_clips_move_to_a_device_as_a_whole(mapped):
    moved = mapped.to(torch.device("meta"))  # stands for a GPU
    assert isinstance(moved.frames.pixels, torch.Tensor)
    assert (len(moved), moved.names, moved.irregular) == (3, mapped.names, ())
    np.testing.assert_array_equal(moved.lengths, [3, 1, 4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_take_onto_a_cuda_device(mapped):
    cuda = torch.device("cuda")
    for source in (mapped, mapped.to(cuda)):
        taken = source.take(np.array([2]), np.array([[1, 3]]), cuda)
        assert taken.is_cuda
        assert taken[0, :, 0, 0, 0].tolist() == [50, 70]


# Real data


@pytest.mark.parametrize("split", [1, 2, 3])
def test_real_splits_separate_persons(real_data, split):
    root = real_data / "actions" / "videos"
    train, test = (read(root, split=split, part=part) for part in ("train", "test"))
    people = [{name.split("_")[2] for name in part.names} for part in (train, test)]
    assert people[0].isdisjoint(people[1])
    assert sorted(train.names + test.names) == sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    assert len(train) + len(test) == 36
    assert train.frames.classes == test.frames.classes == ("Bend", "JumpingJack", "WaveOneHand", "WaveTwoHands")
    assert train.frames.skipped == test.frames.skipped == train.irregular == test.irregular == ()


def test_real_clips_against_a_plain_reference(real_data):
    root = real_data / "actions" / "videos"
    clips = video_folder(root, 64, 16, split=0, progress=False)  # of 64 pixels: nothing is resized
    for index in (0, 17, 35):
        capture = cv2.VideoCapture(str(root / clips.names[index]))
        frames = []
        while (step := capture.read())[0]:
            frames.append(step[1][..., ::-1])
        expected = np.stack([frames[place] for place in evenly(len(frames), 16)])
        start = clips.starts[index]
        np.testing.assert_array_equal(clips.frames.pixels[start : start + 16], expected)


def test_real_surveillance_clips(real_data, tmp_path):
    for label in ("fight", "noFight"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for path in sorted((real_data / "cctv" / "videos" / label).iterdir())[::15]:
            (tmp_path / "videos" / label / path.name).symlink_to(path)
    (tmp_path / "lists").symlink_to(real_data / "cctv" / "testTrainMulti_7030_splits")
    for split in (1, 2, 3):
        train, test = (read(tmp_path / "videos", 8, split=split, part=part) for part in ("train", "test"))
        assert set(train.names).isdisjoint(test.names)
        assert len(train) + len(test) == 20
        assert train.irregular == test.irregular == ()
        assert {reason for _, reason in train.frames.skipped} == {"in the train list, but missing"}


def test_real_frame_folders(real_data, no_decoding):
    root = real_data / "davis" / "JPEGImages"
    clips = read(root, 8, min_frames=8)
    assert clips.names == tuple(sorted(path.name for path in root.iterdir()))
    assert len(clips) == 20
    assert (clips.lengths == 8).all()
    assert clips.frames.labels is None
    assert clips.frames.skipped == clips.irregular == ()
    no_decoding()
    np.testing.assert_array_equal(read(root, 8, min_frames=8).frames.pixels, clips.frames.pixels)
