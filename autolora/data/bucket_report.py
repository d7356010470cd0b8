"""What pictures lose in their buckets, as a table and as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageEnhance

from autolora.data.buckets import BucketSize, CropPlan, bucket_of, plan_crop, plan_masked_crop, ratio_then_area
from autolora.data.images import load_image
from autolora.data.sources import Picture


@dataclass(frozen=True)
class BucketRow:
    """One bucket: its pictures, how much of them is cropped away and by how much they are resized (above 1: up)."""

    bucket: BucketSize
    pictures: int
    mean_cropped: float
    worst_cropped: float
    mean_scale: float
    worst_scale: float


def bucket_table(pictures: Sequence[Picture]) -> list[BucketRow]:
    """A row for each bucket, from tall to wide.

    Raises:
        ValueError: a picture has no frame.
    """
    rows = []
    for frame, members in _by_frame(pictures).items():
        fits = [plan_crop(p.width, p.height, frame) for p in members]
        cropped, scales = [fit.cropped for fit in fits], [fit.scale for fit in fits]
        mean_cropped, mean_scale = sum(cropped) / len(fits), sum(scales) / len(fits)
        rows.append(BucketRow(frame, len(fits), mean_cropped, max(cropped), mean_scale, max(scales)))
    return rows


def bucket_sheet(pictures: Sequence[Picture], columns: int = 5, thumbnail_px: int = 160) -> Image.Image:
    """A contact sheet: for each bucket the pictures that lose most, what is cut off dimmed, what is kept framed.

    Raises:
        DatasetError: a file or a mask is gone or broken.
        ValueError: a picture has no frame.
    """
    shown: list[tuple[int, int, Image.Image]] = []  # left and top of every thumbnail
    labels: list[tuple[int, int, str]] = []
    gap, line, y = 8, 16, 8  # pixels
    for row, members in zip(bucket_table(pictures), _by_frame(pictures).values(), strict=True):
        head = (
            f"{row.bucket[0]} x {row.bucket[1]}: {row.pictures} pictures, cut off {row.mean_cropped:.0%} (at worst "
            f"{row.worst_cropped:.0%}), resized x{row.mean_scale:.2f} (at most x{row.worst_scale:.2f})"
        )
        labels.append((gap, y, head))
        members.sort(key=lambda p: -plan_crop(p.width, p.height, row.bucket).loss)
        row_height = 0
        for column, picture in enumerate(members[:columns]):
            x = gap + column * (thumbnail_px + gap)
            thumbnail, fit = _show_loss(picture, thumbnail_px)
            row_height = max(row_height, thumbnail.height)
            shown.append((x, y + line, thumbnail))
            label = f"{picture.path.stem[:12]}: {fit.cropped:.0%} cut, x{fit.scale:.2f}"
            labels.append((x, y + line + thumbnail.height, label))
        y += line + row_height + line + gap
    sheet = Image.new("RGB", (gap + columns * (thumbnail_px + gap), y), "white")
    for x, top, thumbnail in shown:
        sheet.paste(thumbnail, (x, top))
    for x, top, label in labels:
        ImageDraw.Draw(sheet).text((x, top), label, "black")
    return sheet


def _show_loss(picture: Picture, side_px: int) -> tuple[Image.Image, CropPlan]:
    """The whole picture in a square, what is cut off dimmed, and its fit."""
    image = load_image(picture.path)
    fit, ratio = plan_masked_crop(picture, image.size), side_px / max(image.size)
    small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
    left, top, right, bottom = (round(edge * ratio) for edge in fit.box)
    kept = (left, top, max(right, left + 1), max(bottom, top + 1))  # of a very long picture, a line at least
    shown = ImageEnhance.Brightness(small).enhance(0.35)
    shown.paste(small.crop(kept), kept)
    ImageDraw.Draw(shown).rectangle((left, top, kept[2] - 1, kept[3] - 1), outline="red")
    return shown, fit


def _by_frame(pictures: Sequence[Picture]) -> dict[BucketSize, list[Picture]]:
    """The pictures of each frame, from tall to wide."""
    frames = sorted({bucket_of(picture) for picture in pictures}, key=ratio_then_area)
    return {frame: [picture for picture in pictures if picture.bucket == frame] for frame in frames}
