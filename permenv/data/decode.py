"""From bytes to pixels: image files, and squares of images and frames of videos."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from permenv.data.files import content_digest, read_regular
from permenv.data.messages import DataError
from permenv.data.parallel import Budget

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 2**27  # of one image, 0.4 GB decoded
MAX_BYTES = 2**30  # of one file

decoding = Budget(2 * MAX_PIXELS)
"""The pixels that the threads of this process decode at a time. Ten photos of 24 megapixels are fewer."""


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
        DataError: If the content has changed since its digest was taken, or if a setting of Pillow, global to the
            process, would decide whether the image is used.
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


def rgb_square(image: np.ndarray, size: int) -> np.ndarray:
    """Turn a frame as OpenCV decodes it, (H, W, 3) BGR, into its centre square, (size, size, 3) RGB."""
    import cv2

    return cv2.cvtColor(centre_square(image, size), cv2.COLOR_BGR2RGB)
