"""Every kind of image is decoded upright, RGB and on white, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError, features

from autolora.data.images import decode, load_image, load_pixels, measure
from autolora.errors import DatasetError
from tests.data.folders import noise_image


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, depth: int, colour_type: int, pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file of a kind that Pillow reads but cannot write; big-endian pixels, (height, width * channels)."""

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_images_cover_the_size_and_are_cropped_at_the_center(tmp_path: Path) -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    assert load_pixels(tmp_path / "wide.png", 10).shape == (10, 10, 3)
    assert (load_pixels(tmp_path / "wide.png", 10) == (0, 0, 255)).all()  # the unscaled middle
    assert load_pixels(tmp_path / "wide.png", 12, 20).shape == (20, 12, 3)
    with pytest.raises(DatasetError, match="can no longer be read"):
        load_pixels(tmp_path / "gone.png", 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = Image.new("RGB", (48, 16), "red")
    rotated.paste("blue", (0, 0, 24, 16))
    path = tmp_path / f"a.{suffix}"
    rotated.save(path, exif=exif)
    size = (48, 16) if orientation < 5 else (16, 48)
    assert load_image(path).size == measure(path.read_bytes()) == size
    first = load_image(path).getpixel((4, 4))
    assert isinstance(first, tuple)
    assert (first[2] > 200) == (orientation in (1, 4, 5, 6)), "blue is on the left, or at the top after a quarter turn"


def _tag(number: int, kind: int, value: bytes, count: int = 1) -> bytes:
    return struct.pack("<HHI4s", number, kind, count, value)


TURNED = _tag(0x112, 3, b"\6\0")  # a quarter


@pytest.mark.parametrize(
    ("tags", "turned"),
    [
        ([TURNED, _tag(0x11A, 2, b"72\0", 3)], True),  # a resolution as text
        ([TURNED, _tag(0x213, 1, b"\1")], True),  # BYTE instead of SHORT
        ([TURNED, _tag(0x8769, 2, b"x\0", 2)], True),  # a text where the place of more tags should be
        ([TURNED, _tag(0x10F, 2, b"\xff\xff\xff\x7f", 9)], True),  # a place behind the end
        ([_tag(0x112, 2, b"6\0", 2)], False),  # the turn itself as text
        ([_tag(0x112, 3, b"\x63\0")], False),  # a turn that there is not
        ([_tag(0x112, 5, b"\xff\xff\0\0")], False),
    ],
)
@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp"])
def test_odd_exif_tags_are_no_reason_to_refuse_a_photo(tags: list[bytes], turned: bool, suffix: str) -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4)
    buffer = io.BytesIO()
    noise_image(0, (80, 40)).save(buffer, format=suffix, exif=exif)
    assert measure(buffer.getvalue()) == ((40, 80) if turned else (80, 40))


LONG = zlib.compress(bytes(range(32, 127)) * 20_000)  # 1.9 MB of text


@pytest.mark.parametrize(
    "extra",
    [
        _chunk(b"zTXt", b"workflow\0\0" + LONG),
        _chunk(b"iTXt", b"parameters\0\1\0\0\0" + LONG),
        _chunk(b"iCCP", b"profile\0\0" + LONG),
        _chunk(b"tEXt", b"prompt\0" + bytes(range(32, 127)) * 20_000),
        _chunk(b"zTXt", b"broken\0\0" + b"no zlib"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt", "broken"],
)
def test_large_texts_and_profiles_of_a_png_are_no_reason_to_refuse_it(extra: bytes) -> None:
    content = _png(4, 4, 8, 2, np.full((4, 12), 7, dtype=np.uint8))
    for at in (33, len(content) - 12):  # behind the header, and before the end
        assert decode(content[:at] + extra + content[at:]).getpixel((0, 0)) == (7, 7, 7)


def test_a_picture_that_is_too_large_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    buffer = io.BytesIO()
    Image.new("L", (2_000, 1_001)).save(buffer, format="png")
    with pytest.raises(DatasetError, match=r"^larger than 2 megapixels, which may be an attack: save it smaller$"):
        measure(buffer.getvalue())


@pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
def test_transparency_is_flattened_on_white(tmp_path: Path, suffix: str) -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 128), (0, 0, 16, 8))
    clear.save(tmp_path / f"a.{suffix}", lossless=True, quality=100)
    pixels = load_pixels(tmp_path / f"a.{suffix}", 16)
    assert np.abs(pixels[10:].astype(int) - 255).max() <= 2
    assert np.abs(pixels[:6].astype(int) - (255, 127, 127)).max() <= 3


