"""Still images and video clips from whatever a caller has: folders, sets, arrays, and map-style datasets.

Arrays and datasets are held in memory. Their images become the same squares as the files of a folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from permenv.data.clip_files import evenly_spaced
from permenv.data.decode import centre_square
from permenv.data.embedded import embedded_clips, embedded_scenes
from permenv.data.files import UNLABELLED, list_some
from permenv.data.folder import image_folder
from permenv.data.messages import DataError, log
from permenv.data.sets import StillImages, VideoClips, free_bytes
from permenv.data.videos import video_folder
from permenv.progress import progress_bar

HASH_BYTES = 64 * 2**20  # pixels are hashed in pieces of this size
IMAGE_KEYS, CLIP_KEYS, LABEL_KEY = ("image",), ("video", "frames"), "label"
AN_IMAGE = "a PIL image or a uint8 array (height, width), (height, width, 3) or (3, height, width)"
SCALED = "floating-point values must be scaled to 0..255 and converted first"
A_CLIP = "a uint8 array (frames, height, width, 3) or (frames, 3, height, width), or a list of images"


def as_images(given: Any, size: int, *, num_scenes: int, scenes_seed: int) -> StillImages:
    """Make a set of still images from what a caller passes as `images`.

    Args:
        given: One of

            - None: the embedded scenes.
            - A path: a folder of image files, see `image_folder`.
            - A `StillImages` of this size, which is used as it is.
            - A uint8 array or tensor (N, H, W, 3) or (N, 3, H, W). Of the right size, (N, size, size, 3), it is
              used without a copy and must not be changed afterwards.
            - A map-style dataset, anything with `__len__` and `__getitem__`, for example a
              `torch.utils.data.Dataset`, a Hugging Face `Dataset` or a list. An item is an image, a tuple of an
              image and a label, or a dict with the keys "image" and possibly "label". An image is a PIL image or a
              uint8 array (H, W), (H, W, 1 or 3) or (1 or 3, H, W). A label is an integer, negative for unlabelled,
              or a str; other labels are ignored. Names of classes are taken from `features["label"].names` or
              `classes`.

        size: Side of the squares in pixels, at least 1.
        num_scenes: Number of embedded scenes.
        scenes_seed: Their seed.

    Returns:
        The images. Those from arrays and datasets are in memory, and their fingerprint is a digest of the pixels.
        Items that cannot be decoded, where `__getitem__` raises an OSError, SyntaxError or ValueError, are skipped,
        listed in `.skipped` and named in a warning.

    Raises:
        DataError: If `given` is of another kind or size, is empty, does not fit into memory, or has an item that is
            not an image.
    """
    if given is None:
        return embedded_scenes(num_scenes, size, scenes_seed)
    if isinstance(given, str | os.PathLike):
        return image_folder(os.fspath(given), size)
    if isinstance(given, StillImages):
        _require_size(given.size, size, given.name)
        return given
    _require_items(given, size, "images", "StillImages", "a uint8 array (N, height, width, 3)", AN_IMAGE)
    if isinstance(given, np.ndarray | torch.Tensor):
        _require_array(given, 4, "images", "(N, height, width, 3) or (N, 3, height, width)")
        if tuple(given.shape[1:]) == (size, size, 3):
            return _without_copy(given, [1] * len(given))

    def squares(image: Any, where: str) -> list[np.ndarray]:
        return [_square(image, size, where)]

    return _read(given, 1, size, IMAGE_KEYS, squares)[0]


def as_clips(
    given: Any,
    size: int,
    max_frames: int,
    *,
    min_frames: int,
    split: int | None,
    num_clips: int,
    scenes_seed: int,
) -> VideoClips:
    """Make a set of video clips from what a caller passes as `videos`.

    Args:
        given: One of

            - None: the embedded clips, of `max_frames` frames.
            - A path: a folder of videos or of folders of frames, see `video_folder`.
            - A `VideoClips` of this size, which is used as it is.
            - A uint8 array or tensor (V, F, H, W, 3) or (V, F, 3, H, W). If it is (V, F, size, size, 3) with
              F <= max_frames, it is used without a copy and must not be changed afterwards.
            - A map-style dataset, see `as_images`, for example a list of arrays. An item is a clip, a tuple of a
              clip first and a label last, or a dict with the key "video" or "frames" and possibly "label". A clip is
              a uint8 array (F, H, W, 3) or (F, 3, H, W), a list of images, or another sequence of images such as a
              torchcodec `VideoDecoder`.

        size: Side of the squares in pixels, at least 1.
        max_frames: Largest number of frames kept of a clip, evenly spread.
        min_frames: Number of frames that a clip needs; shorter ones are skipped. Not for a `VideoClips`.
        split: Number of the official split, for a folder only, see `video_folder`.
        num_clips: Number of embedded clips.
        scenes_seed: Their seed.

    Returns:
        The clips, see `as_images`.

    Raises:
        DataError: See `as_images`.
    """
    if given is None:
        return embedded_clips(num_clips, max_frames, size, scenes_seed)
    if isinstance(given, str | os.PathLike):
        return video_folder(os.fspath(given), size, max_frames, min_frames=min_frames, split=split)
    if isinstance(given, VideoClips):
        _require_size(given.frames.size, size, given.name)
        return given
    _require_items(given, size, "videos", "VideoClips", "a uint8 array (V, frames, height, width, 3)", A_CLIP)
    most = max_frames
    if isinstance(given, np.ndarray | torch.Tensor):
        _require_array(given, 5, "videos", "(V, frames, height, width, 3) or (V, frames, 3, height, width)")
        num_frames = given.shape[1]
        most = min(max_frames, num_frames)
        if min_frames <= num_frames <= max_frames and tuple(given.shape[2:]) == (size, size, 3):
            lengths = [num_frames] * len(given)
            return _clips(_without_copy(given.reshape(-1, size, size, 3), lengths), lengths, range(len(given)))

    def squares(clip: Any, where: str) -> list[np.ndarray] | str:
        _require_frames(clip, where)
        if len(clip) < min_frames:
            return f"fewer than {min_frames} frames: {len(clip)}"
        return [
            _square(clip[frame], size, f"frame {frame} of {where}") for frame in evenly_spaced(len(clip), max_frames)
        ]

    return _clips(*_read(given, most, size, CLIP_KEYS, squares))


def _clips(frames: StillImages, lengths: Sequence[int], numbers: Iterable[int]) -> VideoClips:
    """Group frames into clips of these lengths, named by their numbers."""
    names = tuple(f"clip {number}" for number in numbers)
    return VideoClips(frames, np.cumsum([0, *lengths], dtype=np.int64), names)


def _read(
    given: Any,
    most: int,
    size: int,
    keys: tuple[str, ...],
    squares: Callable[[Any, str], list[np.ndarray] | str],
) -> tuple[StillImages, list[int], list[int]]:
    """Read all items of a dataset into memory.

    Args:
        given: The dataset.
        most: Largest number of rows of an item.
        size: Side of the squares in pixels.
        keys: Keys of the pixels in an item that is a dict.
        squares: Turns an item, without its label, into its rows, or says why it cannot be used.

    Returns:
        All rows as one set, the number of rows of each item that is used, and the numbers of these items.

    Raises:
        DataError: If the rows do not fit into memory, no item can be used, or one is of the wrong kind.
    """
    name = _name(given)
    _require_memory(name, len(given), most, size)
    pixels = np.empty((len(given) * most, size, size, 3), np.uint8)  # rows that are not written take no memory
    lengths, used, labels, skipped, rows = [], [], [], [], 0
    for index in progress_bar(range(len(given)), label="reading", unit="item"):
        where = f"item {index}"
        try:
            content, label = _parts(given[index], keys, where)
            result = squares(content, where)
        except DataError:
            raise
        except (OSError, SyntaxError, ValueError) as fault:  # what decoders raise for damaged files
            result = str(fault) or type(fault).__name__
        if isinstance(result, str):
            skipped.append((where, result))
            continue
        pixels[rows : rows + len(result)] = result
        rows += len(result)
        lengths.append(len(result))
        used.append(index)
        labels.append(label)
    if not used:
        raise DataError(f"{name} contains no usable item: {list_some(skipped)}; correct the dataset")
    if skipped:
        log.warning("%s: %d of %d items skipped: %s", name, len(skipped), len(given), list_some(skipped))
    indices, classes = _labels(labels, _class_names(given))
    images = StillImages(
        pixels=torch.from_numpy(pixels[:rows]),
        labels=None if indices is None else indices.repeat(lengths),
        classes=classes,
        name=name,
        fingerprint=_fingerprint(pixels[:rows], lengths),
        skipped=tuple(skipped),
    )
    return images, lengths, used


def _name(given: Any) -> str:
    return "array" if isinstance(given, np.ndarray | torch.Tensor) else type(given).__name__


def _parts(item: Any, keys: tuple[str, ...], where: str) -> tuple[Any, Any]:
    """Split an item into its pixels and its label, None if it has none."""
    if isinstance(item, Mapping):
        for key in keys:
            if key in item:
                return item[key], item.get(LABEL_KEY)
        wanted = " or ".join(repr(key) for key in keys)
        raise DataError(f"{where} has no key {wanted}, only {sorted(map(str, item))}; rename the column")
    if isinstance(item, tuple) and len(item) > 1:  # between a clip and its label may be its sound
        return item[0], item[1 if keys is IMAGE_KEYS else -1]
    return (item[0] if isinstance(item, tuple) and item else item), None


def _labels(given: list[Any], names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Turn labels into (N,) int64 indices and the names of the classes; without any label, None and ()."""
    labels = [_number(label) for label in given]
    texts = {label for label in labels if isinstance(label, str)}
    if texts:
        names = sorted(texts)
        number = {name: index for index, name in enumerate(names)}
        numbers = np.array([number[label] if isinstance(label, str) else UNLABELLED for label in labels])
    else:
        numbers = np.array([max(label, UNLABELLED) if isinstance(label, int) else UNLABELLED for label in labels])
        if numbers.max() >= len(names):  # no names: number the labels that occur, which may be any integers
            distinct = np.unique(numbers[numbers >= 0])
            names = [str(label) for label in distinct]
            numbers = np.where(numbers >= 0, np.searchsorted(distinct, numbers), UNLABELLED)
    if numbers.max() == UNLABELLED:
        return None, ()
    return numbers.astype(np.int64), tuple(names)


