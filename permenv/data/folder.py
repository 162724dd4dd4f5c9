"""A folder of image files as square stills, read and decoded once and kept in a store, see `permenv.data.store`."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from permenv.data.files import (
    Budget,
    content_digest,
    data_folder,
    fingerprint,
    labels_by_folder,
    read_regular,
    state_of,
    summary,
    walk,
)
from permenv.data.kept import KeptImages
from permenv.data.source import DataError, StillImages, log
from permenv.data.store import Content, Squares, Store, unreadable

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

RECIPE = 3  # increase it when the same files give other pixels, so that they are decoded again
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 2**27  # of one image, 0.4 GB decoded
MAX_BYTES = 2**30  # of one file

decoding = Budget(2 * MAX_PIXELS)
"""The pixels that the threads of this process decode at a time. Ten photos of 24 megapixels are fewer."""


def image_folder(root: str | Path, size: int, *, verify: bool = False, progress: bool = True) -> StillImages:
    """Read a folder of images, at any depth, as squares of one size.

    The first folder below `root` is the class of an image; images directly in `root` are unlabelled.
    Links to folders are followed, each real folder is read once, hidden files and folders are ignored, and images are
    in the order of their relative paths. Every image is converted to 8-bit RGB and rotated according to its EXIF
    orientation; an alpha channel is dropped, as by Pillow's `convert("RGB")`, and of 16 bits the upper 8 are kept. The
    centre square is cut out and resized: area averaging to shrink, bilinear interpolation to enlarge.

    Files that cannot be read are skipped, listed in `.skipped` and named in a warning; damaged files too, even if most
    of their pixels could be decoded. Of identical files the first is used and the others are skipped, so that a copy of
    a held-out image is never trained on.

    The squares are kept in a store, of at most 4 GiB as they are, of more as JPEG (`permenv.data.store`). A later start
    finds changed files by their size and time.

    Args:
        root: The folder.
        size: Side of the squares in pixels, at least 1.
        verify: Read all files and all that is kept of them again, and make again what is damaged or has changed. It
            finds what a start does not see: files changed under the same size and time.
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        The images, read from the store when they are needed; the fingerprint is a digest of paths, files and `size`,
        and of what is kept where that is JPEG.

    Raises:
        DataError: If `size` is below 1, `root` is not a folder or contains no readable image, a file changes
            while it is read, the cache cannot be written, or images must be decoded while Pillow is set to accept
            damaged ones (`PIL.ImageFile.LOAD_TRUNCATED_IMAGES`).
    """
    if size < 1:
        raise DataError(f"size {size} of images: pass a number of pixels of at least 1")
    folder = data_folder(root, "image", _expected())
    files = _image_files(folder)
    store = Store(ImageFiles(str(folder.resolve()), files, size))
    store.open(verify=verify, progress=progress)

    faults = store.faults
    skipped = tuple((file, fault) for file, fault in zip(files, faults, strict=True) if fault)
    if len(skipped) == len(files):
        raise DataError(f"{folder} contains no readable image: {summary(skipped)}; {_expected()}")
    if skipped:
        log.warning("%s: %d of %d image files skipped: %s", folder, len(skipped), len(files), summary(skipped))

    recipe = f"permenv image folder, recipe {RECIPE}, size {size}"
    if store.jpeg:  # what these decode to are the data
        checksums = b"".join([shard.index.checksums.tobytes() for shard in store.shards])
        recipe = f"{recipe}, {store.encoding}, {content_digest(checksums).hex()}"
    labels, classes = labels_by_folder(files, {file for file, _ in skipped})
    return StillImages(
        KeptImages(store, np.array([not fault for fault in faults])),
        labels,
        classes,
        folder.resolve().name,
        fingerprint(recipe, files, store.digests),
        skipped,
    )


def file_names(images: StillImages) -> list[str]:
    """List the files of what `image_folder` returned: (N,), the path of each image within the folder, with slashes.

    Raises:
        DataError: If it is another set of images.
    """
    pixels = images.pixels if images.moved_from is None else images.moved_from.pixels
    if not isinstance(pixels, KeptImages) or not isinstance(pixels.source, ImageFiles):
        raise DataError(f"{images.name} is not what image_folder returned, so its images have no files")
    skipped = {name for name, _ in images.skipped}
    return [name for name in pixels.source.items if name not in skipped]


@dataclass(frozen=True)
class ImageFiles:
    """Image files as the source of a store, see `permenv.data.store.Source`.

    Args:
        root: Absolute path of the folder.
        items: Relative POSIX paths of the files.
        size: Side of the squares in pixels.
    """

    root: str
    items: list[str] = field(repr=False)
    size: int

    unit = "image"
    most = 1
    lossless = False

    @property
    def name(self) -> str:
        """The folder, and how its files are decoded."""
        return f"recipe {RECIPE}, {self.root}"

    def path(self, item: int) -> str:
        """Where a file is."""
        return f"{self.root}/{self.items[item]}"

    def state(self, item: int) -> tuple[int, int]:
        """Size and time of a file."""
        return state_of(self.path(item))

    def read(self, item: int) -> Content:
        """Read a file, which is decoded to (size, size, 3) uint8 RGB."""
        content = read(Path(self.path(item)))
        if isinstance(content, str):
            return unreadable(content)

        def squares() -> Squares | str:
            square = decode(content, self.size)
            return square if isinstance(square, str) else ([square], "")

        return Content(content_digest(content), True, squares)


def _image_files(root: Path) -> list[str]:
    """Relative POSIX paths of all image files, sorted.

    Raises:
        DataError: If there are none.
    """
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
        return read_regular(path, MAX_BYTES)
    except OSError as fault:
        return str(fault.strerror)


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
            key, and one failure of a network drive would exclude the image for ever. Or if a setting of Pillow, global
            to the process, would decide whether the image is used.
    """
    content = read(path)
    if content_digest(content) != expected:
        raise DataError(f"{path} changed while it was read; start again when no process writes to the folder")
    if isinstance(content, str):
        return content
    return decode(content, size)


