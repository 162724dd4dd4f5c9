"""Mutated files: each is refused by name, or gives what a reference decoder that finds no fault reads.

`pytest -m long tests/permenv/data/test_mutations.py -s` tries two thousand, or PERMENV_MUTATIONS, and prints a table.
"""

import io
import os
import time
from collections import Counter
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from permenv.data.cache import cached_rows
from permenv.data.clip_files import evenly_spaced
from permenv.data.decode import centre_square
from permenv.data.folder import ImageFiles, image_folder
from permenv.data.messages import DataError
from permenv.data.splits import official_split
from permenv.data.store import Store
from permenv.data.videos import video_folder

LONGEST = 10.0
"""Seconds that a file may take."""
MOST_MEMORY = 3e9
"""Bytes by which the memory may grow at most; an image of 2^27 pixels takes 0.4 GB decoded."""
SIZE, MAX_FRAMES = 16, 8
CLIPS = [f"{label}/v_{label}_g{group:02}_c01.avi" for label in ("Bend", "Jump") for group in (1, 2, 3)]
LIST = "".join(f"{clip} 1\n" for clip in CLIPS[:4]).encode()

pytestmark = pytest.mark.usefixtures("cache")


# Files


def picture(seed, shape=(40, 56, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(format, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(picture(0)).resize((112, 80)).convert(mode).save(file, format, **options)
    return file.getvalue()


def film(fourcc, extension, folder):
    path = folder / f"whole{extension}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), 25, (56, 40))
    for place in range(12):
        writer.write(cv2.resize(picture(place, (5, 7, 3)), (56, 40)))
    writer.release()
    return path.read_bytes()


def animation():
    file = io.BytesIO()
    first, *others = (Image.fromarray(picture(place)) for place in range(12))
    first.save(file, "GIF", save_all=True, append_images=others, duration=40)
    return file.getvalue()


IMAGES = {
    "JPEG": (".jpg", lambda: encoded("JPEG", quality=80)),
    "JPEG, progressive": (".jpg", lambda: encoded("JPEG", quality=80, progressive=True)),
    "JPEG, grey": (".jpg", lambda: encoded("JPEG", "L")),
    "PNG": (".png", lambda: encoded("PNG")),
    "PNG, palette": (".png", lambda: encoded("PNG", "P")),
    "WebP": (".webp", lambda: encoded("WEBP", quality=80)),
    "WebP, lossless": (".webp", lambda: encoded("WEBP", lossless=True)),
}
VIDEOS = {"AVI": ("MJPG", ".avi"), "MP4": ("mp4v", ".mp4"), "WebM": ("VP80", ".webm"), "MPEG": ("mpg1", ".mpg")}


def mutate(content, rng):
    """Change some bytes of a file, in one to three ways."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        length = len(content)
        if not length:
            break
        start = int(rng.integers(length if rng.random() < 0.5 else min(length, 200)))  # headers are short
        end = min(length, start + int(2 ** rng.uniform(0, 9)))
        match rng.integers(8):
            case 0:
                content[start] ^= 1 << int(rng.integers(8))
            case 1:
                content[start:end] = rng.bytes(end - start)
            case 2:
                content[start:end] = bytes(end - start)
            case 3:
                content[start:end] = b"\xff" * (end - start)
            case 4:
                del content[start:end]
            case 5:
                content[start:start] = rng.bytes(end - start)
            case 6:
                content[start:start] = content[start:end]
            case 7:
                del content[start:]
    return bytes(content)


# Readers: each returns "named" or "used", and fails where neither is right


def read_image(kind, content, place):
    extension, _ = IMAGES[kind]
    (place / f"file{extension}").write_bytes(content)
    try:
        images = image_folder(place, SIZE, progress=False)
    except DataError as error:
        assert f"file{extension} (" in str(error)  # noqa: PT017
        return "named"
    with Image.open(io.BytesIO(content)) as image:  # finds no fault, or raises
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(images.pixels[0], centre_square(expected, SIZE))
    return "used"


def read_video(extension, content, place):
    path = place / f"file{extension}"
    path.write_bytes(content)
    try:
        clips = video_folder(place, SIZE, max_frames=MAX_FRAMES, progress=False)
    except DataError as error:
        assert f"file{extension} (" in str(error)  # noqa: PT017
        return "named"
    # FFmpeg conceals damage, with several threads in another way each time. So the reference is what OpenCV alone reads
    # from the first frame to the last, with one.
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), []
    while (found := capture.read())[0]:
        frames.append(centre_square(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB), SIZE))
    np.testing.assert_array_equal(clips.frames.pixels, np.stack(frames)[evenly_spaced(len(frames), MAX_FRAMES)])
    return "used"


def read_list(content, place):
    (place / "trainlist01.txt").write_bytes(content)
    (place / "testlist01.txt").write_text("".join(f"{clip}\n" for clip in CLIPS[4:]))
    try:
        split = official_split(place, 1, CLIPS)
    except DataError as error:
        assert "list" in str(error)  # noqa: PT017
        return "named"
    expected = set()
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        *words, last = line.split() or [""]
        clip = line.strip().removesuffix(last).rstrip() if words and last.isdecimal() else line.strip()
        expected |= {clip} - {""}
    assert split.train == expected
    return "used"


ROWS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def read_cache(name, rng, place):
    """Damage an entry; it is used as it was or made again."""
    built = []

    def build(append):
        append(ROWS)
        built.append(True)

    cached_rows("key", ROWS.shape, build)
    path = Path(os.environ["PERMENV_CACHE"]) / "key" / name
    path.write_bytes(mutate(path.read_bytes(), rng))
    built.clear()
    rows = cached_rows("key", ROWS.shape, build)
    np.testing.assert_array_equal(rows, ROWS)
    return "named" if built else "used"


def read_store(pattern, rng, place):
    """Damage a shard of a store; it is used as it was or made again."""
    for number in range(5):
        (place / f"{number}.png").write_bytes(cv2.imencode(".png", picture(number))[1].tobytes())
    expected = np.asarray(image_folder(place, SIZE, progress=False).pixels)
    [path] = Path(os.environ["PERMENV_CACHE"]).glob(f"images-{_store_of(place)}/{pattern}")
    content = path.read_bytes()
    damaged = mutate(content, rng)
    path.write_bytes(damaged)
    images = image_folder(place, SIZE, progress=False)
    np.testing.assert_array_equal(images.pixels, expected)
    return "used" if path.read_bytes() == damaged else "named"


def _store_of(place):
    return Store(ImageFiles(str(place.resolve()), [], SIZE)).folder.name.removeprefix("images-")


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """By kind, a function from a generator and a folder to what became of a mutated file."""

    def of_images(kind):
        whole = cache(IMAGES[kind][1])
        return lambda rng, place: read_image(kind, mutate(whole(), rng), place)

    def of_videos(extension, whole):
        return lambda rng, place: read_video(extension, mutate(whole(), rng), place)

    folder = tmp_path_factory.mktemp("videos")
    films = {
        kind: (extension, cache(lambda fourcc=fourcc, extension=extension: film(fourcc, extension, folder)))
        for kind, (fourcc, extension) in VIDEOS.items()
    }
    films["GIF"] = ".gif", cache(animation)
    return {
        **{kind: of_images(kind) for kind in IMAGES},
        **{kind: of_videos(*made) for kind, made in films.items()},
        "list of a split": lambda rng, place: read_list(mutate(LIST, rng), place),
        "cache, pixels": lambda rng, place: read_cache("array.bin", rng, place),
        "cache, index": lambda rng, place: read_cache("index.json", rng, place),
        "store, images": lambda rng, place: read_store("*.images", rng, place),
        "store, index": lambda rng, place: read_store("*.safetensors", rng, place),
    }


def attack(readers, count, folder):
    """Read so many mutated files of each kind; return by kind what became of them."""
    table = {}
    for number, (kind, read) in enumerate(readers.items()):
        table[kind] = Counter({"named": 0, "used": 0})
        for seed in range(count):
            place = folder / f"{number}-{seed}"
            place.mkdir()
            start = time.perf_counter()
            table[kind][read(np.random.default_rng([number, seed]), place)] += 1
            assert time.perf_counter() - start < LONGEST, f"{kind}, seed {seed}"
    return table


def peak_memory():
    """Bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.ci
def test_mutated_files_are_named_or_read_as_by_a_reference(readers, tmp_path):
    table = attack(readers, 12, tmp_path)
    assert table["cache, pixels"]["named"] == 12
    assert sum(row["named"] for row in table.values()) > 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_thousand_mutated_files(readers, tmp_path, capsys):
    before = peak_memory()
    count = -(-int(os.environ.get("PERMENV_MUTATIONS", "2000")) // len(readers))
    table = attack(readers, count, tmp_path)
    with capsys.disabled():
        print("\n| kind | tried | named | read as by the reference |\n|---|---|---|---|")
        for kind, row in table.items():
            print(f"| {kind} | {sum(row.values())} | {row['named']} | {row['used']} |")
    assert peak_memory() - before < MOST_MEMORY
