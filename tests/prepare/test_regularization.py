"""Class pictures: what they show, that each is there once, and that their seeds are no probe's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from autolora.data.concepts import Concept, Dataset
from autolora.models import RenderSettings, StableDiffusion
from autolora.prepare.regularization import FIRST_SEED, class_pictures, class_prompts
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
    renders = BaseRenders(tiny_model, RenderSettings(steps=1, batch_size=4), tmp_path)
    drawn: list[int] = []
    found = class_pictures(["1girl", "1girl", "city"], renders, 1000, drawn.append)
    assert [p.caption for p in found] == ["1girl", "1girl", "city"] and len({p.sha256 for p in found}) == 3
    assert {p.frame for p in found} == {(32, 32)} and sum(drawn) == 3
    assert found[2].path == renders.path("city", 1000 + FIRST_SEED + 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert class_pictures(["1girl", "1girl", "city"], renders, 1000) == found
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
