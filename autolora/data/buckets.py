"""Aspect buckets: which frames a dataset is trained at, what each picture loses by it, and its cropped pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from autolora.data.images import load_image
from autolora.data.sources import Picture
from autolora.errors import ConfigError

BucketSize = tuple[int, int]  # width and height, pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom

# What a change of size costs, in shares of the picture cropped away. Shrinking leaves true, sharp pixels and only
# fine detail goes; enlarging shows the model blur that it learns as if it were drawn: twice the size is as bad as a
# quarter of the picture lost.
ENLARGING_COST = 0.25  # a doubling
SHRINKING_COST = 0.05  # a halving
_LOSS_UNIT = 1e-6  # losses are counted in whole millionths: sums are exact, and so are ties
_NEVER = 1 << 60
_CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class BucketSettings:
    """How many frames of which sides, in pixels; every side is a multiple of the step."""

    count: int = 4  # frames at most; 1 = everything square. More of them follow the pictures, but each has fewer
    bucket_reso_steps: int | None = None  # null: 64, at most a quarter of the resolution
    min_bucket_reso: int | None = None  # null: half the resolution, at most 256
    max_bucket_reso: int | None = (
        None  # null: the power of two up to twice the resolution: 1024 at 512 and 768, 2048 at 1024
    )

    def __post_init__(self) -> None:
        wrong = []
        if self.count < 1:
            wrong.append(f"dataset.buckets.count={self.count}: must be at least 1 (1 = everything square)")
        if self.bucket_reso_steps is not None and self.bucket_reso_steps < 1:
            wrong.append(f"dataset.buckets.bucket_reso_steps={self.bucket_reso_steps}: must be at least 1 pixel")
        for key, side in (("min_bucket_reso", self.min_bucket_reso), ("max_bucket_reso", self.max_bucket_reso)):
            if side is not None and side < 1:
                wrong.append(f"dataset.buckets.{key}={side}: must be at least 1 pixel")
        if (
            self.min_bucket_reso is not None
            and self.max_bucket_reso is not None
            and self.min_bucket_reso > self.max_bucket_reso
        ):
            wrong.append(
                f"dataset.buckets.min_bucket_reso={self.min_bucket_reso}: must not be above max_bucket_reso={self.max_bucket_reso}"
            )
        if wrong:
            raise ConfigError("; ".join(wrong))

    def sides(self, resolution_px: int) -> range:
        """The sides that a frame may have at a resolution, pixels: from the shortest to the longest by the step.

        Raises:
            ConfigError: the step does not divide all of them, or the resolution is not among them.
        """
        step = self.bucket_reso_steps or max(1, min(64, resolution_px // 4))
        shortest, longest = min(256, resolution_px // 2), 1 << ((2 * resolution_px).bit_length() - 1)
        shortest = self.min_bucket_reso or max(shortest // step * step, step)
        longest = self.max_bucket_reso or longest // step * step
        odd = [side for side in (resolution_px, shortest, longest) if side < 1 or side % step]
        if odd:
            raise ConfigError(f"dataset.buckets.bucket_reso_steps={step} does not divide {odd[0]} px: give a step that divides the "
                              "resolution, min_side and max_side")  # fmt: skip
        if not shortest <= resolution_px <= longest:
            raise ConfigError(
                f"dataset.buckets.min_bucket_reso={shortest} and max_side={longest}: the resolution of {resolution_px} px "
                "must lie between them"
            )
        return range(shortest, longest + 1, step)


def potential_buckets(resolution_px: int, settings: BucketSettings) -> tuple[BucketSize, ...]:
    """Every frame of at most the resolution's area, from tall to wide; with a count of 1 only the square.

    For each width, the tallest height of the area; both orientations; the square.

    Raises:
        ConfigError: the step does not divide the resolution, or the resolution is not between the sides.
    """
    square = (resolution_px, resolution_px)
    if settings.count == 1:
        return (square,)
    sides, frames = settings.sides(resolution_px), {square}
    for width in sides:
        height = min(sides[-1], resolution_px**2 // width // sides.step * sides.step)
        if height >= sides[0]:
            frames |= {(width, height), (height, width)}
    return tuple(sorted(frames, key=ratio_then_area))


def choose_buckets(
    sizes: Sequence[tuple[int, int]], potential: Sequence[BucketSize], count: int
) -> tuple[BucketSize, ...]:
    """The at most `count` frames at which the pictures lose least in all, from tall to wide; fewer if as good.

    Each picture (width, height) takes the `nearest_bucket` of those chosen and loses its `CropPlan.loss`. Exact: between
    two neighbours the pictures divide at the geometric mean of their ratios, whatever else is chosen, so the best
    choice is a shortest path over the frames by ratio, O(frames^2 x count).

    Raises:
        ValueError: no sizes, no frames, or a count below 1.
    """
    if not len(sizes) or not len(potential) or count < 1:
        raise ValueError(f"need sizes, frames and a count above 0, got {len(sizes)}, {len(potential)} and {count}")
    frames = sorted(set(potential), key=ratio_then_area)
    wide, high = np.array(frames, dtype=np.int64).T
    groups, pictures = np.unique(np.asarray(sizes, dtype=np.int64), axis=0, return_counts=True)
    # Squares of ratios, one division of whole numbers each, so that a picture halfway between two frames ties.
    squares, halfway = groups[:, 0] ** 2 / groups[:, 1] ** 2, np.outer(wide, wide) / np.outer(high, high)
    order = np.argsort(squares, kind="stable")
    divide = np.searchsorted(squares[order], halfway, side="right")  # [i, j]: the groups that go to i, not to j

    losses = np.rint(_losses(groups[order], wide, high) / _LOSS_UNIT).astype(np.int64) * pictures[order]
    below = np.pad(losses.cumsum(axis=1), ((0, 0), (1, 0)))  # [i, g]: the first g groups, all at frame i
    rows = np.arange(len(frames))
    gain = below[rows[:, None], divide] - below[rows, divide]  # of the total, when frame j follows frame i
    # Of frames with one ratio only one can get pictures, so none follows another.
    gain = np.where(np.outer(wide, high) < np.outer(high, wide), gain, _NEVER)

    totals, best, paths = np.zeros(len(frames), np.int64), _NEVER, [[i] for i in range(len(frames))]
    chosen: list[int] = []
    for _ in range(min(count, len(frames))):
        ends = totals + below[:, -1]
        if ends.min() < best:
            best, chosen = int(ends.min()), paths[int(ends.argmin())]
        before = (totals[:, None] + gain).argmin(axis=0)
        totals = np.minimum(totals[before] + gain[before, rows], _NEVER)
        paths = [[*paths[i], j] for j, i in enumerate(before.tolist())]
    return tuple(frames[i] for i in chosen)


def nearest_bucket(width: int, height: int, frames: Sequence[BucketSize]) -> BucketSize:
    """The frame of the nearest aspect ratio (least difference of logarithms); of two as near, the taller one.

    Of frames of one ratio, the largest.
    """

    def times_off(frame: BucketSize) -> Fraction:
        quotient = Fraction(width * frame[1], height * frame[0])
        return max(quotient, 1 / quotient)

    return min(frames, key=lambda frame: (times_off(frame), *ratio_then_area(frame)))


def assign_buckets(pictures: Sequence[Picture], frames: Sequence[BucketSize]) -> list[Picture]:
    """The pictures, each with its nearest frame."""
    nearest = {size: nearest_bucket(*size, frames) for size in {(p.width, p.height) for p in pictures}}
    return [replace(picture, bucket=nearest[picture.width, picture.height]) for picture in pictures]


@dataclass(frozen=True)
class CropPlan:
    """How a picture comes into its frame: `box` of it is kept, in its own pixels, and resized by `scale`."""

    scale: float  # above 1: enlarged
    cropped: float  # share of its area that is cut off
    box: Box

    @property
    def loss(self) -> float:
        """The cropped share and the cost of the resize."""
        return self.cropped + float(_resize_cost(np.array(self.scale)))


def plan_crop(width: int, height: int, frame: BucketSize, centre: tuple[float, float] = _CENTRE) -> CropPlan:
    """How a picture covers its frame and is then cropped, with `centre` in the middle as far as there is picture.

    `centre`: from 0 to 1 of its width and height. One side at least is kept whole.
    """
    scale = max(frame[0] / width, frame[1] / height)
    kept_wide, kept_high = min(width, frame[0] / scale), min(height, frame[1] / scale)
    left = min(max(centre[0] * width - kept_wide / 2, 0.0), width - kept_wide)
    top = min(max(centre[1] * height - kept_high / 2, 0.0), height - kept_high)
    box = (left, top, min(left + kept_wide, width), min(top + kept_high, height))
    return CropPlan(scale, 1 - kept_wide * kept_high / (width * height), box)


def is_enlarged(picture: Picture) -> bool:
    """Whether a picture is smaller than what its frame asks of it.

    Raises:
        ValueError: it has no frame.
    """
    return plan_crop(picture.width, picture.height, bucket_of(picture)).scale > 1


def load_cropped(picture: Picture, flip: bool = False) -> NDArray[np.uint8]:
    """The picture in its frame, (height, width, 3) uint8 RGB, mirrored left to right if asked for.

    It is cropped around the centre of mass of its mask, else at its centre.

    Raises:
        DatasetError: the file or its mask is gone or broken.
        ValueError: it has no frame.
    """
    image = load_image(picture.path)
    framed = image.resize(bucket_of(picture), Image.Resampling.LANCZOS, plan_masked_crop(picture, image.size).box)
    return np.array(ImageOps.mirror(framed) if flip else framed)


def size_ids(picture: Picture, flip: bool = False) -> tuple[int, int, int, int, int, int]:
    """How `load_cropped` crops a picture, as SDXL is told (Podell et al. 2023, section 2.2), in pixels.

    Height and width of the original; top and left of what is kept, in the resized picture; height and width of the
    frame.

    Raises:
        ValueError: it has no frame.
    """
    fit, (width, height) = plan_masked_crop(picture, (picture.width, picture.height)), bucket_of(picture)
    left, top, right, _ = fit.box
    before = picture.width - right if flip else left
    return picture.height, picture.width, round(top * fit.scale), round(before * fit.scale), height, width


def load_mask(picture: Picture, flip: bool = False) -> NDArray[np.float32]:
    """The picture's mask as `load_cropped` crops it, (height, width) float32 from 0 to 1; all 1 without a mask.

    Raises:
        DatasetError: the mask is gone or broken.
        ValueError: the picture has no frame.
    """
    width, height = frame = bucket_of(picture)
    if picture.mask is None:
        return np.ones((height, width), np.float32)
    mask = load_image(picture.mask).convert("L")
    across, down = mask.width / picture.width, mask.height / picture.height  # a mask may be smaller than its picture
    left, top, right, bottom = plan_masked_crop(picture, (picture.width, picture.height)).box
    box = (left * across, top * down, min(right * across, mask.width), min(bottom * down, mask.height))
    framed = mask.resize(frame, Image.Resampling.BILINEAR, box)
    return np.asarray(ImageOps.mirror(framed) if flip else framed, dtype=np.float32) / np.float32(255)


def _losses(sizes: NDArray[np.int64], wide: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
    """`CropPlan.loss` of every size (n, 2) at every frame (m): (m, n)."""
    width, height = sizes.T
    scale: NDArray[np.float64] = np.maximum(wide[:, None] / width, high[:, None] / height)
    cropped: NDArray[np.float64] = 1 - (wide * high)[:, None] / (scale**2 * width * height)
    return cropped + _resize_cost(scale)


def _resize_cost(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    doublings = np.log2(scale)
    return np.asarray(np.maximum(ENLARGING_COST * doublings, -SHRINKING_COST * doublings))


def ratio_then_area(frame: BucketSize) -> tuple[Fraction, int]:
    """The order of frames: from tall to wide, of one ratio the largest first."""
    return Fraction(*frame), -frame[0] * frame[1]


def bucket_of(picture: Picture) -> BucketSize:
    if picture.bucket is None:
        raise ValueError(f"{picture.path} has no frame yet: assign_frames gives it one")
    return picture.bucket


def plan_masked_crop(picture: Picture, size: tuple[int, int]) -> CropPlan:
    """The fit of a picture of that size, around its mask's centre of mass."""
    centre = _CENTRE if picture.mask is None else _centre_of_mass(load_image(picture.mask).convert("L"))
    return plan_crop(*size, bucket_of(picture), centre)


def _centre_of_mass(mask: Image.Image) -> tuple[float, float]:
    """Where the white of a mask lies, from 0 to 1 of its width and height; the middle if it is all black."""
    levels = np.asarray(mask, dtype=np.float64)
    if not levels.any():
        return _CENTRE
    x = np.average(np.arange(mask.width) + 0.5, weights=levels.sum(axis=0)) / mask.width
    y = np.average(np.arange(mask.height) + 0.5, weights=levels.sum(axis=1)) / mask.height
    return float(x), float(y)
