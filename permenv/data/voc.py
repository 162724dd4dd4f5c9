"""PASCAL VOC's devkit: images with the boxes of their objects, and segmentation masks.

The layout is that of the releases of 2007 to 2012: `JPEGImages`, `Annotations`, `ImageSets/Main`,
`ImageSets/Segmentation` and `SegmentationClass`. What cannot be used is counted, named in a warning and left out.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from permenv.data.decode import MAX_BYTES, MAX_PIXELS, decode
from permenv.data.files import data_folder, is_folder, list_some, listing, open_regular, read_regular
from permenv.data.messages import DataError, log

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes in the devkit's order; in a mask, class k of this tuple has the index k + 1."""

VOID = 255  # of a mask: borders of objects and difficult ones, which no measure counts
_MAX_TEXT_BYTES = 2**24  # of one annotation or list
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """An object of an image.

    Attributes:
        name: Its class, one of `VOC_CLASSES`.
        box: Left, top, right, bottom in pixels, 0-based and half-open, inside the image: the devkit's box of columns 1
            to 10, both included, is 0 to 10.
        difficult: Evaluation ignores it.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool

    @property
    def area(self) -> float:
        """Pixels of the box."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class VocImage:
    """An image of a list.

    Attributes:
        name: As the list has it.
        path: The JPEG file.
        width: In pixels, at least 1.
        height: Likewise.
        objects: In the order of the annotation; there may be none.
        mask: The PNG file of the classes of its pixels; None but in the lists of segmentation.
    """

    name: str
    path: Path
    width: int
    height: int
    objects: tuple[VocObject, ...]
    mask: Path | None = None


def voc_images(root: str | Path, part: str, kind: Literal["Main", "Segmentation"] = "Main") -> tuple[VocImage, ...]:
    """Read a list of images and their annotations. The headers of images are read, their pixels are not.

    An image without an annotation is skipped in `Main`, and has no objects in `Segmentation`. A box that reaches over
    the image is cut off at its border; one that is empty or outside, or an object of an unknown class, is left out.

    Args:
        root: `VOCdevkit/VOC2007` or the like, or a folder above it that holds one release only.
        part: Name of the list: "train", "val", "trainval" or "test".
        kind: Folder of the list.

    Returns:
        The images that can be used, in the order of the list. Warnings name the others, and objects that are left out.

    Raises:
        DataError: If there is no release, more than one, no such list, a line of it is no name, or no image can be
            used.
    """
    release = find_release(root)
    names = _listed(release, part, kind)
    records: list[VocImage] = []
    skipped: list[tuple[str, str]] = []
    remarks: list[tuple[str, str]] = []
    seen: set[str] = set()
    for name in names:
        found = "in the list already" if name in seen else _record(release, name, kind, remarks)
        seen.add(name)
        if isinstance(found, str):
            skipped.append((name, found))
        else:
            records.append(found)
    where = f"{release}, {kind} {part}"
    if not records:
        raise DataError(f"{where}: none of {len(names)} images can be used: {list_some(skipped)}; correct the folder")
    if skipped:
        log.warning("%s: %d of %d images skipped: %s", where, len(skipped), len(names), list_some(skipped))
    if remarks:
        log.warning("%s: %d faults of images that are used: %s", where, len(remarks), list_some(remarks))
    empty = sum(not record.objects for record in records)
    if empty:
        log.info("%s: %d of %d images have no objects", where, empty, len(records))
    return tuple(records)


def load_voc_image(record: VocImage) -> np.ndarray | str:
    """Decode an image. An EXIF orientation is ignored: boxes and masks are of the pixels as they are stored.

    Returns:
        (height, width, 3) uint8 RGB; or a str that says why the file cannot be used.
    """
    try:
        pixels = decode(read_regular(record.path, MAX_BYTES), upright=False)
    except OSError as fault:
        return str(fault.strerror)
    if not isinstance(pixels, str) and pixels.shape[:2] != (record.height, record.width):
        return f"it has been replaced by an image of {pixels.shape[1]} × {pixels.shape[0]} since its header was read"
    return pixels


def load_voc_mask(record: VocImage) -> np.ndarray | str:
    """Decode a mask.

    Returns:
        (height, width) uint8: 0 background, 1 to 20 the classes, `VOID` not counted. Or a str that says why the file
        cannot be used.
    """
    from PIL.PngImagePlugin import PngImageFile

    if record.mask is None:
        return "not of a list of segmentation"
    try:
        content = read_regular(record.mask, MAX_BYTES)
        image = PngImageFile(BytesIO(content))
        if image.mode not in ("P", "L"):
            return f"a PNG of mode {image.mode}, not of indices"
        if image.size != (record.width, record.height):
            return f"a mask of {image.width} × {image.height} for an image of {record.width} × {record.height}"
        classes = np.array(image)
        PngImageFile(BytesIO(content)).verify()
    except (EOFError, OSError, SyntaxError, ValueError) as fault:
        return f"damaged mask: {getattr(fault, 'strerror', None) or fault}"
    unknown = classes[(classes > len(VOC_CLASSES)) & (classes != VOID)]
    return f"the indices {np.unique(unknown).tolist()} of the mask are no classes" if len(unknown) else classes


