"""A store keeps what was decoded, finds what has changed, and makes again what is damaged."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from permenv.data import store, stored
from permenv.data.cache import CacheError
from permenv.data.files import content_digest, state_of
from permenv.data.folder import image_folder
from permenv.data.messages import DataError
from permenv.data.store import Store
from permenv.data.stored import StoredImages
from tests.helpers import fail_to_lock

COUNT, SIZE = 60, 24


@dataclass
class Files:
    """A source whose files hold a seed, or the word "bad"; it remembers what was read."""

    root: Path
    items: list[str]
    size: int = SIZE
    name: str = "tests"
    reads: list[str] = field(default_factory=list)
    decoded: list[str] = field(default_factory=list)

    unit, most, lossless = "file", 1, False

    def path(self, item):
        return f"{self.root}/{self.items[item]}"

    def state(self, item):
        return state_of(self.path(item))

    def read(self, item):
        self.reads.append(self.items[item])
        try:
            content = Path(self.path(item)).read_bytes()
        except OSError as fault:
            return store.unusable(fault.strerror, readable=False)
        return store.Content(content_digest(content), True, lambda: self.squares(item, content))

    def squares(self, item, content):
        self.decoded.append(self.items[item])
        return "not a seed" if content == b"bad" else ([picture(int(content), self.size)], "")


class Films(Files):
    """A source of clips: a seed gives one, two or three images, and odd seeds a remark."""

    most, lossless = 3, True

    def squares(self, item, content):
        made = super().squares(item, content)
        if isinstance(made, str):
            return made
        return film(int(content), self.size), "odd" if int(content) % 2 else ""


def film(seed, size=SIZE):
    """One to three images, each (size, size, 3) uint8."""
    return [picture(seed + place, size) for place in range(seed % 3 + 1)]


def picture(seed, size=SIZE):
    """Smooth colours, (size, size, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, cache):
    """Let shards have some eight files, and let files that were just written be taken for settled."""
    monkeypatch.setattr(store, "IMAGES", 8)
    monkeypatch.setattr(store, "FEWEST", 1)
    monkeypatch.setattr(store, "UNSETTLED", 0)


@pytest.fixture(params=["raw", "JPEG"])
def encoding(request, monkeypatch):
    """Keep images raw and as JPEG."""
    if request.param == "JPEG":
        monkeypatch.setattr(store, "RAW_BYTES", 0)
    return request.param


