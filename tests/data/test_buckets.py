"""Aspect-ratio buckets: potential buckets, the best choice of them, crops, and the report of what is lost."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autolora.data.bucket_report import bucket_sheet, bucket_table
from autolora.data.buckets import (
    ENLARGING_COST,
    SHRINKING_COST,
    BucketSettings,
    BucketSize,
    assign_buckets,
    choose_buckets,
    nearest_bucket,
    plan_crop,
    potential_buckets,
)
from autolora.data.crops import load_cropped, load_mask
from autolora.data.images import load_pixels
from autolora.data.sources import Picture
from autolora.errors import ConfigError, DatasetError

quick = settings(max_examples=80, deadline=None)
SIDE = st.integers(1, 24)
SIZE = st.tuples(SIDE, SIDE)


def _picture(path: Path, image: Image.Image, bucket: BucketSize | None = None, mask: Path | None = None) -> Picture:
    image.save(path)
    return Picture(path, "a", "a", *image.size, path.name, mask=mask, bucket=bucket)


def _gradient(width: int, height: int) -> Image.Image:
    """An image with a different color at every place: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("resolution_px", "sides", "count"),
    [
        (512, (256, 1024), 17),
        (1024, (256, 2048), 41),
        (768, (256, 1024), 19),
        (1024, (256, 1024), 25),
    ],
)
def test_number_of_potential_buckets_and_default_sides(resolution_px: int, sides: tuple[int, int], count: int) -> None:
    bucket_settings = BucketSettings(min_bucket_reso=sides[0], max_bucket_reso=sides[1])
    assert len(potential_buckets(resolution_px, bucket_settings)) == count
    if (resolution_px, sides) != (1024, (256, 1024)):
        defaults = BucketSettings().sides(resolution_px)
        assert (defaults[0], defaults[-1], defaults.step) == (*sides, 64)


def test_buckets_of_small_models_and_a_single_bucket_is_the_square() -> None:
    assert potential_buckets(64, BucketSettings()) == (
        *((32, 128), (32, 112), (32, 96), (48, 80), (64, 64)),
        *((80, 48), (96, 32), (112, 32), (128, 32)),
    )
    assert potential_buckets(64, BucketSettings(bucket_reso_steps=64)) == ((64, 64),)
    assert potential_buckets(500, BucketSettings(count=1)) == ((500, 500),)  # a single square needs no step


@quick
@given(st.integers(1, 24), st.integers(1, 40), st.integers(1, 24), st.integers(0, 40))
def test_buckets_respect_area_step_and_sides(step: int, units: int, least: int, more: int) -> None:
    resolution_px = step * units
    with_sides = BucketSettings(
        bucket_reso_steps=step, min_bucket_reso=min(least, units) * step, max_bucket_reso=(units + more) * step
    )
    for bucket_settings in (with_sides, BucketSettings(bucket_reso_steps=step)):
        sides = bucket_settings.sides(resolution_px)
        shortest, longest = sides[0], sides[-1]
        assert shortest <= resolution_px <= longest
        buckets = potential_buckets(resolution_px, bucket_settings)
        assert (resolution_px, resolution_px) in buckets
        assert {(height, width) for width, height in buckets} == set(buckets)
        assert [w / h for w, h in buckets] == sorted(w / h for w, h in buckets)
        for side in itertools.chain(*buckets):
            assert side % step == 0 and shortest <= side <= longest
        assert all(width * height <= resolution_px**2 for width, height in buckets)


def test_invalid_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        BucketSettings(count=0, bucket_reso_steps=0, min_bucket_reso=-64, max_bucket_reso=-128)
    text = str(caught.value)
    assert "dataset.buckets.count=0: must be at least 1" in text
    assert "dataset.buckets.bucket_reso_steps=0: must be at least 1 pixel" in text
    assert "dataset.buckets.min_bucket_reso=-64: must be at least 1 pixel" in text
    assert "dataset.buckets.max_bucket_reso=-128: must be at least 1 pixel" in text
    assert "min_bucket_reso=-64: must not be above max_bucket_reso=-128" in text
    for resolution_px, bucket_settings, side in (
        (512, BucketSettings(max_bucket_reso=1000), 1000),
        (500, BucketSettings(), 500),
    ):
        with pytest.raises(ConfigError, match=rf"buckets\.bucket_reso_steps=64 does not divide {side} px"):
            potential_buckets(resolution_px, bucket_settings)
    for sides in ({"min_bucket_reso": 576}, {"max_bucket_reso": 448}):
        with pytest.raises(ConfigError, match="the resolution of 512 px must lie between them"):
            potential_buckets(512, BucketSettings(**sides))


def _loss(sizes: list[tuple[int, int]], buckets: tuple[BucketSize, ...]) -> int:
    """The total loss of all images in whole millionths."""
    plans = [plan_crop(*size, nearest_bucket(*size, buckets)) for size in sizes]
    return sum(round(1e6 * plan.loss) for plan in plans)


