"""Decodes image files of every common kind: upright, RGB, transparency flattened on white."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from autolora.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".avif")
UNSUPPORTED_SUFFIXES = (".jxl", ".gif", ".tif", ".tiff", ".heic", ".heif")  # must be saved as .png first
READING_THREADS = 4  # Pillow releases Python's global lock while it decodes
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")
_PNG, _XMP = b"\x89PNG\r\n\x1a\n", b"XML:com.adobe.xmp"  # what a file and a text begin with; XMP may hold a rotation
_UNUSED_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # texts, such as workflows of ComfyUI, and color profiles
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation


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
        with Image.open(io.BytesIO(_without_texts(content))) as image:
            return _normalized(image)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DatasetError(f"larger than {most} megapixels, which may be an attack: save it smaller") from error
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
        return decode(path.read_bytes())
    except (OSError, DatasetError) as error:
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


def _without_texts(content: bytes) -> bytes:
    """A PNG without what is not used of it and what Pillow refuses where it is large; other content as it is."""
    if not content.startswith(_PNG):
        return content
    parts, start = [content[: len(_PNG)]], len(_PNG)
    while start + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[start : start + 8])
        if kind not in _UNUSED_CHUNKS or content.startswith(_XMP, start + 8):
            parts.append(content[start : start + 12 + length])
        start += 12 + length
    return b"".join((*parts, content[start:]))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data say; nothing else of them is read, as single tags are often broken."""
    image.load()  # a PNG may have its EXIF data after its pixels
    turn = None
    with suppress(Exception):  # Pillow raises errors of many kinds here, which say nothing of the pixels
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _normalized(opened: Image.Image) -> Image.Image:
    """The image with EXIF rotation applied, RGB, transparency flattened on white."""
    image = _upright(opened)
    if image.mode.startswith("I"):  # 16 bits per pixel: convert() would clip the values instead of scaling them
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