def find_release(root: str | Path) -> Path:
    """Find the folder of a release, such as `VOCdevkit/VOC2007`.

    Args:
        root: That folder, `VOCdevkit`, or the folder that holds it.

    Raises:
        DataError: If there is none, or more than one.
    """
    expected = "pass the folder VOCdevkit/VOC2007, which holds JPEGImages, Annotations and ImageSets"
    folder = data_folder(root, "VOC", expected)
    candidates = [folder, folder / "VOCdevkit"]
    if _is_release(folder):
        return folder
    found = []
    for above in filter(Path.is_dir, candidates):
        found += [
            above / entry.name for entry in listing(above) if is_folder(entry) and _is_release(above / entry.name)
        ]
    if len(found) != 1:
        names = ", ".join(str(each) for each in found)
        raise DataError(f"{folder} holds {f'several releases: {names}' if found else 'no release of VOC'}; {expected}")
    return found[0]


def _is_release(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() and (folder / "ImageSets").is_dir()


def _listed(release: Path, part: str, kind: str) -> list[str]:
    path = release / "ImageSets" / kind / f"{part}.txt"
    try:
        text = read_regular(path, _MAX_TEXT_BYTES).decode("utf-8", "surrogateescape")
    except OSError as fault:
        there = sorted(each.stem for each in path.parent.glob("*.txt") if "_" not in each.stem)
        raise DataError(f"the list {path} cannot be read: {fault.strerror}; there are {there}") from fault
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    for number, line in lines:
        if line and (len(line.split()) > 1 or Path(line).name != line):
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not the name of an image; correct the list")
    names = [line for _, line in lines if line]
    if not names:
        raise DataError(f"the list {path} is empty; name another one")
    return names


def _record(release: Path, name: str, kind: str, remarks: list[tuple[str, str]]) -> VocImage | str:
    """Read the annotation and the header of an image; a str says why it cannot be used."""
    path = release / "JPEGImages" / f"{name}.jpg"
    size = _size(path)
    if isinstance(size, str):
        return size
    mask = release / "SegmentationClass" / f"{name}.png" if kind == "Segmentation" else None
    if mask is not None and not mask.is_file():
        return "its mask is missing"
    root = _annotation(release / "Annotations" / f"{name}.xml")
    if isinstance(root, str):
        if mask is None:
            return root
        remarks.append((name, root))
        return VocImage(name, path, *size, (), mask)
    stated = tuple(_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if None not in stated and stated != size:
        return f"its annotation is of an image of {stated[0]:g} × {stated[1]:g}, not {size[0]} × {size[1]}"
    objects = []
    for number, node in enumerate(root.findall("object"), start=1):
        found = _object(node, *size)
        if isinstance(found, VocObject):
            objects.append(found)
        else:
            remarks.append((name, f"object {number}: {found}"))
    return VocImage(name, path, *size, tuple(objects), mask)


def _size(path: Path) -> tuple[int, int] | str:
    """Width and height by the header of a JPEG, or why it cannot be used."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with open_regular(path) as file:
            width, height = JpegImageFile(file).size
    except (EOFError, OSError, SyntaxError, ValueError) as fault:
        return f"its JPEG cannot be read: {getattr(fault, 'strerror', None) or fault}"
    if width * height > MAX_PIXELS:
        return f"{width * height} pixels are more than the {MAX_PIXELS} allowed"
    return width, height


def _annotation(path: Path) -> ElementTree.Element | str:
    """Parse an annotation, or say why there is none. The devkit declares no entities, so none are expanded."""
    try:
        content = read_regular(path, _MAX_TEXT_BYTES)
    except OSError as fault:
        return f"its annotation cannot be read: {fault.strerror}"
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        return "its annotation declares a document type, which the devkit's do not"
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as fault:  # the last: an unknown encoding
        return f"its annotation is no XML: {fault}"


def _object(node: ElementTree.Element, width: int, height: int) -> VocObject | str:
    name = (node.findtext("name") or "").strip()
    if name not in VOC_CLASSES:
        return f"the class {name[:40]!r} is none of VOC"
    found = (_number(node.findtext(f"bndbox/{corner}")) for corner in _CORNERS)
    corners = [corner for corner in found if corner is not None]
    if len(corners) < len(_CORNERS):
        return "its box is not four numbers"
    left, top, right, bottom = corners  # 1-based, both ends included
    box = (max(left - 1, 0.0), max(top - 1, 0.0), min(right, float(width)), min(bottom, float(height)))
    if box[0] >= box[2] or box[1] >= box[3]:
        shown = ", ".join(f"{corner:g}" for corner in corners)
        return f"the box {shown} is empty or outside of {width} × {height} pixels"
    return VocObject(name, box, difficult=(node.findtext("difficult") or "0").strip() == "1")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