def _number(label: Any) -> Any:
    """Turn an array or tensor of one element into a Python number."""
    is_one = isinstance(label, np.generic | np.ndarray | torch.Tensor) and len(label.reshape(-1)) == 1
    return label.item() if is_one else label


def _class_names(given: Any) -> list[str]:
    """The names of the classes as Hugging Face or torchvision give them; empty if they do not."""
    features = getattr(given, "features", None)
    feature = features.get(LABEL_KEY) if isinstance(features, Mapping) else None
    names = getattr(feature, "names", None) or getattr(given, "classes", None) or ()
    return [str(name) for name in names]


def _square(image: Any, size: int, where: str) -> np.ndarray:
    """Turn an image of any accepted kind into its centre square, (size, size, 3) uint8 RGB."""
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        pixels = _from_pil(image, where)
    else:
        pixels = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
        if not isinstance(pixels, np.ndarray):
            raise DataError(f"{where} is of type {type(image).__name__}; pass {AN_IMAGE}")
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        elif pixels.ndim == 3 and pixels.shape[-1] not in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
            raise DataError(f"{where} is {image.dtype} of shape {tuple(image.shape)}; pass {AN_IMAGE}; {SCALED}")
    colours = np.broadcast_to(pixels, (*pixels.shape[:2], 3))  # grey becomes three equal channels
    return centre_square(np.ascontiguousarray(colours), size)


