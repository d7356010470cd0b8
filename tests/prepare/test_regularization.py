"""Class pictures: what they show, that each is there once, and that their seeds are no probe's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from autolora.data.concepts import Concept, Dataset
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.prepare.regularization import FEWEST, FIRST_SEED, class_pictures, class_prompts, suggest_regularization
from autolora.sampling import BaseRenders
from tests.data.folders import pictures_of


def dataset(trigger: str) -> Dataset:
    pictures = tuple(pictures_of([f"1girl, {trigger}, dress, {place}" for place in ("city", "beach")]))
    return Dataset("mona", Path(), trigger, "1girl", (Concept("mona dress", "dress", pictures),), ())


def test_the_words_of_a_trigger_are_shown_as_they_are_to_the_base_model() -> None:
    counts = Counter(class_prompts(dataset("Mona_Taco"), ["smile"], 64))
    assert counts == {"1girl": 48, "1girl, smile": 8, "Mona": 4, "Taco": 4}
    assert Counter(class_prompts(dataset("mona"), ["smile"], 64)) == {"1girl": 48, "1girl, smile": 16}


def test_each_picture_is_different_and_drawn_once(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    renders = BaseRenders(tiny_model, RenderSettings(num_inference_steps=1, batch_size=4), tmp_path)
    drawn: list[int] = []
    found = class_pictures(["1girl", "1girl", "city"], renders, 1000, drawn.append)
    assert [p.caption for p in found] == ["1girl", "1girl", "city"] and len({p.sha256 for p in found}) == 3
    assert {p.bucket for p in found} == {(32, 32)} and sum(drawn) == 3
    assert found[2].path == renders.path("city", 1000 + FIRST_SEED + 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert class_pictures(["1girl", "1girl", "city"], renders, 1000) == found
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_more_bleed_asks_for_more_pictures_and_names_what_leaks() -> None:
    mild = suggest_regularization({"1girl": 0.2, "1girl, mon": 0.0}, own_steps=9600)
    grave = suggest_regularization({"1girl": 0.63, "1girl, mon": 0.4, "solo": 0.1}, own_steps=9600)
    assert (mild.share, mild.count, mild.prompts) == (0.25, 96, ("1girl",))
    assert (grave.share, grave.count, grave.prompts) == (0.5, 192, ("1girl", "1girl, mon"))
    assert grave.summary == (
        "192 regularization images of `1girl`, `1girl, mon` (train.reg_ratio=0.5 model.num_class_images=192)"
    )
    assert suggest_regularization({"1girl": 0.2}, share=0.5, own_steps=100).share == 0.75
    assert suggest_regularization({"1girl": 0.2}, own_steps=100).count == FEWEST
    assert suggest_regularization({"1girl": 0.2, "solo": 0.9}).prompts == ("1girl", "solo")
