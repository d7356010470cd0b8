"""The caption recipe: dropping tags, absorbing tags and swapping the trigger."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.caption_cleaning import clean_report
from autolora.data.caption_recipe import (
    CaptionRecipe,
    apply_captions,
    tags_to_absorb,
)
from autolora.data.captions import booru_key, has_tag, is_sentence, mentions, split_tags, tag_key
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset
from autolora.data.vocabulary import OUTFIT, TRAITS, kind_of
from autolora.errors import ConfigError, DatasetError
from autolora.paperdoll.weights import QUICKSTART
from tests.data.caption_strategies import DATASETS, LEVELS
from tests.data.folders import LOOKS, captions_of, dataset_of, outfits

quick = settings(max_examples=60, deadline=None)


def test_minimal_captions_are_unchanged() -> None:
    dataset = load_dataset(DatasetSettings(path=str(QUICKSTART)))
    assert apply_captions(CaptionRecipe(), dataset, 0) == dataset
    assert clean_report(dataset) == ()
    for level in ("marks", "all"):
        assert apply_captions(CaptionRecipe(absorb_tags=level), dataset, 0) == dataset
    untouched = "1girl,zorak ,  fit_a, smile"  # white space is kept too
    assert captions_of(apply_captions(CaptionRecipe(), dataset_of({"fit_a": [untouched]}), 0)) == [untouched]


def test_invalid_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        CaptionRecipe(
            drop_tags=("a, b",), absorb_tags="some", absorb_min_share=0, trigger_swap_rate=1.5, swap_tags=("",)
        )
    assert str(caught.value) == (
        "captions.absorb_tags=some: must be one of none, marks, all; "
        "captions.absorb_min_share=0: must be above 0 and at most 1; "
        "captions.trigger_swap_rate=1.5: must be from 0 to 1; captions.drop_tags: 'a, b' must be one tag; "
        "captions.swap_tags: '' must be one tag"
    )


def test_tags_are_dropped_everywhere_but_triggers_are_refused() -> None:
    dataset = dataset_of({"fit_a": ["zorak, Blue_Sky, smile", "zorak, smile, blue sky", "a photo of zorak, blue sky"]})
    dropped = apply_captions(CaptionRecipe(drop_tags=("blue sky",)), dataset, 0)
    assert captions_of(dropped) == ["zorak, smile", "zorak, smile", "a photo of zorak, blue sky"]
    with pytest.raises(DatasetError, match=r"captions.drop_tags=Fit_A is a trigger"):
        apply_captions(CaptionRecipe(drop_tags=("Fit_A",)), dataset, 0)
    bare = dataset_of({"fit_a": ["smile, night", "zorak, smile", "night"]})
    with pytest.raises(DatasetError, match=r"(?s)drop fewer tags: 2 problems\n  0.png has no tag left\n  2.png"):
        apply_captions(CaptionRecipe(drop_tags=("smile", "night")), bare, 0)


def test_absorbed_tags_are_removed() -> None:
    dataset = outfits()
    assert captions_of(apply_captions(CaptionRecipe(absorb_tags="marks"), dataset, 0))[0] == (
        "1girl, zorak, fit_a, blue hair, long hair, red eyes, pale skin, hat, smile, beach"
    )
    after = apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0)
    assert captions_of(after)[0] == "1girl, zorak, fit_a, hat, smile, beach"  # the hat stays: both outfits have it
    assert captions_of(after)[10] == "1girl, zorak, fit_b, hat, smile, beach"
    assert after.validation == dataset.validation  # so that all recipes are scored on the same captions
    assert [
        p.caption for p in apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0, validation=True).validation
    ] == ["1girl, zorak, fit_a, smile, city"]
    assert captions_of(apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0, keep_tags=5))[0] == (
        "1girl, zorak, fit_a, gold horns, blue hair, hat, smile, beach"
    )


def test_tags_to_absorb_depend_on_share_and_trigger() -> None:
    dataset = dataset_of(
        {
            "fit_a": [*["zorak, fit_a, red eyes, green hat"] * 4, "zorak, fit_a, blue eyes, green hat"],
            "fit_b": [*["zorak, fit_b, red eyes, green hat"] * 3, "fit_b, red eyes", "a photo of zorak in fit_b"],
        }
    )
    assert tags_to_absorb(dataset, "all", 0.8) == {"zorak": ("red eyes",), "fit_a": ("green hat",), "fit_b": ()}
    assert tags_to_absorb(dataset, "all", 0.9) == {"zorak": (), "fit_a": ("green hat",), "fit_b": ()}
    assert tags_to_absorb(dataset, "all", 0.6) == {"zorak": ("red eyes",), "fit_a": (), "fit_b": ()}
    assert tags_to_absorb(dataset, "none", 0.1) == {}
    exact = dataset_of({"zorak": [*["zorak, tan"] * 55, *["zorak"] * 45]})  # 0.55 * 100 is 55.00000000000001
    assert tags_to_absorb(exact, "all", 0.55) == {"zorak": ("tan",)}
    after = captions_of(apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0))
    assert after[:5] == ["zorak, fit_a"] * 4 + ["zorak, fit_a, blue eyes"]
    assert after[5:] == ["zorak, fit_b, green hat"] * 3 + ["fit_b, red eyes", "a photo of zorak in fit_b"]


def test_swapping_replaces_the_trigger_by_the_looks() -> None:
    dataset = outfits()
    before = captions_of(apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 3))
    after = captions_of(apply_captions(CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.3), dataset, 3))
    changed = [i for i in range(20) if before[i] != after[i]]
    assert [sum(i < 10 for i in changed), len(changed)] == [3, 6]
    assert all(after[i] == before[i].replace("zorak", LOOKS) for i in changed)
    not_absorbed = captions_of(apply_captions(CaptionRecipe(trigger_swap_rate=0.3), dataset, 3))
    assert [i for i in range(20) if "zorak" not in not_absorbed[i]] == changed
    assert not_absorbed[changed[0]] == dataset.pictures[changed[0]].caption.replace(
        "zorak, ", ""
    )  # no tag is inserted twice
    with_tags = CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.3, swap_tags=("Hat", "freckles"))
    assert captions_of(apply_captions(with_tags, dataset, 3))[changed[0]] == before[changed[0]].replace(
        "zorak", "freckles"
    )
    other_spelling = CaptionRecipe(trigger_swap_rate=0.3, swap_tags=("blue_hair", "freckles"))
    assert "blue_hair" not in "".join(captions_of(apply_captions(other_spelling, dataset, 3)))
    others = captions_of(apply_captions(CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.3), dataset, 4))
    assert changed != [i for i in range(20) if before[i] != others[i]]


def test_swapping_in_sentences() -> None:
    dataset = dataset_of({"fit_a": ["a photo of zorak in fit_a, zorak waves"], "zorak": ["a photo of zorak"]})
    recipe = CaptionRecipe(trigger_swap_rate=1, swap_tags=("red eyes", "blue hair"))
    assert captions_of(apply_captions(recipe, dataset, 0)) == [
        "a photo of red eyes, blue hair in fit_a, waves",
        "a photo of zorak",  # its only trigger
    ]


def test_swapping_needs_looks_and_another_trigger() -> None:
    recipe = CaptionRecipe(trigger_swap_rate=0.5)
    with pytest.raises(
        DatasetError, match=r"trigger_swap_rate=0.5: no tags in the captions describe zorak.*captions.swap_tags=\["
    ):
        apply_captions(recipe, dataset_of({"fit_a": ["zorak, fit_a, smile"]}), 0)
    with pytest.raises(DatasetError, match="no sub-concept has a trigger of its own"):
        apply_captions(replace(recipe, swap_tags=("red eyes",)), dataset_of({"zorak": ["zorak, red eyes"]}), 0)
    with pytest.raises(DatasetError, match=r"captions\.swap_tags: zorak is the trigger"):
        apply_captions(replace(recipe, swap_tags=("red eyes", "Zorak")), outfits(), 0)


@quick
@given(DATASETS, LEVELS, st.sampled_from([0.3, 0.8, 1.0]), st.integers(0, 2))
def test_no_trigger_is_lost_and_only_traits_and_outfits_are_absorbed(
    dataset: Dataset, level: str, share: float, keep_tags: int
) -> None:
    clean = apply_captions(CaptionRecipe(), dataset, 0, keep_tags)
    after = apply_captions(CaptionRecipe(absorb_tags=level, absorb_min_share=share), dataset, 0, keep_tags)
    for first, old, new in zip(dataset.pictures, clean.pictures, after.pictures, strict=True):
        for word in ("zorak", "fit_a", "fit_b", "1girl"):
            assert mentions(new.caption, word) == mentions(first.caption, word)
        left = {tag_key(tag) for tag in new.tags}
        removed = [tag for tag in old.tags if tag_key(tag) not in left]
        assert all(kind_of(tag) in (*TRAITS, *OUTFIT) for tag in removed)
        assert level != "none" or not removed


@quick
@given(DATASETS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), LEVELS)
def test_a_larger_swap_rate_adds_images_to_those_of_a_smaller_one(
    dataset: Dataset, rate: float, other_rate: float, seed: int, level: str
) -> None:
    def swapped(rate: float) -> dict[str, set[int]]:
        recipe = CaptionRecipe(absorb_tags=level, trigger_swap_rate=rate, swap_tags=("red eyes", "freckles"))
        after = apply_captions(recipe, dataset, seed)
        assert apply_captions(recipe, dataset, seed) == after  # reproducible
        by_concept: dict[str, set[int]] = {}
        for old, new in zip(dataset.concepts, after.concepts, strict=True):
            pairs = list(enumerate(zip(old.pictures, new.pictures, strict=True)))
            with_both = [i for i, (p, _) in pairs if mentions(p.caption, "zorak") and mentions(p.caption, old.trigger)]
            lost = {i for i, (p, q) in pairs if mentions(p.caption, "zorak") and not mentions(q.caption, "zorak")}
            assert lost <= set(with_both) and len(lost) == int(rate * len(with_both) + 0.5)
            by_concept[old.name] = lost
            for i in lost:
                caption = new.pictures[i].caption
                if is_sentence(caption):
                    continue
                keys = [booru_key(tag) for tag in split_tags(caption)]
                assert len(set(keys) - {"fit a"}) == len([key for key in keys if key != "fit a"])
                assert has_tag(caption, "freckles") and has_tag(caption, old.trigger)
        return by_concept

    fewer, more = (swapped(r) for r in sorted((rate, other_rate)))
    assert all(fewer[name] <= more[name] for name in more)


def test_swap_rates_are_nested_in_larger_folders() -> None:
    datasets = [
        apply_captions(CaptionRecipe(trigger_swap_rate=i / 10), outfits(20, 20), 0).pictures for i in range(1, 11)
    ]
    lost = [{i for i, picture in enumerate(pictures) if not has_tag(picture.caption, "zorak")} for pictures in datasets]
    assert [len(indices) for indices in lost] == [4 * i for i in range(1, 11)]
    assert all(fewer < more for fewer, more in pairwise(lost))


def test_nothing_depends_on_the_global_seed() -> None:
    recipe = CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.5)
    random.seed(1)
    first = apply_captions(recipe, outfits(), 0)
    random.seed(2)
    assert apply_captions(recipe, outfits(), 0) == first