def _from_pil(image: Any, where: str) -> np.ndarray:
    """(H, W, 3 or 1) uint8 of a PIL image, rotated and converted as the files of a folder are."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        raise DataError(f"{where} is a PIL image of mode {image.mode!r}; convert it to 'RGB' or 'L'")
    return np.asarray(image.convert("RGB"))


def _require_size(found: int, size: int, name: str) -> None:
    if found != size:
        raise DataError(
            f"{name} has pixels of size {found}, but size {size} is needed: make the set with size {size}, or pass its "
            "`pixels` as an array, which are resized"
        )


def _require_items(given: Any, size: int, keyword: str, own: str, array: str, item: str) -> None:
    """Raise a DataError if something cannot be an array or a map-style dataset."""
    kind = f"{keyword} is of type {type(given).__name__}"
    if size < 1:
        raise DataError(f"size {size} of {keyword}: pass a number of pixels of at least 1")
    if isinstance(given, Mapping):
        raise DataError(f"{kind} with the keys {sorted(map(str, given))}; pass one of its values, for example a split")
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__") or isinstance(given, bytes):
        raise DataError(
            f"{kind}; pass None for the embedded data, the path of a folder, a {own}, {array}, or a map-style dataset "
            f"(with __len__ and __getitem__) whose items are {item}"
        )
    try:
        number = len(given)
    except TypeError as fault:  # an array without dimensions
        raise DataError(f"{kind}, but {fault}; pass {array}") from fault
    if not number:
        raise DataError(f"{kind} and empty; pass at least one item")


def _require_array(given: np.ndarray | torch.Tensor, dimensions: int, keyword: str, shapes: str) -> None:
    has_channels = given.ndim == dimensions and (given.shape[-1] in (1, 3) or given.shape[-3] in (1, 3))
    if not _is_uint8(given) or not has_channels:
        raise DataError(
            f"{keyword} is {given.dtype} of shape {tuple(given.shape)}; pass uint8 {shapes}; grey images need a "
            f"channel dimension of size 1; {SCALED}"
        )


def _is_uint8(array: np.ndarray | torch.Tensor) -> bool:
    return array.dtype == (torch.uint8 if isinstance(array, torch.Tensor) else np.uint8)


def _require_frames(clip: Any, where: str) -> None:
    if not hasattr(clip, "__len__") or not hasattr(clip, "__getitem__") or isinstance(clip, str | bytes | Mapping):
        raise DataError(f"{where} is of type {type(clip).__name__}; pass {A_CLIP}")
    if isinstance(clip, np.ndarray | torch.Tensor) and clip.ndim != 4:
        raise DataError(f"{where} is of shape {tuple(clip.shape)}; pass {A_CLIP}")


def _require_memory(name: str, items: int, most: int, size: int) -> None:
    """Raise a DataError if the squares do not fit into free memory, as far as the system reports it."""
    needed, free = items * most * size * size * 3, free_bytes(torch.device("cpu"))
    if 0 < free < needed:
        each = f"{items} items" if most == 1 else f"{items} items of up to {most} frames"
        remedy = "pass fewer items" if most == 1 else "lower clip_frames, pass fewer items"
        raise DataError(
            f"{name}: {each} of size {size} need {needed:,} bytes of memory, but {free:,} are free; {remedy}, or "
            "write them to files and pass the folder, which is read from disk"
        )


def _without_copy(given: np.ndarray | torch.Tensor, lengths: Sequence[int]) -> StillImages:
    """Make a set of pixels (rows, S, S, 3) that shares their memory if it is contiguous.

    Read-only arrays, such as memory maps, stay arrays.
    """
    pixels: np.ndarray | torch.Tensor
    if isinstance(given, torch.Tensor):
        pixels = given.contiguous()
    else:
        pixels = np.ascontiguousarray(given)
        pixels = torch.from_numpy(pixels) if pixels.flags.writeable else pixels
    return StillImages(pixels, None, (), _name(given), _fingerprint(pixels, lengths))


def _fingerprint(pixels: torch.Tensor | np.ndarray, lengths: Sequence[int]) -> str:
    """Digest of pixels (rows, S, S, 3) and of the number of rows of each item."""
    key = hashlib.blake2b(f"permenv arrays, {tuple(pixels.shape)}".encode(), digest_size=16)
    key.update(np.array(lengths, np.int64).tobytes())
    rows = max(1, HASH_BYTES // (pixels.shape[1] * pixels.shape[2] * 3))
    for start in range(0, len(pixels), rows):
        piece = pixels[start : start + rows]
        content = piece.cpu().numpy() if isinstance(piece, torch.Tensor) else piece
        key.update(np.ascontiguousarray(content).data)
    return key.hexdigest()