@quick
@given(st.lists(SIZE, min_size=1, max_size=12), st.lists(SIZE, min_size=1, max_size=6, unique=True), st.integers(1, 4))
def test_no_other_choice_of_buckets_loses_less(
    sizes: list[tuple[int, int]], potential: list[BucketSize], count: int
) -> None:
    chosen = choose_buckets(sizes, potential, count)
    assert chosen == choose_buckets(sizes[::-1], potential[::-1], count)
    subsets = {
        subset: _loss(sizes, subset)
        for size in range(1, min(count, len(potential)) + 1)
        for subset in itertools.combinations(potential, size)
    }
    least = min(subsets.values())
    loss = _loss(sizes, chosen)
    assert abs(loss - least) <= len(sizes)  # another order of the same arithmetic may round differently
    assert len(chosen) <= count and set(chosen) <= set(potential)
    # A bucket that reduces no loss is not chosen, so every bucket has images.
    assert all(subsets[s] > loss - len(sizes) for s in subsets if len(s) < len(chosen))
    assert {nearest_bucket(*size, chosen) for size in sizes} == set(chosen)


@quick
@given(st.lists(SIZE, min_size=1, max_size=30), st.lists(SIZE, min_size=1, max_size=12, unique=True))
def test_more_buckets_never_lose_more(sizes: list[tuple[int, int]], potential: list[BucketSize]) -> None:
    losses = [_loss(sizes, choose_buckets(sizes, potential, count)) for count in (1, 2, 3, 5, 20)]
    assert all(more <= fewer + len(sizes) for fewer, more in itertools.pairwise(losses))


def test_chosen_buckets_fit_the_images() -> None:
    potential = potential_buckets(512, BucketSettings())
    assert choose_buckets([(800, 800)] * 3, potential, 4) == ((512, 512),)
    assert choose_buckets([(512, 768)] * 9 + [(1024, 640)], potential, 4) == ((384, 640), (640, 384))
    assert choose_buckets([(512, 768)] * 90 + [(1000, 1000)], potential, 1) == ((384, 640),)
    for sizes, buckets, count in (([], potential, 1), ([(1, 1)], (), 1), ([(1, 1)], potential, 0)):
        with pytest.raises(ValueError, match="need sizes, buckets and a count above 0"):
            choose_buckets(sizes, buckets, count)


def test_ten_thousand_sizes_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(300, 2000, (10_000, 2))]
    potential = potential_buckets(1024, BucketSettings())
    began = time.process_time()
    chosen = choose_buckets(sizes, potential, 5)
    assert time.process_time() - began < 2  # takes 0.2 s on an idle machine
    assert len(chosen) == 5


def test_the_nearest_ratio_is_used_and_ties_go_to_the_taller_and_larger_bucket() -> None:
    buckets = ((448, 576), (576, 448), (288, 224))
    assert nearest_bucket(500, 500, buckets) == (448, 576)
    assert nearest_bucket(501, 500, buckets) == (576, 448)
    assert nearest_bucket(2000, 100, buckets) == (576, 448)
    # A square lies exactly between these two buckets: its loss is counted in the taller one, which it is assigned to.
    assert choose_buckets([(16, 16), (32, 16)], ((8, 16), (32, 16)), 2) == ((8, 16), (32, 16))


def test_images_are_assigned_to_buckets() -> None:
    pictures = [Picture(Path("a"), "a", "a", w, h, "a") for w, h in ((500, 800), (800, 500), (900, 900))]
    assigned = assign_buckets(pictures, ((512, 512), (640, 384)))
    assert [p.bucket for p in assigned] == [(512, 512), (640, 384), (512, 512)]
    assert [replace(p, bucket=None) for p in assigned] == pictures


@quick
@given(SIZE, SIZE, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_an_image_covers_its_bucket(size: tuple[int, int], bucket: BucketSize, center: tuple[float, float]) -> None:
    (width, height), plan = size, plan_crop(*size, bucket, center)
    left, top, right, bottom = plan.box
    resized = (width * plan.scale, height * plan.scale)
    assert resized[0] >= bucket[0] - 1e-9 and resized[1] >= bucket[1] - 1e-9
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)
    assert (right - left) / (bottom - top) == pytest.approx(bucket[0] / bucket[1])
    assert plan.cropped == pytest.approx(1 - (right - left) * (bottom - top) / (width * height))
    for low, high, side, share in ((left, right, width, center[0]), (top, bottom, height, center[1])):
        middle = (low + high) / 2
        assert middle == pytest.approx(share * side) or low == pytest.approx(0) or high == pytest.approx(side)


def test_blur_costs_more_than_lost_detail() -> None:
    assert plan_crop(512, 512, (512, 512)).loss == 0
    assert plan_crop(256, 256, (512, 512)).loss == ENLARGING_COST
    assert plan_crop(1024, 1024, (512, 512)).loss == SHRINKING_COST < ENLARGING_COST
    assert plan_crop(1024, 512, (512, 512)).loss == 0.5
    assert plan_crop(1024, 512, (512, 512)).box == (256, 0, 768, 512)
    assert plan_crop(1024, 512, (512, 512), (0.1, 0.1)).box == (0, 0, 512, 512)
    assert plan_crop(1024, 512, (512, 512), (0.7, 0.1)).box == pytest.approx((460.8, 0, 972.8, 512))


