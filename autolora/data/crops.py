"""The pixels of images and masks, cropped and resized to their bucket."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from autolora.data.buckets import CENTER, CropPlan, bucket_of, plan_crop
from autolora.data.images import load_image
from autolora.data.sources import Picture


def load_cropped(picture: Picture, flip: bool = False) -> NDArray[np.uint8]:
    """The pixels of an image in its bucket, (height, width, 3) uint8 RGB, optionally mirrored left to right.

    The crop is centered on the center of mass of the mask, or on the center of an image without a mask.

    Raises:
        DatasetError: the file or its mask is missing or broken.
        ValueError: the image has no bucket.
    """
    image = load_image(picture.path)
    box = plan_masked_crop(picture, image.size).box
    cropped = image.resize(bucket_of(picture), Image.Resampling.LANCZOS, box)
    return np.array(ImageOps.mirror(cropped) if flip else cropped)


def load_mask(picture: Picture, flip: bool = False) -> NDArray[np.float32]:
    """The mask of an image, cropped like the image, (height, width) float32 from 0 to 1; all 1 without a mask.

    Raises:
        DatasetError: the mask is missing or broken.
        ValueError: the image has no bucket.
    """
    width, height = bucket = bucket_of(picture)
    if picture.mask is None:
        return np.ones((height, width), np.float32)
    mask = load_image(picture.mask).convert("L")
    x_scale, y_scale = mask.width / picture.width, mask.height / picture.height  # a mask may have another resolution
    left, top, right, bottom = plan_masked_crop(picture, (picture.width, picture.height)).box
    box = (left * x_scale, top * y_scale, min(right * x_scale, mask.width), min(bottom * y_scale, mask.height))
    cropped = mask.resize(bucket, Image.Resampling.BILINEAR, box)
    return np.asarray(ImageOps.mirror(cropped) if flip else cropped, dtype=np.float32) / np.float32(255)


def size_ids(picture: Picture, flip: bool = False) -> tuple[int, int, int, int, int, int]:
    """SDXL's size conditioning for the crop of `load_cropped`, in pixels (Podell et al. 2023, section 2.2).

    The values are height and width of the original image, top and left of the crop in the resized image, and height
    and width of the bucket.

    Raises:
        ValueError: the image has no bucket.
    """
    plan, (width, height) = plan_masked_crop(picture, (picture.width, picture.height)), bucket_of(picture)
    left, top, right, _ = plan.box
    before = picture.width - right if flip else left
    return picture.height, picture.width, round(top * plan.scale), round(before * plan.scale), height, width


def plan_masked_crop(picture: Picture, size: tuple[int, int]) -> CropPlan:
    """The crop of an image of the given size, centered on the center of mass of its mask."""
    center = CENTER if picture.mask is None else _center_of_mass(load_image(picture.mask).convert("L"))
    return plan_crop(*size, bucket_of(picture), center)


def _center_of_mass(mask: Image.Image) -> tuple[float, float]:
    """The center of a mask's white area in shares of its width and height; the middle of an all-black mask."""
    levels = np.asarray(mask, dtype=np.float64)
    if not levels.any():
        return CENTER
    x = np.average(np.arange(mask.width) + 0.5, weights=levels.sum(axis=0)) / mask.width
    y = np.average(np.arange(mask.height) + 0.5, weights=levels.sum(axis=1)) / mask.height
    return float(x), float(y)
