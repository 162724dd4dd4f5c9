"""A folder of image files as square stills, read and decoded once and kept in a store, see `permenv.data.store`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from permenv.data.decode import decode, read
from permenv.data.files import (
    IMAGE_EXTENSIONS,
    content_digest,
    data_folder,
    fingerprint,
    labels_by_folder,
    list_some,
    state_of,
    walk,
)
from permenv.data.messages import DataError, log
from permenv.data.sets import StillImages
from permenv.data.store import Content, Squares, Store, unusable
from permenv.data.stored import StoredImages

RECIPE = 3  # increase it when the same files give other pixels, so that they are decoded again


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
        raise DataError(f"{folder} contains no readable image: {list_some(skipped)}; {_expected()}")
    if skipped:
        log.warning("%s: %d of %d image files skipped: %s", folder, len(skipped), len(files), list_some(skipped))

    recipe = f"permenv image folder, recipe {RECIPE}, size {size}"
    if store.jpeg:  # what these decode to are the data
        checksums = b"".join([shard.index.checksums.tobytes() for shard in store.shards])
        recipe = f"{recipe}, {store.encoding}, {content_digest(checksums).hex()}"
    labels, classes = labels_by_folder(files, {file for file, _ in skipped})
    return StillImages(
        StoredImages(store, np.array([not fault for fault in faults])),
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
    if not isinstance(pixels, StoredImages) or not isinstance(pixels.source, ImageFiles):
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
            return unusable(content, readable=False)

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
            files += [folder + name for name in names if name.lower().endswith(IMAGE_EXTENSIONS)]
    files.sort()
    if not files:
        raise DataError(f"there are no image files in {root}; {_expected()}")
    return files


def _expected() -> str:
    return (
        f"pass a folder of {', '.join(IMAGE_EXTENSIONS)} files, at any depth; "
        "the first folder below it is the class: folder/<class>/.../image.jpg"
    )