@pytest.mark.parametrize("bucket", [(32, 32), (16, 48), (80, 48), (64, 128)])
def test_pixels_are_those_of_a_centered_crop(tmp_path: Path, bucket: BucketSize) -> None:
    picture = _picture(tmp_path / "a.png", _gradient(61, 90), bucket)
    pixels = load_cropped(picture)
    assert pixels.shape == (bucket[1], bucket[0], 3) and pixels.dtype == np.uint8
    assert (pixels == load_pixels(picture.path, *bucket)).all()
    assert (load_cropped(picture, flip=True) == pixels[:, ::-1]).all()
    assert (load_mask(picture) == np.ones((bucket[1], bucket[0]))).all()


def test_a_mask_is_cropped_like_its_image_and_centers_the_crop(tmp_path: Path) -> None:
    mask_image = Image.new("L", (50, 10))  # half as large as its image
    mask_image.paste(255, (30, 0, 40, 10))
    mask_image.save(tmp_path / "mask.png")
    picture = _picture(tmp_path / "a.png", _gradient(100, 20), (20, 20), tmp_path / "mask.png")
    red = load_cropped(picture)[:, :, 0]
    assert red.min() >= 0.59 * 255 and red.max() <= 0.81 * 255  # from 60 to 80 of 100
    mask = load_mask(picture)
    assert mask.dtype == np.float32 and mask.shape == (20, 20)
    assert (mask[:, 1:-1] == 1).all()  # the resize smooths its edges

    wide = replace(picture, bucket=(40, 20))
    mask = load_mask(wide)
    assert (mask[:, 12:28] == 1).all() and (mask[:, :8] == 0).all() and (mask[:, 32:] == 0).all()
    mask_image.paste(128, (0, 0, 50, 10))
    mask_image.paste(255, (28, 0, 50, 10))
    mask_image.save(tmp_path / "mask.png")
    mask = load_mask(wide)
    assert mask.min() == pytest.approx(128 / 255) and mask.max() <= 1
    assert (load_mask(wide, flip=True) == mask[:, ::-1]).all()

    Image.new("L", (50, 10)).save(tmp_path / "mask.png")  # all black: the crop is centered on the image
    assert (load_cropped(wide) == load_pixels(wide.path, 40, 20)).all()
    assert not load_mask(wide).any()


def test_missing_masks_and_buckets_are_errors(tmp_path: Path) -> None:
    picture = _picture(tmp_path / "a.png", _gradient(8, 8), (8, 8), tmp_path / "gone.png")
    for load in (load_cropped, load_mask):
        with pytest.raises(DatasetError, match=r"gone\.png: can no longer be read"):
            load(picture)
        with pytest.raises(ValueError, match="has no bucket yet"):
            load(replace(picture, bucket=None, mask=None))
    with pytest.raises(ValueError, match="has no bucket yet"):
        bucket_table([replace(picture, bucket=None)])


def test_the_table_and_the_sheet_show_the_loss(tmp_path: Path) -> None:
    sizes = [(32, 64), (64, 64), (128, 64), (40, 40)]
    pictures = [_picture(tmp_path / f"{i}.png", Image.new("RGB", s, "white")) for i, s in enumerate(sizes)]
    pictures = assign_buckets(pictures, ((64, 64), (32, 64)))
    tall, square = bucket_table(pictures)
    assert (tall.bucket, tall.pictures, tall.worst_cropped, tall.worst_scale) == ((32, 64), 1, 0, 1)
    assert (square.bucket, square.pictures, square.worst_cropped) == ((64, 64), 3, 0.5)
    assert square.mean_cropped == pytest.approx(0.5 / 3)
    assert (square.mean_scale, square.worst_scale) == (pytest.approx(1.2), pytest.approx(1.6))

    sheet = np.asarray(bucket_sheet(pictures, columns=2, thumbnail_px=64).convert("RGB")).astype(int)
    assert sheet.shape == (8 + 2 * (16 + 64 + 16 + 8), 8 + 2 * (64 + 8), 3)  # two rows of two
    worst = sheet[8 + 104 + 16 :, 8:][
        :32, :64
    ]  # first image of the second bucket: 128 x 64, its outer quarters cropped
    red = (worst == (255, 0, 0)).all(axis=2)
    assert red[0, 16:48].all() and red[31, 16:48].all() and red[:, 16].all() and red[:, 47].all()
    assert red.sum() == 2 * 32 + 2 * 30
    assert (worst[:, :16] < 100).all() and (worst[:, 48:] < 100).all() and (worst[1:31, 17:47] == 255).all()


def test_a_very_long_image_is_shown_too(tmp_path: Path) -> None:
    ribbon = _picture(tmp_path / "ribbon.png", Image.new("RGB", (4000, 8)), (64, 64))
    assert (np.asarray(bucket_sheet([ribbon])) == (255, 0, 0)).all(axis=2).any()
    assert bucket_table([ribbon])[0].worst_cropped == pytest.approx(0.998)
    assert load_cropped(ribbon).shape == (64, 64, 3)
