"""Aspect-ratio buckets: which bucket resolutions a dataset is trained at, and the crop that fits an image into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from autolora.data.sources import Picture
from autolora.errors import ConfigError

BucketSize = tuple[int, int]  # width and height, pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels

# The cost of resizing, as the share of the image that could be cropped away instead. Shrinking keeps sharp pixels and
# loses only fine detail. Enlarging shows the model blur, which it learns as part of the drawing: doubling the size is
# as bad as losing a quarter of the image.
ENLARGING_COST = 0.25  # per doubling
SHRINKING_COST = 0.05  # per halving
CENTER = (0.5, 0.5)  # shares of width and height
_LOSS_UNIT = 1e-6  # losses are counted in whole millionths, so that sums and ties are exact
_IMPOSSIBLE = 1 << 60


@dataclass(frozen=True)
class BucketSettings:
    """The number of buckets and their sides in pixels; every side is a multiple of `bucket_reso_steps`."""

    count: int = 4  # at most; 1: only the square. More buckets fit the images better, but each has fewer images
    bucket_reso_steps: int | None = None  # None: 64, at most a quarter of the resolution
    min_bucket_reso: int | None = None  # None: half the resolution, at most 256
    max_bucket_reso: int | None = None  # None: the largest power of two up to twice the resolution: 1024 at 512 and 768

    def __post_init__(self) -> None:
        wrong = []
        shortest, longest = self.min_bucket_reso, self.max_bucket_reso
        if self.count < 1:
            wrong.append(f"dataset.buckets.count={self.count}: must be at least 1 (1 = only squares)")
        if self.bucket_reso_steps is not None and self.bucket_reso_steps < 1:
            wrong.append(f"dataset.buckets.bucket_reso_steps={self.bucket_reso_steps}: must be at least 1 pixel")
        for key, side in (("min_bucket_reso", shortest), ("max_bucket_reso", longest)):
            if side is not None and side < 1:
                wrong.append(f"dataset.buckets.{key}={side}: must be at least 1 pixel")
        if shortest is not None and longest is not None and shortest > longest:
            wrong.append(f"dataset.buckets.min_bucket_reso={shortest}: must not be above max_bucket_reso={longest}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    def sides(self, resolution_px: int) -> range:
        """The sides that a bucket may have at a resolution, in pixels, from the shortest to the longest.

        Raises:
            ConfigError: the step does not divide all sides, or the resolution is not among them.
        """
        step = self.bucket_reso_steps or max(1, min(64, resolution_px // 4))
        shortest, longest = min(256, resolution_px // 2), 1 << ((2 * resolution_px).bit_length() - 1)
        shortest = self.min_bucket_reso or max(shortest // step * step, step)
        longest = self.max_bucket_reso or longest // step * step
        undivided = [side for side in (resolution_px, shortest, longest) if side < 1 or side % step]
        if undivided:
            raise ConfigError(
                f"dataset.buckets.bucket_reso_steps={step} does not divide {undivided[0]} px: set a step that divides "
                "the resolution, min_bucket_reso and max_bucket_reso"
            )
        if not shortest <= resolution_px <= longest:
            raise ConfigError(
                f"dataset.buckets.min_bucket_reso={shortest} and max_bucket_reso={longest}: the resolution of "
                f"{resolution_px} px must lie between them"
            )
        return range(shortest, longest + 1, step)


def potential_buckets(resolution_px: int, settings: BucketSettings) -> tuple[BucketSize, ...]:
    """All buckets of at most the resolution's area, from tall to wide; only the square for a count of 1.

    Each width is combined with the tallest height that the area allows, in both orientations; the square is added.

    Raises:
        ConfigError: the step does not divide the resolution, or the resolution is not between the sides.
    """
    square = (resolution_px, resolution_px)
    if settings.count == 1:
        return (square,)
    sides, buckets = settings.sides(resolution_px), {square}
    for width in sides:
        height = min(sides[-1], resolution_px**2 // width // sides.step * sides.step)
        if height >= sides[0]:
            buckets |= {(width, height), (height, width)}
    return tuple(sorted(buckets, key=ratio_then_area))


def choose_buckets(
    sizes: Sequence[tuple[int, int]], potential: Sequence[BucketSize], count: int
) -> tuple[BucketSize, ...]:
    """The buckets, at most `count`, with the smallest total loss, from tall to wide; fewer if they are as good.

    Each image takes the `nearest_bucket` and loses its `CropPlan.loss`. The result is exact: images between two
    neighboring buckets divide at the geometric mean of their ratios, whatever the other buckets are, so the best choice
    is a shortest path over the buckets in order of their ratio, O(buckets^2 x count).

    Args:
        sizes: width and height of each image.
        potential: the buckets to choose from.
        count: number of buckets at most.

    Raises:
        ValueError: there are no sizes or no buckets, or the count is below 1.
    """
    if not len(sizes) or not len(potential) or count < 1:
        raise ValueError(f"need sizes, buckets and a count above 0, got {len(sizes)}, {len(potential)} and {count}")
    buckets = sorted(set(potential), key=ratio_then_area)
    widths, heights = np.array(buckets, dtype=np.int64).T
    groups, images = np.unique(np.asarray(sizes, dtype=np.int64), axis=0, return_counts=True)
    # Squares of ratios need one division of whole numbers each, so an image exactly between two buckets is a tie.
    squares, halfway = groups[:, 0] ** 2 / groups[:, 1] ** 2, np.outer(widths, widths) / np.outer(heights, heights)
    order = np.argsort(squares, kind="stable")
    divide = np.searchsorted(squares[order], halfway, side="right")  # [i, j]: number of groups in i rather than j

    losses = np.rint(_losses(groups[order], widths, heights) / _LOSS_UNIT).astype(np.int64) * images[order]
    below = np.pad(losses.cumsum(axis=1), ((0, 0), (1, 0)))  # [i, g]: loss of the first g groups in bucket i
    rows = np.arange(len(buckets))
    gain = below[rows[:, None], divide] - below[rows, divide]  # change of the total if bucket j follows bucket i
    # Of buckets with the same ratio only one can get images, so none of them follows another.
    gain = np.where(np.outer(widths, heights) < np.outer(heights, widths), gain, _IMPOSSIBLE)

    totals, best, paths = np.zeros(len(buckets), np.int64), _IMPOSSIBLE, [[i] for i in range(len(buckets))]
    chosen: list[int] = []
    for _ in range(min(count, len(buckets))):
        ends = totals + below[:, -1]
        if ends.min() < best:
            best, chosen = int(ends.min()), paths[int(ends.argmin())]
        before = (totals[:, None] + gain).argmin(axis=0)
        totals = np.minimum(totals[before] + gain[before, rows], _IMPOSSIBLE)
        paths = [[*paths[i], j] for j, i in enumerate(before.tolist())]
    return tuple(buckets[i] for i in chosen)


def nearest_bucket(width: int, height: int, buckets: Sequence[BucketSize]) -> BucketSize:
    """The bucket of the nearest aspect ratio (smallest difference of logarithms).

    Of two equally near ratios the taller one is used, of buckets with the same ratio the largest.
    """

    def factor(bucket: BucketSize) -> Fraction:
        quotient = Fraction(width * bucket[1], height * bucket[0])
        return max(quotient, 1 / quotient)

    return min(buckets, key=lambda bucket: (factor(bucket), *ratio_then_area(bucket)))


def assign_buckets(pictures: Sequence[Picture], buckets: Sequence[BucketSize]) -> list[Picture]:
    """The images, each with its nearest bucket."""
    nearest = {size: nearest_bucket(*size, buckets) for size in {(p.width, p.height) for p in pictures}}
    return [replace(picture, bucket=nearest[picture.width, picture.height]) for picture in pictures]


@dataclass(frozen=True)
class CropPlan:
    """How an image fits into its bucket: `box` is cut out, in pixels of the image, and resized by `scale`."""

    scale: float  # above 1: enlarged
    cropped: float  # share of the image's area that is cut off
    box: Box

    @property
    def loss(self) -> float:
        """The cropped share plus the cost of resizing."""
        return self.cropped + float(_resize_cost(np.array(self.scale)))


def plan_crop(width: int, height: int, bucket: BucketSize, center: tuple[float, float] = CENTER) -> CropPlan:
    """How an image covers its bucket; at least one side is not cropped.

    Args:
        width: of the image.
        height: of the image.
        bucket: the bucket.
        center: point of the image, in shares of its width and height, to have in the middle as far as possible.
    """
    scale = max(bucket[0] / width, bucket[1] / height)
    box_width, box_height = min(width, bucket[0] / scale), min(height, bucket[1] / scale)
    left = min(max(center[0] * width - box_width / 2, 0.0), width - box_width)
    top = min(max(center[1] * height - box_height / 2, 0.0), height - box_height)
    box = (left, top, min(left + box_width, width), min(top + box_height, height))
    return CropPlan(scale, 1 - box_width * box_height / (width * height), box)


def is_enlarged(picture: Picture) -> bool:
    """Whether an image is smaller than its bucket.

    Raises:
        ValueError: it has no bucket.
    """
    return plan_crop(picture.width, picture.height, bucket_of(picture)).scale > 1


def ratio_then_area(bucket: BucketSize) -> tuple[Fraction, int]:
    """A sort key for buckets: from tall to wide, of one ratio the largest first."""
    return Fraction(*bucket), -bucket[0] * bucket[1]


def bucket_of(picture: Picture) -> BucketSize:
    """The bucket of an image.

    Raises:
        ValueError: it has none.
    """
    if picture.bucket is None:
        raise ValueError(f"{picture.path} has no bucket yet: call assign_buckets first")
    return picture.bucket


def _losses(sizes: NDArray[np.int64], widths: NDArray[np.int64], heights: NDArray[np.int64]) -> NDArray[np.float64]:
    """`CropPlan.loss` of every size (n, 2) in every bucket (m): (m, n)."""
    width, height = sizes.T
    scale: NDArray[np.float64] = np.maximum(widths[:, None] / width, heights[:, None] / height)
    cropped: NDArray[np.float64] = 1 - (widths * heights)[:, None] / (scale**2 * width * height)
    return cropped + _resize_cost(scale)


def _resize_cost(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    doublings = np.log2(scale)
    return np.asarray(np.maximum(ENLARGING_COST * doublings, -SHRINKING_COST * doublings))
