"""Class images: their prompts, no duplicates, seeds apart from evaluation prompts, and the suggestion against bleed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from autolora.data.concepts import Concept, Dataset
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.prepare.regularization import (
    FEWEST_IMAGES,
    SEED_OFFSET,
    class_pictures,
    class_prompts,
    suggest_regularization,
)
from autolora.sampling import BaseRenders
from tests.data.folders import pictures_of


def dataset(trigger: str) -> Dataset:
    pictures = tuple(pictures_of([f"1girl, {trigger}, dress, {place}" for place in ("city", "beach")]))
    return Dataset("mona", Path(), trigger, "1girl", (Concept("mona dress", "dress", pictures),), ())


def test_class_prompts_include_the_words_of_a_trigger() -> None:
    counts = Counter(class_prompts(dataset("Mona_Taco"), ["smile"], 64))
    assert counts == {"1girl": 48, "1girl, smile": 8, "Mona": 4, "Taco": 4}
    assert Counter(class_prompts(dataset("mona"), ["smile"], 64)) == {"1girl": 48, "1girl, smile": 16}


def test_each_class_image_is_different_and_rendered_once(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    renders = BaseRenders(tiny_model, RenderSettings(num_inference_steps=1, batch_size=4), tmp_path)
    finished: list[int] = []
    images = class_pictures(["1girl", "1girl", "city"], renders, 1000, finished.append)
    assert [p.caption for p in images] == ["1girl", "1girl", "city"] and len({p.sha256 for p in images}) == 3
    assert {p.bucket for p in images} == {(32, 32)} and sum(finished) == 3
    assert images[2].path == renders.path("city", 1000 + SEED_OFFSET + 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert class_pictures(["1girl", "1girl", "city"], renders, 1000) == images
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_more_bleed_suggests_more_images_of_the_bleeding_prompts() -> None:
    mild = suggest_regularization({"1girl": 0.2, "1girl, mon": 0.0}, images_shown=9600)
    severe = suggest_regularization({"1girl": 0.63, "1girl, mon": 0.4, "solo": 0.1}, images_shown=9600)
    assert (mild.reg_ratio, mild.count, mild.prompts) == (0.25, 96, ("1girl",))
    assert (severe.reg_ratio, severe.count, severe.prompts) == (0.5, 192, ("1girl", "1girl, mon"))
    assert severe.summary == (
        "192 regularization images of `1girl`, `1girl, mon` (train.reg_ratio=0.5 model.num_class_images=192)"
    )
    assert suggest_regularization({"1girl": 0.2}, reg_ratio=0.5, images_shown=100).reg_ratio == 0.75
    assert suggest_regularization({"1girl": 0.2}, images_shown=100).count == FEWEST_IMAGES
    assert suggest_regularization({"1girl": 0.2, "solo": 0.9}).prompts == ("1girl", "solo")
