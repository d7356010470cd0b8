"""Cleaning of captions: duplicate, superfluous, contradictory and unwanted tags are removed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.caption_cleaning import Removal, clean_report
from autolora.data.caption_recipe import CaptionRecipe, apply_captions, caption_changes
from autolora.data.captions import is_sentence, split_tags
from autolora.data.concepts import Concept, Dataset
from tests.data.caption_strategies import DATASETS
from tests.data.folders import captions_of, dataset_of, pictures_of


def cleaned(*captions: str, keep_tags: int = 0) -> list[str]:
    return captions_of(apply_captions(CaptionRecipe(), dataset_of({"fit_a": captions}), 0, keep_tags))


@pytest.mark.parametrize(
    ("caption", "result"),
    [
        ("1girl, long hair, Long_Hair, zorak, smile, ZORAK", "1girl, long hair, zorak, smile"),  # duplicates
        ("masterpiece, rating:safe, score_9, highres, 1girl, watermark, smile", "1girl, smile"),
        ("hair, very long hair, dress, long hair, blue dress", "very long hair, blue dress"),
        (r"1girl, mona \(game\), smile, mona (game)", r"1girl, mona \(game\), smile"),
        ("masterpiece, highres", "masterpiece, highres"),  # an empty caption would train the unconditional prediction
        ("a photo of a girl, zorak, masterpiece, masterpiece", "a photo of a girl, zorak, masterpiece, masterpiece"),
        ("fit a, fit_a", "fit_a"),  # the trigger stays, a similar spelling does not
        ("1girl, 2girls, blue hair, red hair", "1girl, 2girls, blue hair, red hair"),
    ],
)
def test_cleaning(caption: str, result: str) -> None:
    assert cleaned(caption) == [result]


def test_the_more_frequent_of_contradictory_tags_stays() -> None:
    rare = "zorak, red hair, open mouth, day, short hair"
    often = ["zorak, blue hair, day", "zorak, blue hair, closed mouth"]
    both = "zorak, red hair, blue hair, closed mouth, open mouth, night, day, long hair, very long hair, short hair"
    # `long hair` is superfluous beside `very long hair`, so it does not take part in the contradiction
    assert (
        cleaned(rare, *often, both, "zorak, very long hair")[3] == "zorak, blue hair, closed mouth, day, very long hair"
    )
    mixed = "zorak, red hair, blue hair, two-tone hair, blue eyes, red eyes, heterochromia"
    assert cleaned(mixed) == [mixed]
    tie = "zorak, red hair, blue hair"
    assert cleaned(tie) == ["zorak, red hair"]


def test_triggers_class_word_and_first_tags_are_kept() -> None:
    dataset = dataset_of({"long hair": ["masterpiece, hair, zorak, very long hair, long hair, short hair, 1girl"]})
    assert captions_of(apply_captions(CaptionRecipe(), dataset, 0)) == ["zorak, long hair, 1girl"]
    with_first = apply_captions(CaptionRecipe(), dataset, 0, keep_tags=2)
    assert captions_of(with_first) == ["masterpiece, hair, zorak, long hair, 1girl"]
    assert cleaned("zorak, Zorak, smile, ZORAK", keep_tags=2) == ["zorak, Zorak, smile"]
    trigger_is_tag = dataset_of(
        {"zorak dress": ["zorak, zorak dress, dress"]}
    )  # only absorbing tags would remove the dress
    assert apply_captions(CaptionRecipe(), trigger_is_tag, 0) == trigger_is_tag
    general = replace(dataset, class_word="general", concepts=(Concept("x", "x", tuple(pictures_of(["general, x"]))),))
    assert captions_of(apply_captions(CaptionRecipe(), general, 0)) == ["general, x"]


def test_the_report_lists_removed_tags_with_reasons() -> None:
    dataset = dataset_of(
        {
            "fit_a": ["zorak, fit_a, Highres, blue hair, hair, smile, smile", "zorak, fit_a, blue hair, highres"],
            "fit_b": ["zorak, fit_b, highres, red hair, blue hair, rating:safe", "zorak, fit_b, red hair, score_9"],
        }
    )
    assert clean_report(dataset) == (
        Removal("highres", "meta", 3),
        Removal("smile", "duplicate", 1),
        Removal("hair", "superfluous", 1),
        Removal("rating:safe", "rating", 1),
        Removal("blue hair", "contradictory", 1),
        Removal("score_9", "quality", 1),
    )
    after = apply_captions(CaptionRecipe(), dataset, 0)
    lost = [len(split_tags(old)) - len(split_tags(new)) for _, old, new in caption_changes(dataset, after)]
    assert sum(lost) == sum(removal.count for removal in clean_report(dataset)) == 8
    assert clean_report(after) == clean_report(dataset_of({"fit_a": ["highres, masterpiece"]})) == ()


@settings(max_examples=60, deadline=None)
@given(DATASETS, st.integers(0, 3))
def test_cleaning_twice_equals_cleaning_once(dataset: Dataset, keep_tags: int) -> None:
    once = apply_captions(CaptionRecipe(), dataset, 0, keep_tags)
    assert apply_captions(CaptionRecipe(), once, 0, keep_tags) == once
    for _, old, new in caption_changes(dataset, once):
        rest = iter(split_tags(old))
        assert all(tag in rest for tag in split_tags(new))  # a subsequence
        assert split_tags(new)[:keep_tags] == split_tags(old)[:keep_tags]
        assert not is_sentence(old) and new
