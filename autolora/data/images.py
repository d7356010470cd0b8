"""Decodes pictures of every kind people have: upright, RGB, transparency flattened on white."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from autolora.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
UNREAD_SUFFIXES = (".jxl", ".gif", ".tif", ".tiff", ".heic", ".heif")  # pictures too, but to be saved as .png first
READING_THREADS = 4  # Pillow decodes without Python's lock
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")


def measure(content: bytes) -> tuple[int, int]:
    """Width and height in pixels, turned upright, of a picture file's content, which is decoded to its end.

    Raises:
        DatasetError: as `decode`.
    """
    return decode(content).size


def decode(content: bytes) -> Image.Image:
    """The picture of a file's content, decoded to its end, as `load_image` gives it.

    Raises:
        DatasetError: no picture, or a broken one; the message leaves out the file's name.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _upright(image)
    except UnidentifiedImageError as error:
        if content[4:12] in _AVIF_BRANDS and not features.check("avif"):
            raise DatasetError("AVIF needs pillow 11.3 or newer: install it, or save the picture as .png") from error
        kind = "broken, or no picture at all" if content else "an empty file"
        raise DatasetError(f"{kind}: replace or remove it") from error
    except _DECODE_ERRORS as error:
        reason = (str(error).splitlines() or ["not decodable"])[0]
        raise DatasetError(f"broken ({reason}): replace or remove it") from error


def load_image(path: Path) -> Image.Image:
    """The picture upright (EXIF), RGB, transparency flattened on white; the first frame of an animation.

    Raises:
        DatasetError: the file is gone or broken.
    """
    try:
        with Image.open(path) as opened:
            return _upright(opened)
    except _DECODE_ERRORS as error:
        raise DatasetError(f"{path}: cannot be read any more ({error}): restore the file and run again") from error


def load_pixels(path: Path, width: int, height: int | None = None) -> NDArray[np.uint8]:
    """The picture as (height, width, 3) uint8 RGB: resized to cover the frame, then cropped at its centre.

    Without a height the frame is square.

    Raises:
        DatasetError: the file is gone or broken.
    """
    frame = (width, width if height is None else height)
    return np.array(ImageOps.fit(load_image(path), frame, Image.Resampling.LANCZOS))


def difference_hash(image: Image.Image) -> int:
    """A perceptual hash of 64 bits: is a cell of the grey 9 x 8 thumbnail darker than the next?"""
    levels = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def _upright(opened: Image.Image) -> Image.Image:
    """Turned as EXIF says, RGB, transparency flattened on white."""
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip them instead of scaling
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
