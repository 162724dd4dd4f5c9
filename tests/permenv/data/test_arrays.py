"""What `images=` and `videos=` accept: folders, sets, arrays and map-style datasets give the same squares."""

import copy
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from permenv.data import arrays
from permenv.data.arrays import as_clips, as_images
from permenv.data.folder import image_folder
from permenv.data.messages import DataError
from permenv.data.sets import StillImages

pytestmark = pytest.mark.usefixtures("cache")

SIZE = 12


def images(given, size=SIZE):
    return as_images(given, size, num_scenes=5, scenes_seed=1)


def clips(given, size=SIZE, max_frames=8, min_frames=2, **options):
    options = {"split": None, "num_clips": 3, "scenes_seed": 1, **options}
    return as_clips(given, size, max_frames, min_frames=min_frames, **options)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Rows:
    """A map-style dataset, as `torch.utils.data.Dataset` and `datasets.Dataset` are; an exception is raised."""

    def __init__(self, items, **attributes):
        self.items = list(items)
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.fixture
def photos(tmp_path):
    """Three pictures of different shapes, and the squares that `image_folder` makes of them."""
    pictures = [noise(20, 30, 3), noise(31, 17, 3, seed=1), noise(9, 10, 3, seed=2)]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    return pictures, np.array(image_folder(tmp_path, SIZE).pixels)


# Embedded data, folders, sets


def test_none_is_the_embedded_data():
    assert images(None, 16).fingerprint == "scenes-1-5-16-1"
    assert len(images(None, 16)) == 5
    assert clips(None, 16, max_frames=4).fingerprint == "clips-1-3-4-16-1"


def test_a_path_is_a_folder(photos, tmp_path):
    np.testing.assert_array_equal(images(tmp_path).pixels, photos[1])
    np.testing.assert_array_equal(images(str(tmp_path)).pixels, photos[1])
    np.testing.assert_array_equal(clips(tmp_path, split=0).frames.pixels, photos[1])
    with pytest.raises(DataError, match="fewer than 4 frames: 3"):
        clips(tmp_path, min_frames=4)


def test_sets_are_used_as_they_are():
    stills, films = images(noise(4, SIZE, SIZE, 3)), clips(noise(2, 3, SIZE, SIZE, 3))
    assert images(stills) is stills
    assert clips(films) is films


@pytest.mark.parametrize("make", [images, clips])
def test_a_set_of_another_size_is_refused_with_the_remedy(make):
    given = make(noise(2, 3, SIZE, SIZE, 3)) if make is clips else make(noise(4, SIZE, SIZE, 3))
    with pytest.raises(DataError, match=r"array has pixels of size 12, but size 13 is needed: .*`pixels` as an array"):
        make(given, size=13)


# Pixels


def test_pil_images_give_the_pixels_of_files(photos):
    np.testing.assert_array_equal(images([Image.fromarray(picture) for picture in photos[0]]).pixels, photos[1])


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_arrays_give_the_pixels_of_files(photos, convert, channels_first):
    pictures = [picture.transpose(2, 0, 1) if channels_first else picture for picture in photos[0]]
    np.testing.assert_array_equal(images([convert(picture) for picture in pictures]).pixels, photos[1])


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_arrays_of_another_size_are_resized_as_files_are(tmp_path, convert, channels_first):
    given = noise(3, 20, 30, 3)
    for number, picture in enumerate(given):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    if channels_first:
        given = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images(convert(given)).pixels, image_folder(tmp_path, SIZE).pixels)
    np.testing.assert_array_equal(clips(convert(given[None])).frames.pixels, image_folder(tmp_path, SIZE).pixels)


@pytest.mark.parametrize("grey", [noise(20, 30), noise(20, 30, 1), torch.from_numpy(noise(1, 20, 30)), "pil"])
def test_grey_images_become_rgb(grey):
    plain = noise(20, 30) if not isinstance(grey, torch.Tensor) else grey.numpy()[0]
    if isinstance(grey, np.ndarray):
        plain = grey.reshape(20, 30)
    given = Image.fromarray(plain) if isinstance(grey, str) else grey
    np.testing.assert_array_equal(images([given]).pixels, images([np.dstack([plain] * 3)]).pixels)


