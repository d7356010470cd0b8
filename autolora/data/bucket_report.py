"""What images lose in their buckets, as a table and as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageEnhance

from autolora.data.buckets import BucketSize, CropPlan, bucket_of, plan_crop, ratio_then_area
from autolora.data.crops import plan_masked_crop
from autolora.data.images import load_image
from autolora.data.sources import Picture


@dataclass(frozen=True)
class BucketRow:
    """One bucket: its number of images, the share of them that is cropped away, and their scale (above 1: enlarged)."""

    bucket: BucketSize
    pictures: int
    mean_cropped: float
    worst_cropped: float
    mean_scale: float
    worst_scale: float


def bucket_table(pictures: Sequence[Picture]) -> list[BucketRow]:
    """One row per bucket, from tall to wide.

    Raises:
        ValueError: an image has no bucket.
    """
    rows = []
    for bucket, members in _by_bucket(pictures).items():
        plans = [plan_crop(p.width, p.height, bucket) for p in members]
        cropped, scales = [plan.cropped for plan in plans], [plan.scale for plan in plans]
        mean_cropped, mean_scale = sum(cropped) / len(plans), sum(scales) / len(plans)
        rows.append(BucketRow(bucket, len(plans), mean_cropped, max(cropped), mean_scale, max(scales)))
    return rows


def bucket_sheet(pictures: Sequence[Picture], columns: int = 5, thumbnail_px: int = 160) -> Image.Image:
    """A contact sheet with the images of each bucket that lose most: a red frame around the crop, the rest dimmed.

    Args:
        pictures: images with buckets.
        columns: number of images per bucket.
        thumbnail_px: longest side of a thumbnail.

    Raises:
        DatasetError: a file or a mask is missing or broken.
        ValueError: an image has no bucket.
    """
    thumbnails: list[tuple[int, int, Image.Image]] = []  # with left and top
    labels: list[tuple[int, int, str]] = []
    gap, line, y = 8, 16, 8  # pixels
    for row, members in zip(bucket_table(pictures), _by_bucket(pictures).values(), strict=True):
        title = (
            f"{row.bucket[0]} x {row.bucket[1]}: {row.pictures} images, cropped {row.mean_cropped:.0%} (at most "
            f"{row.worst_cropped:.0%}), resized x{row.mean_scale:.2f} (at most x{row.worst_scale:.2f})"
        )
        labels.append((gap, y, title))
        members.sort(key=lambda p: -plan_crop(p.width, p.height, row.bucket).loss)
        row_height = 0
        for column, picture in enumerate(members[:columns]):
            x = gap + column * (thumbnail_px + gap)
            thumbnail, plan = _mark_crop(picture, thumbnail_px)
            row_height = max(row_height, thumbnail.height)
            thumbnails.append((x, y + line, thumbnail))
            label = f"{picture.path.stem[:12]}: {plan.cropped:.0%} cropped, x{plan.scale:.2f}"
            labels.append((x, y + line + thumbnail.height, label))
        y += line + row_height + line + gap
    sheet = Image.new("RGB", (gap + columns * (thumbnail_px + gap), y), "white")
    for x, top, thumbnail in thumbnails:
        sheet.paste(thumbnail, (x, top))
    for x, top, label in labels:
        ImageDraw.Draw(sheet).text((x, top), label, "black")
    return sheet


def _mark_crop(picture: Picture, side_px: int) -> tuple[Image.Image, CropPlan]:
    """A thumbnail of an image with everything outside the crop dimmed, and the crop."""
    image = load_image(picture.path)
    plan, ratio = plan_masked_crop(picture, image.size), side_px / max(image.size)
    small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
    left, top, right, bottom = (round(edge * ratio) for edge in plan.box)
    crop = (left, top, max(right, left + 1), max(bottom, top + 1))  # at least one pixel, for very long images
    marked = ImageEnhance.Brightness(small).enhance(0.35)
    marked.paste(small.crop(crop), crop)
    ImageDraw.Draw(marked).rectangle((left, top, crop[2] - 1, crop[3] - 1), outline="red")
    return marked, plan


def _by_bucket(pictures: Sequence[Picture]) -> dict[BucketSize, list[Picture]]:
    """The images of each bucket, from tall to wide."""
    buckets = sorted({bucket_of(picture) for picture in pictures}, key=ratio_then_area)
    return {bucket: [picture for picture in pictures if picture.bucket == bucket] for bucket in buckets}
