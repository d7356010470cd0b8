"""Decodes image files of every common kind: upright, RGB, transparency flattened on white."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from autolora.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".avif")
UNSUPPORTED_SUFFIXES = (".jxl", ".gif", ".tif", ".tiff", ".heic", ".heif")  # must be saved as .png first
READING_THREADS = 4  # Pillow releases Python's global lock while it decodes
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")


def measure(content: bytes) -> tuple[int, int]:
    """Width and height in pixels of an image file's content, after EXIF rotation; the whole content is decoded.

    Raises:
        DatasetError: as `decode`.
    """
    return decode(content).size


def decode(content: bytes) -> Image.Image:
    """The image of a file's content, fully decoded and normalized as by `load_image`.

    Raises:
        DatasetError: the content is not an image, or is broken; the message does not name the file.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _normalized(image)
    except UnidentifiedImageError as error:
        if content[4:12] in _AVIF_BRANDS and not features.check("avif"):
            raise DatasetError("AVIF needs pillow 11.3 or newer: install it, or save the image as .png") from error
        kind = "broken, or not an image" if content else "an empty file"
        raise DatasetError(f"{kind}: replace or remove it") from error
    except _DECODE_ERRORS as error:
        reason = (str(error).splitlines() or ["not decodable"])[0]
        raise DatasetError(f"broken ({reason}): replace or remove it") from error


def load_image(path: Path) -> Image.Image:
    """The image upright (EXIF rotation applied), RGB, transparency flattened on white.

    Of an animation, the first frame is returned.

    Raises:
        DatasetError: the file is missing or broken.
    """
    try:
        with Image.open(path) as opened:
            return _normalized(opened)
    except _DECODE_ERRORS as error:
        raise DatasetError(f"{path}: can no longer be read ({error}): restore the file and run again") from error


def load_pixels(path: Path, width: int, height: int | None = None) -> NDArray[np.uint8]:
    """The image resized to cover width x height pixels and cropped at its center, (height, width, 3) uint8 RGB.

    Without a height the result is square.

    Raises:
        DatasetError: the file is missing or broken.
    """
    size = (width, width if height is None else height)
    return np.array(ImageOps.fit(load_image(path), size, Image.Resampling.LANCZOS))


def difference_hash(image: Image.Image) -> int:
    """A perceptual hash of 64 bits: whether each cell of the gray 9 x 8 thumbnail is darker than the next one."""
    levels = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def _normalized(opened: Image.Image) -> Image.Image:
    """The image with EXIF rotation applied, RGB, transparency flattened on white."""
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits per pixel: convert() would clip the values instead of scaling them
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