def test_transparent_gray_palette_and_colour_key(tmp_path: Path) -> None:
    grey = Image.new("LA", (4, 4), (0, 0))
    grey.putpixel((0, 0), (0, 255))
    grey.save(tmp_path / "grey.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "levels.png", transparency=bytes((255, 0)))
    key = Image.new("RGB", (4, 4), (0, 0, 0))
    key.putpixel((0, 0), (10, 20, 30))
    key.save(tmp_path / "key.png", transparency=(0, 0, 0))
    for name, colour in (("grey", (0, 0, 0)), *((name, (10, 20, 30)) for name in ("palette", "levels", "key"))):
        pixels = load_pixels(tmp_path / f"{name}.png", 4)
        assert (pixels[0, 0] == colour).all(), name
        assert (pixels[1:] == 255).all(), name


@pytest.mark.parametrize(
    ("mode", "name", "colour", "expected"),
    [
        ("CMYK", "a.jpg", (0, 255, 255, 0), (255, 0, 0)),
        ("L", "a.jpg", 77, (77, 77, 77)),
        ("P", "a.png", 0, (10, 20, 30)),
        ("P", "a.bmp", 0, (10, 20, 30)),
        ("1", "a.png", 1, (255, 255, 255)),
        ("1", "a.bmp", 0, (0, 0, 0)),
    ],
)
def test_other_colour_modes_become_rgb(
    tmp_path: Path, mode: str, name: str, colour: Any, expected: tuple[int, int, int]
) -> None:
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([10, 20, 30])
    image.save(tmp_path / name)
    assert measure((tmp_path / name).read_bytes()) == (16, 16)
    assert np.abs(load_pixels(tmp_path / name, 16).astype(int) - expected).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert (load_pixels(tmp_path / "grey.png", 4) == 128).all()
    colour = np.tile(np.array([65535, 32768, 256], dtype=">u2"), (4, 4))
    (tmp_path / "colour.png").write_bytes(_png(4, 4, 16, 2, colour))
    assert (load_pixels(tmp_path / "colour.png", 4) == (255, 128, 1)).all()
    half_clear = np.tile(np.array([0, 32896], dtype=">u2"), (4, 4))  # black, 128 of 255 opaque
    (tmp_path / "clear.png").write_bytes(_png(4, 4, 16, 4, half_clear))
    assert (load_pixels(tmp_path / "clear.png", 4) == 127).all()


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.avif"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert np.abs(load_pixels(tmp_path / name, 16).astype(int) - (255, 0, 0)).max() <= 5


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif"])
def test_a_wrong_suffix_is_accepted(tmp_path: Path, kind: str) -> None:
    noise_image(0).save(tmp_path / "a.png", format=kind)
    assert measure((tmp_path / "a.png").read_bytes()) == (24, 24)
    assert load_image(tmp_path / "a.png").size == (24, 24)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "avif"])
def test_truncated_files_are_refused(kind: str) -> None:
    buffer = io.BytesIO()
    noise_image(0, (90, 90)).save(buffer, format=kind)
    content = buffer.getvalue()
    assert measure(content) == (90, 90)
    with pytest.raises(DatasetError, match=r"^broken.*: replace or remove it$"):
        measure(content[: len(content) * 2 // 3])


def test_empty_files_and_other_file_types_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"^an empty file: replace"):
        measure(b"")
    with pytest.raises(DatasetError, match=r"^broken, or not an image: replace"):
        measure(b"<html>404</html>")


def test_the_error_for_avif_without_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    noise_image(0).save(buffer, format="avif")

    def refuse(*_: object) -> None:
        raise UnidentifiedImageError

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(DatasetError, match=r"pillow 11.3 or newer: install it, or save the image as .png"):
        measure(buffer.getvalue())
