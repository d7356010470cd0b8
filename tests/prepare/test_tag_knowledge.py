"""Tags that the base model draws are told from those that mean nothing to it, and pruning is suggested from that."""

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


def found(**drawn: bool) -> tuple[DrawableTag, ...]:
    return tuple(DrawableTag(name.replace("_", " "), Estimate(0, 0, 0), value) for name, value in drawn.items())


def test_the_packaged_model_draws_its_vocabulary_and_no_mark(tmp_path: Path) -> None:
    renders = BaseRenders(load_model(ModelSettings()), RenderSettings(num_inference_steps=8), tmp_path)
    tags, heard = ("green hair", "yellow eyes", "glasses", "teal halo", "violet antlers"), []
    settings = replace(TAG_AUDIT, seeds=5)
    result = drawable_tags(tags, renders, load_encoder("paperdoll"), "1girl", settings, heard.append)
    assert [one.tag for one in result if one.drawable] == ["green hair", "yellow eyes", "glasses"]
    assert all(one.response.low <= one.response.value <= one.response.high for one in result)
    assert sum(heard) == len(tag_requests(tags, "1girl", settings)) == 30


def test_a_tag_that_is_the_class_word_itself_changes_nothing(tmp_path: Path) -> None:
    renders = BaseRenders(load_model(ModelSettings()), RenderSettings(num_inference_steps=2), tmp_path)
    (one,) = drawable_tags(["1girl"], renders, load_encoder("paperdoll"), "1girl", replace(TAG_AUDIT, seeds=3))
    assert one.response == Estimate(0, 0, 0) and not one.drawable


@pytest.mark.parametrize(
    ("drawn", "level"),
    [
        ({"gold_horns": False, "red_hair": True, "blue_eyes": True}, "marks"),
        ({"gold_horns": False, "red_hair": False, "blue_eyes": False}, "all"),
        ({"gold_horns": True, "red_hair": True, "blue_eyes": True}, "none"),
        ({"gold_horns": False, "red_hair": False, "blue_eyes": True}, "marks"),  # a tie: the weaker
    ],
)
def test_what_cannot_be_drawn_is_absorbed_and_what_can_is_kept(drawn: dict[str, bool], level: str) -> None:
    assert suggest_level(LEVELS, found(**drawn)) == level


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_no_level_is_right_for_more_tags_than_the_suggested_one(drawn: list[bool]) -> None:
    tags = found(**dict(zip(("gold_horns", "red_hair", "blue_eyes"), drawn, strict=True)))

    def right(level: str) -> int:
        return sum((one.tag in absorbed_tags(LEVELS, level)) != one.drawable for one in tags)

    assert right(suggest_level(LEVELS, tags)) == max(map(right, ("none", "marks", "all")))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"audit\.seeds must be at least 3, got 2"):
        replace(TAG_AUDIT, seeds=2)
