"""A folder of image files as square stills, decoded once and kept in the cache.

Every start reads and hashes all files, which costs no more than the disk does, and decodes only what the
cache does not hold yet. The key is the content, so neither a stale cache nor a new modification time matters.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from permenv.data.cache import Append, cached_rows
from permenv.data.files import UNREADABLE, fingerprint, in_parallel, labels_by_folder, require_folder, summary, walk
from permenv.data.source import DataError, StillImages

RECIPE = 1  # raise it when the same files would give other pixels: their cache entries are made again
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 2**28  # of one image, 0.8 GB decoded; WebP cannot hold more
MAX_BYTES = 2**30  # of one file
IN_FLIGHT = 128  # files handed to the threads before the first one's result is used

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_SCAN = 0xDA  # the marker that ends a JPEG's header
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers that give height and width
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

log = logging.getLogger("permenv")


def image_folder(root: str | Path, size: int, *, progress: bool = True) -> StillImages:
    """Read a folder of images, at any depth, as squares of one size.

    The first folder below `root` is an image's class; images that lie in `root` itself are unlabelled.
    Linked folders are followed, hidden files and folders are not read, and the order is that of the relative
    paths. Every image becomes 8-bit RGB, turned as its EXIF orientation says; an alpha channel is dropped, as
    Pillow's `convert("RGB")` does, and of 16 bits the upper 8 stay. The centre square is cut out and resized:
    shrunk by averaging areas, enlarged bilinearly.

    Files that cannot be read are skipped, listed in `.skipped` and named in a warning.

    Args:
        root: The folder.
        size: Side of the squares in pixels, at least 1.
        progress: Show progress bars where stderr is a terminal.

    Returns:
        The images, memory-mapped from the cache; the fingerprint is a digest of paths, files and `size`.

    Raises:
        DataError: If `size` is below 1, `root` is no folder or holds no image that can be read, a file
            changes while it is read, or the cache cannot be written.
    """
    if size < 1:
        raise DataError(f"images of size {size} were asked for; the size is a number of pixels from 1 on")
    folder = Path(root).expanduser()
    files = _image_files(folder)
    digests = list(
        in_parallel(lambda file: digest(read(folder / file)), files, "reading", progress, "image", IN_FLIGHT)
    )
    key = fingerprint(f"permenv image folder, recipe {RECIPE}, size {size}", files, digests)

    def build(append: Append) -> dict[str, Any]:
        squares = in_parallel(
            lambda item: load(folder / item[0], item[1], size),
            list(zip(files, digests, strict=True)),
            "decoding",
            progress,
            "image",
            IN_FLIGHT,
        )
        skipped = []
        for file, square in zip(files, squares, strict=True):
            if isinstance(square, str):
                skipped.append((file, square))
            else:
                append(square[None])
        if len(skipped) == len(files):
            raise DataError(f"{folder} holds no image that can be read: {summary(skipped)}; {_expected()}")
        return {"folder": str(folder.resolve()), "skipped": skipped}

    pixels, metadata = cached_rows(key, (len(files), size, size, 3), build)
    skipped = tuple((file, reason) for file, reason in metadata["skipped"])
    if skipped:
        log.warning("%s: %d of %d image files skipped: %s", folder, len(skipped), len(files), summary(skipped))
    labels, classes = labels_by_folder(files, {file for file, _ in skipped})
    return StillImages(pixels, labels, classes, folder.resolve().name, key, skipped)


# ---------------------------------------------------------------------------------------------- what is there


def _image_files(root: Path) -> list[str]:
    """Relative POSIX paths of all image files, sorted.

    Raises:
        DataError: If there are none, or `root` is missing, a file or not allowed.
    """
    require_folder(root, "image", _expected())
    files = []
    for folder, names in walk(root):
        if names is None:
            files.append(folder.removesuffix("/"))  # to be named as skipped
        else:
            files += [folder + name for name in names if name.lower().endswith(EXTENSIONS)]
    files.sort()
    if not files:
        raise DataError(f"there are no image files in {root}; {_expected()}")
    return files


# ------------------------------------------------------- one file: the result or, as a str, why there is none


def read(path: Path) -> bytes | str:
    """Read an image file."""
    try:
        if not path.is_file():  # nor wait for a pipe
            return UNREADABLE
        if path.stat().st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES} bytes"
        return path.read_bytes()
    except OSError as fault:
        return str(fault.strerror)


def digest(content: bytes | str) -> bytes:
    """16 bytes that tell one content, or one reason why there is none, from another."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=16).digest()


def load(path: Path, expected: bytes, size: int) -> np.ndarray | str:
    """Read an image file as a square of RGB.

    Args:
        path: The file.
        expected: Digest of its content, or of the reason why there is none.
        size: Side of the square in pixels.

    Returns:
        (size, size, 3) uint8.

    Raises:
        DataError: If the content is not what the fingerprint was made from. It would be kept under a wrong
            key, and one failure of a network drive would cost the image for good.
    """
    content = read(path)
    if digest(content) != expected:
        raise DataError(f"{path} changed while it was read; start again when the folder is complete and still")
    if isinstance(content, str):
        return content
    image = _decode(content)
    return image if isinstance(image, str) else centre_square(image, size)


def _decode(content: bytes) -> np.ndarray | str:
    """Decode to (H, W, 3) uint8 BGR."""
    flaw = _flaw(content)
    if flaw is not None:
        return flaw
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    return "OpenCV cannot decode it" if image is None else image


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """Cut out the centre square of (H, W, 3) BGR and resize it to (size, size, 3) RGB.

    Cut first: it is the short side that gives the scale, so the pixels are the same as if the whole image
    were resized and then cut (within half a pixel of the file's), and nothing is resized in vain.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.cvtColor(cv2.resize(square, (size, size), interpolation=method), cv2.COLOR_BGR2RGB)


def _flaw(content: bytes) -> str | None:
    """Say why a file must not be decoded, None if it may be.

    OpenCV 4 hands back the upper part of a truncated file as if it were the image, and no version has a
    limit below 3 GB.
    """
    pixels, complete = 0, True
    if not content:
        return "empty file"
    if content.startswith(JPEG_START):
        pixels, scan = _jpeg_header(content)
        complete = content.rfind(JPEG_END, scan) >= 0  # in a scan this is no data; what may follow is no matter
    elif content.startswith(PNG_START):
        pixels = int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
        complete = content.rfind(PNG_END) >= 0
    elif content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        complete = len(content) >= 8 + int.from_bytes(content[4:8], "little")
    if pixels > MAX_PIXELS:
        return f"{pixels} pixels are more than the {MAX_PIXELS} allowed"
    return None if complete else "truncated"


def _jpeg_header(content: bytes) -> tuple[int, int]:
    """Step through the segments of a JPEG's header, over any thumbnail in them.

    Returns:
        The number of pixels, and where the compressed data begin (the end of the file if nowhere).
    """
    pixels, at = 0, 2
    while 0 <= (at := content.find(b"\xff", at)) < len(content) - 4:
        marker = content[at + 1]
        if marker in (0x00, 0xFF):  # stray or fill bytes
            at += 1
            continue
        if marker == JPEG_SCAN:
            return pixels, at
        if marker in JPEG_FRAMES:
            pixels = int.from_bytes(content[at + 5 : at + 7], "big") * int.from_bytes(content[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return pixels, len(content)


# ---------------------------------------------------------------------------------------------------- wording


def _expected() -> str:
    return (
        f"give a folder of {', '.join(EXTENSIONS)} files, directly in it or at any depth; "
        "the first folder below it is read as the class: folder/<class>/.../image.jpg"
    )