def test_pil_images_are_rotated_and_converted_as_files_are(tmp_path):
    picture = Image.fromarray(noise(20, 30, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "rotated.png": (picture, {"exif": exif}),
        "alpha.png": (Image.fromarray(noise(20, 30, 4)), {}),
        "palette.png": (picture.quantize(32), {}),
        "deep.png": (Image.fromarray(noise(20, 30).astype(np.uint16) * 256 + 200), {}),
    }
    opened = []
    for name, (image, options) in sorted(kinds.items()):
        image.save(tmp_path / name, **options)
        opened.append(Image.open(tmp_path / name))
    np.testing.assert_array_equal(images(opened).pixels, image_folder(tmp_path, SIZE).pixels)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_pixels_of_the_right_size_are_not_copied(convert):
    given = noise(4, SIZE, SIZE, 3)
    stills = images(convert(given))
    assert np.shares_memory(stills.pixels.numpy(), given)
    films = clips(convert(given.reshape(2, 2, SIZE, SIZE, 3)))
    assert np.shares_memory(films.frames.pixels.numpy(), given)
    np.testing.assert_array_equal(films.starts, [0, 2, 4])
    assert films.names == ("clip 0", "clip 1")


@pytest.mark.parametrize("size", [SIZE, 8])
def test_memory_maps_and_reversed_views(tmp_path, size):
    given = noise(4, SIZE, SIZE, 3)
    np.save(tmp_path / "a.npy", given)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    np.testing.assert_array_equal(images(mapped, size).pixels, images(given, size).pixels)
    np.testing.assert_array_equal(images(given[::-1], size).pixels, images(given[::-1].copy(), size).pixels)
    assert images(mapped, size).fingerprint == images(given, size).fingerprint
    assert np.shares_memory(images(mapped).pixels, mapped)


# Labels


def test_pairs_of_image_and_label():
    given = Rows([(noise(3, 9, 9), torch.tensor(2)), (noise(3, 9, 9), np.int64(0)), (noise(3, 9, 9), -1)])
    stills = images(given)
    np.testing.assert_array_equal(stills.labels, [1, 0, -1])  # numbers without names are numbered anew
    assert stills.labels.dtype == np.int64
    assert stills.classes == ("0", "2")
    assert stills.name == "Rows"
    given.classes = ["cat", "dog", "cow"]
    named = images(given)
    np.testing.assert_array_equal(named.labels, [2, 0, -1])
    assert named.classes == ("cat", "dog", "cow")


def test_labels_without_names_may_be_any_numbers():
    given = Rows([(noise(3, 9, 9), 10**12), (noise(3, 9, 9), 7), (noise(3, 9, 9), 10**12)])
    stills = images(given)
    np.testing.assert_array_equal(stills.labels, [1, 0, 1])
    assert stills.classes == ("7", str(10**12))


def test_a_torch_dataset():
    pixels, labels = torch.from_numpy(noise(4, 3, 9, 9)), torch.tensor([1, 0, 1, 1])
    stills = images(torch.utils.data.TensorDataset(pixels, labels))
    np.testing.assert_array_equal(stills.labels, labels)
    np.testing.assert_array_equal(stills.pixels, images(pixels).pixels)
    assert images(torch.utils.data.TensorDataset(pixels)).labels is None


def test_rows_of_hugging_face():
    features = {"image": None, "label": SimpleNamespace(names=["cat", "dog"])}
    pictures = [Image.fromarray(noise(20, 30, 3, seed=seed)) for seed in range(2)]
    stills = images(Rows([{"image": picture, "label": 1} for picture in pictures], features=features))
    np.testing.assert_array_equal(stills.labels, [1, 1])
    assert stills.classes == ("cat", "dog")
    np.testing.assert_array_equal(stills.pixels, images(pictures).pixels)
    unlabelled = images(Rows([{"image": picture} for picture in pictures], features={"image": None}))
    assert unlabelled.labels is None
    assert unlabelled.classes == ()


def test_labels_that_are_names():
    stills = images([(noise(9, 9, 3), name) for name in ("dog", "cat", None, "dog")])
    np.testing.assert_array_equal(stills.labels, [1, 0, -1, 1])
    assert stills.classes == ("cat", "dog")


def test_other_labels_are_ignored():
    assert images([(noise(9, 9, 3), {"boxes": []}), (noise(9, 9, 3), torch.zeros(4))]).labels is None


# Clips


def test_clips_of_different_lengths_and_kinds():
    one, two = noise(3, 20, 30, 3), noise(5, 40, 20, 3, seed=1)
    as_pictures = [Image.fromarray(frame) for frame in two]
    films = clips(Rows([(one, 1), (as_pictures, 0), (torch.from_numpy(two).permute(0, 3, 1, 2), "audio", 1)]))
    np.testing.assert_array_equal(films.lengths, [3, 5, 5])
    np.testing.assert_array_equal(films.frames.labels, np.repeat([1, 0, 1], [3, 5, 5]))
    np.testing.assert_array_equal(films.frames.pixels, images([*one, *two, *two]).pixels)


@pytest.mark.parametrize("key", ["video", "frames"])
def test_rows_of_hugging_face_with_clips(key):
    given = noise(2, 3, 20, 30, 3)
    films = clips(Rows([{key: Rows(frames), "label": 0} for frames in given]))
    np.testing.assert_array_equal(films.frames.pixels, clips(given).frames.pixels)
    np.testing.assert_array_equal(films.frames.labels, np.zeros(6))


def test_frames_of_long_clips_are_spread():
    given = noise(2, 20, SIZE, SIZE, 3)
    films = clips(given, max_frames=4)
    np.testing.assert_array_equal(films.frames.pixels, given[:, [0, 6, 12, 19]].reshape(-1, SIZE, SIZE, 3))


def test_short_clips_are_skipped(caplog):
    films = clips([noise(1, SIZE, SIZE, 3), noise(3, SIZE, SIZE, 3), noise(2, SIZE, SIZE, 3)], min_frames=3)
    assert films.names == ("clip 1",)
    assert films.skipped == (("item 0", "fewer than 3 frames: 1"), ("item 2", "fewer than 3 frames: 2"))
    assert "list: 2 of 3 items skipped: item 0 (fewer than 3 frames: 1)" in caplog.text


# Identity


def test_the_fingerprint_is_that_of_the_pixels(monkeypatch):
    given = noise(4, SIZE, SIZE, 3)
    monkeypatch.setattr(arrays, "HASH_BYTES", given[:3].nbytes)
    expected = images(given).fingerprint
    assert images(list(given)).fingerprint == images(torch.from_numpy(given)).fingerprint == expected
    changed = given.copy()
    changed[3, 0, 0, 0] ^= 1
    assert images(changed).fingerprint != expected
    assert images(given[::-1]).fingerprint != expected
    assert (
        clips(given.reshape(2, 2, SIZE, SIZE, 3)).fingerprint != clips(given.reshape(1, 4, SIZE, SIZE, 3)).fingerprint
    )


@pytest.mark.parametrize(
    "given", [images(noise(4, SIZE, SIZE, 3)), clips(noise(2, 3, SIZE, SIZE, 3)), clips([noise(3, 9, 9, 3)])]
)
def test_sets_pickle_and_deep_copies_share_the_pixels(given):
    assert copy.deepcopy({"images": given})["images"] is given
    copied = pickle.loads(pickle.dumps(given))
    assert copied.fingerprint == given.fingerprint
    pixels, expected = (
        still.pixels if isinstance(still, StillImages) else still.frames.pixels for still in (copied, given)
    )
    np.testing.assert_array_equal(pixels, expected)


def test_a_memory_mapped_set_pickles(photos, tmp_path):
    copied = pickle.loads(pickle.dumps(image_folder(tmp_path, SIZE)))
    np.testing.assert_array_equal(copied.pixels, photos[1])


# What is refused


def test_damaged_items_are_counted_named_and_skipped(caplog):
    file = io.BytesIO()
    Image.fromarray(noise(40, 40, 3)).save(file, "JPEG")
    truncated = Image.open(io.BytesIO(file.getvalue()[:-200]))
    good = noise(9, 9, 3)
    stills = images(Rows([(good, 3), OSError("no such file"), (truncated, 1), ValueError(), (good, 0)]))
    assert [item for item, _ in stills.skipped] == ["item 1", "item 2", "item 3"]
    assert stills.skipped[0][1] == "no such file"
    assert "truncated" in stills.skipped[1][1]
    assert stills.skipped[2][1] == "ValueError"
    np.testing.assert_array_equal(stills.labels, [1, 0])
    [warning] = caplog.records
    assert (warning.name, warning.levelname) == ("permenv", "WARNING")
    assert "Rows: 3 of 5 items skipped: item 1 (no such file)" in warning.getMessage()


def test_without_a_usable_item():
    with pytest.raises(DataError, match=r"Rows contains no usable item: item 0 \(broken\), item 1 \(broken\)"):
        images(Rows([OSError("broken")] * 2))


def test_a_fault_of_the_dataset_itself_is_not_hidden():
    with pytest.raises(KeyError, match="column"):
        images(Rows([KeyError("column")]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"images is of type int; pass None for .*folder, a StillImages, .*map-style dataset"),
        (iter([]), "images is of type list_iterator; pass"),
        (b"path", "images is of type bytes; pass"),
        (
            {"train": [], "test": []},
            r"images is of type dict with the keys \['test', 'train'\]; pass one of its values",
        ),
        ([], "images is of type list and empty"),
        (np.zeros((0, 9, 9, 3), np.uint8), "images is of type ndarray and empty"),
        (np.zeros((4, 9, 9, 3)), r"float64 of shape \(4, 9, 9, 3\); pass uint8 \(N, height.*scaled"),
        (torch.zeros(4, 3, 9, 9), r"torch.float32 of shape \(4, 3, 9, 9\); pass uint8"),
        (noise(4, 9, 9), r"shape \(4, 9, 9\); .*grey images need a channel dimension"),
        (noise(4, 9, 9, 2), r"shape \(4, 9, 9, 2\)"),
        (
            [noise(9, 9, 3), noise(9, 9, 3).astype(float)],
            r"item 1 is float64 of shape \(9, 9, 3\); pass a PIL .*scaled",
        ),
        ([noise(0, 9, 3)], r"item 0 is uint8 of shape \(0, 9, 3\)"),
        ([noise(2, 9, 9, 3)], r"item 0 is uint8 of shape \(2, 9, 9, 3\)"),
        (["a.png"], "item 0 is of type str; pass a PIL image"),
        ([{"img": noise(9, 9, 3)}], r"item 0 has no key 'image', only \['img'\]; rename the column"),
        ([Image.new("F", (9, 9))], "item 0 is a PIL image of mode 'F'; convert it"),
    ],
)
def test_other_images_are_refused_with_the_remedy(given, message):
    with pytest.raises(DataError, match=message):
        images(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"videos is of type int; pass None for .*folder, a VideoClips, .*map-style dataset"),
        (noise(4, 9, 9, 3), r"shape \(4, 9, 9, 3\); pass uint8 \(V, frames, height"),
        ([noise(9, 9, 3)], r"item 0 is of shape \(9, 9, 3\); pass a uint8 array \(frames, height"),
        ([[noise(9, 9, 3), 7]], "frame 1 of item 0 is of type int; pass a PIL image"),
        ([Image.new("RGB", (9, 9))], "item 0 is of type Image; pass a uint8 array"),
        ([{"clip": noise(2, 9, 9, 3)}], r"item 0 has no key 'video' or 'frames', only \['clip'\]"),
        ([noise(1, 9, 9, 3)], r"list contains no usable item: item 0 \(fewer than 2 frames: 1\)"),
    ],
)
def test_other_videos_are_refused_with_the_remedy(given, message):
    with pytest.raises(DataError, match=message):
        clips(given)


@pytest.mark.parametrize("make", [images, clips])
def test_a_size_below_one(make):
    with pytest.raises(DataError, match="size 0 of"):
        make([noise(9, 9, 3)], 0)


def test_what_does_not_fit_into_memory_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(arrays, "free_bytes", lambda device: 2 * SIZE * SIZE * 3)
    given = Rows([KeyError("read")] * 3)
    with pytest.raises(
        DataError, match=r"Rows: 3 items of size 12 need 1,296 bytes of memory, but 864 are free; .*folder"
    ):
        images(given)
    with pytest.raises(DataError, match=r"3 items of up to 8 frames of size 12 need 10,368 bytes"):
        clips(given)
    assert len(images([noise(9, 9, 3)] * 2)) == 2
    assert len(clips(noise(1, 2, 9, 9, 3))) == 1, "an array needs memory for the frames that it has"
    with pytest.raises(DataError, match=r"array: 1 items of up to 3 frames of size 12 need 1,296 bytes"):
        clips(noise(1, 3, 9, 9, 3))
