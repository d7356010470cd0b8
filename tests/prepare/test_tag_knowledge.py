"""Tags that the base model can draw are distinguished from others; the level of absorbed tags follows from that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolora.errors import ConfigError
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.prepare.tag_knowledge import (
    TAG_AUDIT,
    DrawableTag,
    absorbed_tags,
    drawable_tags,
    suggest_level,
    tag_requests,
)
from autolora.sampling import BaseRenders
from autolora.scoring.encoders import load_encoder
from autolora.scoring.intervals import Estimate

LEVELS = {"marks": {"mona": ("gold horns",)}, "all": {"mona": ("gold horns", "red hair", "blue eyes")}}


def results(**drawable: bool) -> tuple[DrawableTag, ...]:
    return tuple(DrawableTag(name.replace("_", " "), Estimate(0, 0, 0), value) for name, value in drawable.items())


def test_the_packaged_model_draws_its_vocabulary_but_no_marks(tmp_path: Path) -> None:
    renders = BaseRenders(load_model(ModelSettings()), RenderSettings(num_inference_steps=8), tmp_path)
    tags, finished = ("green hair", "yellow eyes", "glasses", "teal halo", "violet antlers"), []
    settings = replace(TAG_AUDIT, seeds=5)
    result = drawable_tags(tags, renders, load_encoder("paperdoll"), "1girl", settings, finished.append)
    assert [r.tag for r in result if r.drawable] == ["green hair", "yellow eyes", "glasses"]
    assert all(r.response.low <= r.response.value <= r.response.high for r in result)
    assert sum(finished) == len(tag_requests(tags, "1girl", settings)) == 30


def test_the_class_word_as_tag_has_no_response(tmp_path: Path) -> None:
    renders = BaseRenders(load_model(ModelSettings()), RenderSettings(num_inference_steps=2), tmp_path)
    (result,) = drawable_tags(["1girl"], renders, load_encoder("paperdoll"), "1girl", replace(TAG_AUDIT, seeds=3))
    assert result.response == Estimate(0, 0, 0) and not result.drawable


@pytest.mark.parametrize(
    ("drawable", "level"),
    [
        ({"gold_horns": False, "red_hair": True, "blue_eyes": True}, "marks"),
        ({"gold_horns": False, "red_hair": False, "blue_eyes": False}, "all"),
        ({"gold_horns": True, "red_hair": True, "blue_eyes": True}, "none"),
        ({"gold_horns": False, "red_hair": False, "blue_eyes": True}, "marks"),  # a tie: the weaker level
    ],
)
def test_tags_that_cannot_be_drawn_are_absorbed_and_others_kept(drawable: dict[str, bool], level: str) -> None:
    assert suggest_level(LEVELS, results(**drawable)) == level


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_no_level_is_right_for_more_tags_than_the_suggested_one(drawable: list[bool]) -> None:
    tags = results(**dict(zip(("gold_horns", "red_hair", "blue_eyes"), drawable, strict=True)))

    def right(level: str) -> int:
        return sum((tag.tag in absorbed_tags(LEVELS, level)) != tag.drawable for tag in tags)

    assert right(suggest_level(LEVELS, tags)) == max(map(right, ("none", "marks", "all")))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"audit\.seeds must be at least 3, got 2"):
        replace(TAG_AUDIT, seeds=2)