@pytest.fixture
def root(tmp_path):
    """Write the files, of which every tenth is bad."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(COUNT):
        write(folder, number, "bad" if number % 10 == 9 else number)
    return folder


def write(folder, number, content):
    (folder / f"{number:03}").write_text(str(content))


def opened(root, kind=Files, **options):
    """Open the store of a folder as a new process would."""
    made = Store(kind(root, sorted(path.name for path in root.iterdir())))
    made.open(progress=False, **options)
    return made


def images_of(made):
    return StoredImages(made, made.counts > 0)


def expected_of(numbers, encoding):
    """What a store holds of these seeds, made plainly, with another decoder."""
    squares = [picture(number) for number in numbers]
    if encoding == "raw":
        return np.stack(squares)
    files = [simplejpeg.encode_jpeg(square, 95, "RGB", "420") for square in squares]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


GOOD = [number for number in range(COUNT) if number % 10 != 9]


def assert_holds(made, encoding, numbers=GOOD):
    np.testing.assert_array_equal(images_of(made)[:], expected_of(numbers, encoding))


# Building and opening


def test_what_is_kept_is_as_by_a_plain_reference(root, encoding):
    made = opened(root)
    assert_holds(made, encoding)
    assert len(made.shards) > 3
    assert sorted(made.source.reads) == made.source.items  # once each
    assert [number for number, remark in enumerate(made.remarks) if remark == "not a seed"] == [*range(9, COUNT, 10)]
    contents = [(root / file).read_bytes() for file in made.source.items]
    assert made.digests == [hashlib.blake2b(content, digest_size=16).digest() for content in contents]


def test_kept_jpegs_are_close_to_the_pixels(root, monkeypatch):
    monkeypatch.setattr(store, "RAW_BYTES", 0)
    pixels = images_of(opened(root))[:].astype(float)
    assert np.sqrt(np.mean((pixels - expected_of(GOOD, "raw")) ** 2)) < 4


def test_a_set_of_just_the_limit_is_raw(root, monkeypatch):
    monkeypatch.setattr(store, "RAW_BYTES", COUNT * SIZE**2 * 3)
    assert not opened(root).jpeg
    monkeypatch.setattr(store, "RAW_BYTES", COUNT * SIZE**2 * 3 - 1)
    assert opened(root).jpeg


def test_the_second_start_reads_no_file(root, encoding):
    opened(root)
    again = opened(root)
    assert again.source.reads == []
    assert_holds(again, encoding)


def test_files_that_have_just_changed_are_read_again(root, monkeypatch):
    monkeypatch.setattr(store, "UNSETTLED", 10**12)
    opened(root)
    monkeypatch.setattr(store, "UNSETTLED", 0)
    assert len(opened(root).source.reads) == COUNT
    assert opened(root).source.reads == []


def stamps(made):
    return {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.images")}


def test_a_changed_file_is_found_and_only_its_shard_is_written(root, encoding):
    before = stamps(opened(root))
    write(root, 20, 1020)
    after = opened(root)
    assert after.source.reads == ["020"]
    assert_holds(after, encoding, [1020 if number == 20 else number for number in GOOD])
    assert len(before.items() - stamps(after).items()) == len(stamps(after).items() - before.items()) == 1


def test_a_file_with_another_time_is_read_and_nothing_else_happens(root):
    before = stamps(opened(root))
    os.utime(root / "020")
    assert opened(root).source.reads == ["020"]
    again = opened(root)
    assert again.source.reads == []
    assert stamps(again) == before


def test_new_and_missing_files_concern_few_shards_and_no_other_file_is_read(root, encoding):
    before = stamps(opened(root))
    (root / "0105").write_text("2000")
    (root / "040").unlink()
    after = opened(root)
    assert_holds(after, encoding, [*GOOD[:10], 2000, *(number for number in GOOD[10:] if number != 40)])
    assert after.source.reads == after.source.decoded == ["0105"]
    assert 0 < len(stamps(after).items() - before.items()) <= 2 * 2
    assert len(list(after.folder.iterdir())) == 2 * len(after.shards)


def test_a_file_that_has_moved_to_another_shard_and_was_touched_is_read_but_not_decoded(root, encoding):
    made = opened(root)
    [part] = [part for part in made._parts if part.start <= 20 < part.stop]
    (root / "0195").write_text("2000")
    os.utime(root / "020")
    after = opened(root)
    assert sorted(after.source.reads) == ["0195", "020"]
    assert after.source.decoded == ["0195"]
    assert part.name not in [part.name for part in after._parts]
    assert_holds(after, encoding, [*GOOD[:18], 2000, *GOOD[18:]])


def test_verification_finds_what_a_start_does_not(root, encoding, monkeypatch):
    monkeypatch.setattr(Files, "state", lambda source, item: (1, 1))  # as if size and time could not tell
    opened(root)
    write(root, 20, 1020)
    assert_holds(opened(root), encoding)
    verified = opened(root, verify=True)
    assert len(verified.source.reads) == COUNT
    assert_holds(verified, encoding, [1020 if number == 20 else number for number in GOOD])


def test_a_file_that_changes_while_it_is_read_is_not_kept(root):
    class Changing(Files):
        def read(self, item):
            content = super().read(item)
            if self.items[item] == "058":
                write(root, 58, 12345)
            return content

    made = Store(Changing(root, sorted(path.name for path in root.iterdir())))
    with pytest.raises(DataError, match="058 changed while it was read; start again"):
        made.open(progress=False)
    assert len(opened(root).source.reads) <= 2 * 8  # the shards before it are there


# Items of several images


def assert_holds_films(made, numbers=GOOD):
    np.testing.assert_array_equal(images_of(made)[:], [square for number in numbers for square in film(number)])


def test_all_images_of_an_item_are_kept_without_loss(root, monkeypatch):
    monkeypatch.setattr(store, "RAW_BYTES", 0)
    opened(root, Films)
    made = opened(root, Films)
    assert made.source.reads == []
    assert_holds_films(made)
    assert made.counts.tolist() == [0 if number % 10 == 9 else number % 3 + 1 for number in range(COUNT)]
    expected = ["not a seed" if number % 10 == 9 else "odd" if number % 2 else "" for number in range(COUNT)]
    assert made.remarks == expected
    assert made.faults == [remark.replace("odd", "") for remark in expected]


def test_shards_have_fewer_items_where_these_have_more_images(root, monkeypatch):
    assert len(opened(root, Films).shards) > len(opened(root).shards)
    monkeypatch.setattr(store, "FEWEST", 100)
    assert len(Store(Films(root, [f"{number:03}" for number in range(COUNT)]))._parts) == 1


def test_of_items_of_several_images_the_changed_and_the_damaged_are_made_again(root):
    opened(root, Films)
    write(root, 20, 1021)
    after = opened(root, Films)
    assert after.source.decoded == ["020"]
    assert_holds_films(after, [1021 if number == 20 else number for number in GOOD])
    write(root, 20, 20)
    made = opened(root, Films)
    flip(made.shards[0].path, 0)
    again = opened(root, Films)
    assert_holds_films(again)
    assert again.source.decoded == ["000"]


# Kills


def build_until_killed(root, reached):
    """Build a store, set the event in the middle, and never finish."""
    store.IMAGES, store.FEWEST, store.UNSETTLED, store.IN_FLIGHT = 8, 1, 0, 1

    class Stopping(Files):
        def read(self, item):
            if self.items[item] == "040":
                reached.set()
                time.sleep(600)
            return super().read(item)

    Store(Stopping(root, sorted(path.name for path in root.iterdir()))).open(progress=False)


def test_a_build_that_was_killed_loses_at_most_a_shard(root, cache):
    spawn = multiprocessing.get_context("spawn")
    reached = spawn.Event()
    process = spawn.Process(target=build_until_killed, args=(root, reached))
    process.start()
    assert reached.wait(200)
    process.kill()
    process.join()
    assert list(cache.glob("temporary-*"))

    made = opened(root)

    assert_holds(made, "raw")
    [part] = [part for part in made._parts if part.start <= 40 < part.stop]
    assert made.source.reads == made.source.items[part.start :]
    assert not list(cache.glob("temporary-*"))


def test_whoever_needs_a_store_that_is_being_built_waits_for_it(root, encoding):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: opened(root), range(4)))
    assert sorted(len(each.source.reads) for each in made) == [0, 0, 0, COUNT]
    for each in made:
        assert_holds(each, encoding)


def test_without_file_locks_a_store_is_built_all_the_same(root, monkeypatch):
    fail_to_lock(monkeypatch, errno.ENOSYS)
    assert_holds(opened(root), "raw")


# Damage


def flip(path, place=-5):
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


def one_shard(made):
    return made.folder / f"{made.shards[2].name}.safetensors", made.shards[2].path


DAMAGE = {
    "index flipped": lambda index, images: flip(index),
    "header flipped": lambda index, images: flip(index, 20),
    "index cut": lambda index, images: index.write_bytes(index.read_bytes()[:-9]),
    "index empty": lambda index, images: index.write_bytes(b""),
    "index of another": lambda index, images: index.write_bytes(min(index.parent.glob("*.safetensors")).read_bytes()),
    "index a pipe": lambda index, images: [index.unlink(), os.mkfifo(index)],
    "index to nowhere": lambda index, images: [index.unlink(), index.symlink_to(index.parent / "nowhere")],
    "images cut": lambda index, images: images.write_bytes(images.read_bytes()[:-9]),
    "images missing": lambda index, images: images.unlink(),
    "images a pipe": lambda index, images: [images.unlink(), os.mkfifo(images)],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_cannot_be_opened_is_named_and_made_again(root, damage, caplog):
    made = opened(root)
    DAMAGE[damage](*one_shard(made))
    again = opened(root)
    assert made.shards[2].name in caplog.text
    assert 0 < len(again.source.reads) <= 2 * 8
    assert_holds(again, "raw")
    assert opened(root).source.reads == []


def test_a_damaged_image_is_made_again_when_it_is_read(root, encoding, caplog):
    _, images = one_shard(opened(root))
    flip(images)
    made = opened(root)
    assert made.source.reads == []  # a start does not read images
    assert_holds(made, encoding)
    assert f"{images} is damaged" in caplog.text
    assert len(made.source.reads) == 1
    assert_holds(opened(root), encoding)


def test_verification_makes_a_damaged_image_again(root, encoding):
    _, images = one_shard(opened(root))
    whole = images.read_bytes()
    flip(images)
    opened(root, verify=True)
    assert images.read_bytes() == whole


def test_a_damaged_image_whose_file_has_changed_ends_the_run(root, encoding):
    made = opened(root)
    flip(one_shard(made)[1])
    made = opened(root)
    last = made._parts[2].stop - 1
    write(root, last - (last % 10 == 9), 77777)
    with pytest.raises(DataError, match=r"is damaged, and the file has changed since; start again"):
        images_of(made)[:]
    assert images_of(opened(root)).shape == (len(GOOD), SIZE, SIZE, 3)


def test_a_full_disk_is_named_and_what_was_built_is_kept(root):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store.IMAGES = 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * SIZE**2 * 3, hard))  # no shard may be larger
    try:
        with pytest.raises(CacheError, match=r"cannot be written.*PERMENV_CACHE"):
            opened(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resumed = opened(root)
    assert_holds(resumed, "raw")
    assert len(resumed.source.reads) < COUNT


# Reading


def test_images_are_read_like_an_array(root, encoding):
    images, plain = images_of(opened(root)), expected_of(GOOD, encoding)
    assert (images.shape, images.nbytes, images.dtype, images.ndim) == (plain.shape, plain.nbytes, plain.dtype, 4)
    nothing, third = np.array([], np.int64), np.arange(len(GOOD)) % 3 == 0
    for key in (3, -1, slice(5, 50, 7), slice(None, None, -1), [4, 0, 4], np.array([7, 1], np.uint8), third, nothing):
        np.testing.assert_array_equal(images[key], plain[key])
    np.testing.assert_array_equal(np.asarray(images), plain)
    for outside in (len(GOOD), -len(GOOD) - 1):
        with pytest.raises(IndexError):
            images[outside]


def test_what_is_read_ahead_is_what_is_read(root, encoding):
    images, rng = images_of(opened(root)), np.random.default_rng(0)
    batches = [rng.integers(len(GOOD), size=20) for _ in range(30)]
    for batch in batches:
        images.announce(batch)
    for batch in reversed(batches):  # most were dropped, none comes in turn
        np.testing.assert_array_equal(images.read(batch), expected_of(GOOD, encoding)[batch])
    assert len(images._ahead) == 0


def test_a_batch_that_was_read_ahead_belongs_to_whoever_reads_it(root, encoding):
    images, batch = images_of(opened(root)), np.arange(9)
    images.announce(batch)
    images.read(batch).zero_()
    np.testing.assert_array_equal(images.read(batch), expected_of(GOOD, encoding)[:9])


def test_damage_that_is_found_ahead_is_repaired(root, monkeypatch):
    monkeypatch.setattr(store, "RAW_BYTES", 0)
    flip(one_shard(opened(root))[1])
    images = images_of(opened(root))
    batch = np.arange(len(GOOD))
    images.announce(batch)
    np.testing.assert_array_equal(images.read(batch), expected_of(GOOD, "JPEG"))


def test_images_are_pickled_without_their_pixels(root, encoding):
    images = images_of(opened(root))
    images.announce(np.arange(3))
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy[:], expected_of(GOOD, encoding))


def test_pickled_images_that_have_been_replaced_are_refused(root):
    content = pickle.dumps(images_of(opened(root)))
    write(root, 20, 1020)
    opened(root)
    with pytest.raises(DataError, match="has been replaced, because the images have changed; start again"):
        pickle.loads(content)


# Folders


def test_the_fingerprint_of_jpegs_tells_what_is_kept(tmp_path, monkeypatch):
    for seed in range(3):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    raw = image_folder(tmp_path, 16)
    key = hashlib.blake2b(b"permenv image folder, recipe 3, size 16\0", digest_size=16)  # as before there was a store
    for seed in range(3):
        content = (tmp_path / f"{seed}.png").read_bytes()
        key.update(f"{seed}.png".encode() + b"\0" + hashlib.blake2b(content, digest_size=16).digest())
    assert raw.fingerprint == key.hexdigest()

    monkeypatch.setattr(store, "RAW_BYTES", 0)
    jpeg = image_folder(tmp_path, 16)
    assert jpeg.fingerprint == image_folder(tmp_path, 16).fingerprint != raw.fingerprint
    monkeypatch.setattr(store, "QUALITY", 90)
    assert image_folder(tmp_path, 16).fingerprint != jpeg.fingerprint


def test_jpegs_on_a_device_and_in_batches_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RAW_BYTES", 0)
    for seed in range(5):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    images, batch = image_folder(tmp_path, 16), np.array([4, 0, 0])
    assert images.read_ahead == stored.READ_AHEAD
    images.announce(batch, torch.device("cpu"))
    taken = images.take(batch, torch.device("cpu"))
    np.testing.assert_array_equal(taken, np.asarray(images.pixels)[batch])
