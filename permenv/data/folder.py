"""A folder of image files as square stills, decoded once and kept in the cache.

Every start reads and hashes all files, at the speed of the disk, and decodes only what the cache does not hold.
The key is the content of the files, so the cache is never out of date and modification times do not matter.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from permenv.data.cache import Append, cached_rows
from permenv.data.files import UNREADABLE, fingerprint, in_parallel, labels_by_folder, require_folder, summary, walk
from permenv.data.source import DataError, StillImages

RECIPE = 1  # increase it when the same files give other pixels, so that their cache entries are made again
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 2**28  # of one image, 0.8 GB decoded; WebP cannot hold more
MAX_BYTES = 2**30  # of one file
IN_FLIGHT = 128  # files submitted to the threads before the result of the first is used

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_SCAN = 0xDA  # the marker that ends the header of a JPEG
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers that give height and width
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

log = logging.getLogger("permenv")


def image_folder(root: str | Path, size: int, *, progress: bool = True) -> StillImages:
    """Read a folder of images, at any depth, as squares of one size.

    The first folder below `root` is the class of an image; images directly in `root` are unlabelled.
    Links to folders are followed, hidden files and folders are ignored, and images are in the order of their
    relative paths. Every image is converted to 8-bit RGB and rotated according to its EXIF orientation; an alpha
    channel is dropped, as by Pillow's `convert("RGB")`, and of 16 bits the upper 8 are kept. The centre square is
    cut out and resized: area averaging to shrink, bilinear interpolation to enlarge.

    Files that cannot be read are skipped, listed in `.skipped` and named in a warning.

    Args:
        root: The folder.
        size: Side of the squares in pixels, at least 1.
        progress: Show progress bars if stderr is a terminal.

    Returns:
        The images, memory-mapped from the cache; the fingerprint is a digest of paths, files and `size`.

    Raises:
        DataError: If `size` is below 1, `root` is not a folder or contains no readable image, a file changes
            while it is read, or the cache cannot be written.
    """
    if size < 1:
        raise DataError(f"size {size} of images: pass a number of pixels of at least 1")
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
            raise DataError(f"{folder} contains no readable image: {summary(skipped)}; {_expected()}")
        return {"folder": str(folder.resolve()), "skipped": skipped}

    pixels, metadata = cached_rows(key, (len(files), size, size, 3), build)
    skipped = tuple((file, reason) for file, reason in metadata["skipped"])
    if skipped:
        log.warning("%s: %d of %d image files skipped: %s", folder, len(skipped), len(files), summary(skipped))
    labels, classes = labels_by_folder(files, {file for file, _ in skipped})
    return StillImages(pixels, labels, classes, folder.resolve().name, key, skipped)


def _image_files(root: Path) -> list[str]:
    """Relative POSIX paths of all image files, sorted.

    Raises:
        DataError: If there are none, or `root` is missing, is a file or cannot be listed.
    """
    require_folder(root, "image", _expected())
    files = []
    for folder, names in walk(root):
        if names is None:
            files.append(folder.removesuffix("/"))  # named as skipped later
        else:
            files += [folder + name for name in names if name.lower().endswith(EXTENSIONS)]
    files.sort()
    if not files:
        raise DataError(f"there are no image files in {root}; {_expected()}")
    return files


def read(path: Path) -> bytes | str:
    """Read an image file; a str says why it cannot be read."""
    try:
        if not path.is_file():  # reading a pipe would wait
            return UNREADABLE
        if path.stat().st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES} bytes"
        return path.read_bytes()
    except OSError as fault:
        return str(fault.strerror)


def digest(content: bytes | str) -> bytes:
    """16 bytes that identify a content, or a reason why there is none."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=16).digest()


def load(path: Path, expected: bytes, size: int) -> np.ndarray | str:
    """Read an image file as a square of RGB.

    Args:
        path: The file.
        expected: Digest of its content, or of the reason why there is none.
        size: Side of the square in pixels.

    Returns:
        (size, size, 3) uint8, or a str that says why the file cannot be used.

    Raises:
        DataError: If the content has changed since the fingerprint was made. It would be stored under a wrong
            key, and one failure of a network drive would exclude the image for ever.
    """
    content = read(path)
    if digest(content) != expected:
        raise DataError(f"{path} changed while it was read; start again when no process writes to the folder")
    if isinstance(content, str):
        return content
    image = _decode(content)
    return image if isinstance(image, str) else rgb_square(image, size)


def _decode(content: bytes) -> np.ndarray | str:
    """Decode to (H, W, 3) uint8 BGR, or say why the content cannot be decoded."""
    import cv2

    flaw = _flaw(content)
    if flaw is not None:
        return flaw
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    return "OpenCV cannot decode it" if image is None else image


def rgb_square(image: np.ndarray, size: int) -> np.ndarray:
    """Turn an image as OpenCV decodes it, (H, W, 3) BGR, into its centre square, (size, size, 3) RGB."""
    import cv2

    return cv2.cvtColor(centre_square(image, size), cv2.COLOR_BGR2RGB)


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """Cut out the centre square of an image and resize it.

    The short side gives the scale, so cutting first gives the same pixels as resizing the whole image first, within
    half a pixel of the file, and is cheaper.

    Args:
        image: (H, W, 3) uint8, channels in any order.
        size: Side of the square in pixels.

    Returns:
        (size, size, 3) uint8, channels in the same order.
    """
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=method)


def _flaw(content: bytes) -> str | None:
    """Say why a file must not be decoded, None if it may be.

    OpenCV 4 returns the upper part of a truncated file without an error, and no version has a size limit below 3 GB.
    """
    pixels, complete = 0, True
    if not content:
        return "empty file"
    if content.startswith(JPEG_START):
        pixels, scan = _jpeg_header(content)
        complete = content.rfind(JPEG_END, scan) >= 0  # these bytes do not occur in a scan; more may follow
    elif content.startswith(PNG_START):
        pixels = int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
        complete = content.rfind(PNG_END) >= 0
    elif content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        complete = len(content) >= 8 + int.from_bytes(content[4:8], "little")
    if pixels > MAX_PIXELS:
        return f"{pixels} pixels are more than the {MAX_PIXELS} allowed"
    return None if complete else "truncated"


def _jpeg_header(content: bytes) -> tuple[int, int]:
    """Step through the segments of a JPEG header and over thumbnails in them.

    Returns:
        The number of pixels, and the position of the compressed data (the end of the file if there are none).
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


def _expected() -> str:
    return (
        f"pass a folder of {', '.join(EXTENSIONS)} files, at any depth; "
        "the first folder below it is the class: folder/<class>/.../image.jpg"
    )