def decode(content: bytes, size: int | None = None, *, upright: bool = True) -> np.ndarray | str:
    """Decode to uint8 RGB, or say why the content cannot be decoded.

    Threads that decode wait for each other where their images have too many pixels, see `decoding`.

    Args:
        content: Of a file.
        size: S, side of the centre square that is cut out and resized; None for the whole image.
        upright: Rotate and mirror the pixels according to their EXIF orientation.

    Returns:
        (S, S, 3) or (H, W, 3) uint8, or a str that says why there is none.

    Raises:
        DataError: If a setting of Pillow would decide whether the image is used, see `load`.
    """
    from PIL import Image, ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so that Pillow would fill up damaged images instead of "
            "reporting them; set it to False"
        )
    try:
        image = _open(content)
        if image is None:
            return "not a JPEG, PNG or WebP file" if content else "empty file"
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            return f"{pixels} pixels are more than the {MAX_PIXELS} allowed"
        with decoding.using(pixels):
            rgb = _jpeg(content) if image.format == "JPEG" else _png_or_webp(content, image)
            rgb = _upright(rgb, image) if upright else rgb
            return rgb if size is None else centre_square(rgb, size)
    except Image.DecompressionBombError as fault:  # from Pillow 13 on, of a WebP above twice Pillow's own limit
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and 2 * limit < MAX_PIXELS:
            raise DataError(
                f"PIL.Image.MAX_IMAGE_PIXELS is {limit}, so that Pillow refuses images of fewer than the {MAX_PIXELS} "
                f"pixels allowed; set it to at least {MAX_PIXELS // 2}"
            ) from fault
        return f"its pixels are more than the {MAX_PIXELS} allowed"
    except (EOFError, OSError, SyntaxError, ValueError) as fault:  # what the decoders raise
        return f"damaged or unsupported: {fault}"


def _open(content: bytes) -> ImageFile | None:
    """Read the header of a JPEG, PNG or WebP, None if the content is none of them.

    `Image.open` would also apply Pillow's limit of pixels, which is global to the process.
    """
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    if content.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(BytesIO(content))
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(content))
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(content))
    return None


def _jpeg(content: bytes) -> np.ndarray:
    """Decode a JPEG to (H, W, 3) uint8 RGB.

    What libjpeg only warns of, such as missing data, is an error, and so is chroma subsampling of a rare kind.
    """
    import simplejpeg

    return simplejpeg.decode_jpeg(content, "RGB", strict=True)


def _png_or_webp(content: bytes, image: ImageFile) -> np.ndarray:
    """Decode the first frame of an opened PNG or WebP to (H, W, 3) uint8 RGB."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    else:
        image.info.pop("transparency", None)  # convert("RGB") drops it with a warning
        rgb = np.asarray(image.convert("RGB"))
    type(image)(BytesIO(content)).verify()  # the checksums and the end of a PNG, which decoding ignores
    return rgb


def _upright(rgb: np.ndarray, image: ImageFile) -> np.ndarray:
    """Rotate and mirror pixels according to the EXIF orientation of their image."""
    from PIL.ExifTags import Base

    try:
        orientation = image.getexif().get(Base.Orientation)
    except (OSError, SyntaxError, ValueError, struct.error):  # the pixels are as good without broken EXIF data
        return rgb
    if orientation in (5, 6, 7, 8):
        rgb = rgb.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


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


def _expected() -> str:
    return (
        f"pass a folder of {', '.join(EXTENSIONS)} files, at any depth; "
        "the first folder below it is the class: folder/<class>/.../image.jpg"
    )
