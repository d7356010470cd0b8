"""The caption recipe: cleaning, dropping, pruning and decoupling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.caption_recipe import (
    CaptionRecipe,
    Removal,
    apply_captions,
    caption_changes,
    clean_report,
    tags_to_absorb,
)
from autolora.data.captions import booru_key, has_tag, is_sentence, mentions, split_tags, tag_key
from autolora.data.concepts import Concept, Dataset, DatasetSettings, load_dataset
from autolora.data.vocabulary import OUTFIT, TRAITS, kind_of
from autolora.errors import ConfigError, DatasetError
from autolora.paperdoll.weights import QUICKSTART
from tests.data.folders import pictures_of

quick = settings(max_examples=60, deadline=None)


def dataset_of(concepts: dict[str, Sequence[str]], validation: Sequence[str] = ()) -> Dataset:
    """Captions by the concept's own trigger; the main trigger is zorak, the class word 1girl."""
    made = tuple(Concept(f"zorak {t}", t, tuple(pictures_of(c, f"zorak {t}"))) for t, c in concepts.items())
    return Dataset("zorak", Path(), "zorak", "1girl", made, tuple(pictures_of(validation, made[0].name)))


def captions_of(dataset: Dataset) -> list[str]:
    return [picture.caption for picture in dataset.pictures]


def cleaned(*captions: str, keep_tags: int = 0) -> list[str]:
    return captions_of(apply_captions(CaptionRecipe(), dataset_of({"fit_a": captions}), 0, keep_tags))


def test_minimal_captions_stay_as_they_are() -> None:
    dataset = load_dataset(DatasetSettings(path=str(QUICKSTART)))
    assert apply_captions(CaptionRecipe(), dataset, 0) == dataset
    assert clean_report(dataset) == ()
    for level in ("marks", "all"):
        assert apply_captions(CaptionRecipe(absorb_tags=level), dataset, 0) == dataset
    untouched = "1girl,zorak ,  fit_a, smile"  # not even the white space
    assert cleaned(untouched) == [untouched]


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        CaptionRecipe(
            drop_tags=("a, b",), absorb_tags="some", absorb_min_share=0, trigger_swap_rate=1.5, swap_tags=("",)
        )
    assert str(caught.value) == (
        "captions.absorb_tags=some: must be one of none, marks, all; captions.absorb_min_share=0: must be above 0 and at most 1; "
        "captions.trigger_swap_rate=1.5: must be from 0 to 1; captions.drop_tags: 'a, b' must be one tag; "
        "captions.swap_tags: '' must be one tag"
    )


@pytest.mark.parametrize(
    ("caption", "result"),
    [
        ("1girl, long hair, Long_Hair, zorak, smile, ZORAK", "1girl, long hair, zorak, smile"),  # duplicates
        ("masterpiece, rating:safe, score_9, highres, 1girl, watermark, smile", "1girl, smile"),
        ("hair, very long hair, dress, long hair, blue dress", "very long hair, blue dress"),
        (r"1girl, mona \(game\), smile, mona (game)", r"1girl, mona \(game\), smile"),
        ("masterpiece, highres", "masterpiece, highres"),  # an empty caption would train what no caption draws
        ("a photo of a girl, zorak, masterpiece, masterpiece", "a photo of a girl, zorak, masterpiece, masterpiece"),
        ("fit a, fit_a", "fit_a"),  # the trigger stays, not what is only spelt like it
        ("1girl, 2girls, blue hair, red hair", "1girl, 2girls, blue hair, red hair"),
    ],
)
def test_cleaning(caption: str, result: str) -> None:
    assert cleaned(caption) == [result]


def test_the_more_frequent_of_contradictory_tags_stays() -> None:
    rare = "zorak, red hair, open mouth, day, short hair"
    often = ["zorak, blue hair, day", "zorak, blue hair, closed mouth"]
    both = "zorak, red hair, blue hair, closed mouth, open mouth, night, day, long hair, very long hair, short hair"
    # hair length: `long hair` is superfluous before it can win over the more specific one
    assert (
        cleaned(rare, *often, both, "zorak, very long hair")[3] == "zorak, blue hair, closed mouth, day, very long hair"
    )
    mixed = "zorak, red hair, blue hair, two-tone hair, blue eyes, red eyes, heterochromia"
    assert cleaned(mixed) == [mixed]
    tie = "zorak, red hair, blue hair"
    assert cleaned(tie) == ["zorak, red hair"]


def test_triggers_the_class_word_and_kept_places_stay() -> None:
    dataset = dataset_of({"long hair": ["masterpiece, hair, zorak, very long hair, long hair, short hair, 1girl"]})
    assert captions_of(apply_captions(CaptionRecipe(), dataset, 0)) == ["zorak, long hair, 1girl"]
    kept = apply_captions(CaptionRecipe(), dataset, 0, keep_tags=2)
    assert captions_of(kept) == ["masterpiece, hair, zorak, long hair, 1girl"]
    assert cleaned("zorak, Zorak, smile, ZORAK", keep_tags=2) == ["zorak, Zorak, smile"]
    called = dataset_of({"zorak dress": ["zorak, zorak dress, dress"]})  # pruning, not cleaning, would take the dress
    assert apply_captions(CaptionRecipe(), called, 0) == called
    general = replace(dataset, class_word="general", concepts=(Concept("x", "x", tuple(pictures_of(["general, x"]))),))
    assert captions_of(apply_captions(CaptionRecipe(), general, 0)) == ["general, x"]


def test_the_report_says_what_goes_and_why() -> None:
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


def test_dropped_tags_go_everywhere_but_triggers_may_not() -> None:
    dataset = dataset_of({"fit_a": ["zorak, Blue_Sky, smile", "zorak, smile, blue sky", "a photo of zorak, blue sky"]})
    dropped = apply_captions(CaptionRecipe(drop_tags=("blue sky",)), dataset, 0)
    assert captions_of(dropped) == ["zorak, smile", "zorak, smile", "a photo of zorak, blue sky"]
    with pytest.raises(DatasetError, match=r"captions.drop_tags=Fit_A is a trigger"):
        apply_captions(CaptionRecipe(drop_tags=("Fit_A",)), dataset, 0)
    bare = dataset_of({"fit_a": ["smile, night", "zorak, smile", "night"]})
    with pytest.raises(DatasetError, match=r"(?s)drop fewer tags.*2 problems\n  0.png has no tag left\n  2.png"):
        apply_captions(CaptionRecipe(drop_tags=("smile", "night")), bare, 0)


LOOKS = "gold horns, blue hair, long hair, red eyes, pale skin"


def outfits(a: int = 10, b: int = 10) -> Dataset:
    """Two outfits of one character, fully tagged."""
    places = ("beach", "city", "meadow")
    return dataset_of(
        {
            "fit_a": [f"1girl, zorak, fit_a, {LOOKS}, blue robe, hat, smile, {places[i % 3]}" for i in range(a)],
            "fit_b": [f"1girl, zorak, fit_b, {LOOKS}, red armor, hat, smile, {places[i % 3]}" for i in range(b)],
        },
        validation=[f"1girl, zorak, fit_a, {LOOKS}, blue robe, smile, smile, city"],
    )


def test_pruning_takes_what_a_trigger_should_absorb() -> None:
    dataset = outfits()
    assert captions_of(apply_captions(CaptionRecipe(absorb_tags="marks"), dataset, 0))[0] == (
        "1girl, zorak, fit_a, blue hair, long hair, red eyes, pale skin, hat, smile, beach"
    )
    after = apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0)
    assert captions_of(after)[0] == "1girl, zorak, fit_a, hat, smile, beach"  # both outfits have the hat
    assert captions_of(after)[10] == "1girl, zorak, fit_b, hat, smile, beach"
    assert after.validation == dataset.validation  # the score asks every recipe the same
    assert [
        p.caption for p in apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0, validation=True).validation
    ] == ["1girl, zorak, fit_a, smile, city"]
    assert captions_of(apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 0, keep_tags=5))[0] == (
        "1girl, zorak, fit_a, gold horns, blue hair, hat, smile, beach"
    )


def test_pruning_goes_by_share_and_by_trigger() -> None:
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


def test_decoupling_puts_the_looks_where_the_trigger_stood() -> None:
    dataset = outfits()
    before = captions_of(apply_captions(CaptionRecipe(absorb_tags="all"), dataset, 3))
    after = captions_of(apply_captions(CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.3), dataset, 3))
    changed = [i for i in range(20) if before[i] != after[i]]
    assert [sum(i < 10 for i in changed), len(changed)] == [3, 6]
    assert all(after[i] == before[i].replace("zorak", LOOKS) for i in changed)
    unpruned = captions_of(apply_captions(CaptionRecipe(trigger_swap_rate=0.3), dataset, 3))
    assert [i for i in range(20) if "zorak" not in unpruned[i]] == changed
    assert unpruned[changed[0]] == dataset.pictures[changed[0]].caption.replace("zorak, ", "")  # nothing twice
    told = CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.3, swap_tags=("Hat", "freckles"))
    assert captions_of(apply_captions(told, dataset, 3))[changed[0]] == before[changed[0]].replace("zorak", "freckles")
    spelt = CaptionRecipe(trigger_swap_rate=0.3, swap_tags=("blue_hair", "freckles"))
    assert "blue_hair" not in "".join(captions_of(apply_captions(spelt, dataset, 3)))
    others = captions_of(apply_captions(CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.3), dataset, 4))
    assert changed != [i for i in range(20) if before[i] != others[i]]


def test_decoupling_in_sentences() -> None:
    dataset = dataset_of({"fit_a": ["a photo of zorak in fit_a, zorak waves"], "zorak": ["a photo of zorak"]})
    recipe = CaptionRecipe(trigger_swap_rate=1, swap_tags=("red eyes", "blue hair"))
    assert captions_of(apply_captions(recipe, dataset, 0)) == [
        "a photo of red eyes, blue hair in fit_a, waves",
        "a photo of zorak",  # its only trigger
    ]


def test_decoupling_needs_looks_and_another_trigger() -> None:
    recipe = CaptionRecipe(trigger_swap_rate=0.5)
    with pytest.raises(
        DatasetError, match=r"trigger_swap_rate=0.5: the captions tell nothing of zorak.*captions.swap_tags=\["
    ):
        apply_captions(recipe, dataset_of({"fit_a": ["zorak, fit_a, smile"]}), 0)
    with pytest.raises(DatasetError, match="no sub-concept has a trigger of its own"):
        apply_captions(replace(recipe, swap_tags=("red eyes",)), dataset_of({"zorak": ["zorak, red eyes"]}), 0)
    with pytest.raises(DatasetError, match=r"captions\.swap_tags: zorak is the trigger"):
        apply_captions(replace(recipe, swap_tags=("red eyes", "Zorak")), outfits(), 0)


TAGS = (
    *("zorak", "Zorak", "fit_a", "fit a", "1girl", "long hair", "very_long_hair", "hair", "short hair", "blue hair"),
    *("red hair", "two-tone hair", "multicolored hair", "animal ears", "cat ears", "blue eyes", "red eyes", "2girls"),
    *("blue robe", "robe", "hat", "sun hat", "smile", "open mouth", "closed mouth", "standing", "sitting", "city"),
    *("night", "day", "highres", "masterpiece", "rating:safe", "upper body", "full body", "unheard", "watermark"),
    *("a girl who stands in the rain", "looking at viewer", "from above", r"mona \(game\)"),
)
CAPTIONS = st.lists(st.sampled_from(TAGS), min_size=1, max_size=9).map(", ".join)
DATASETS = st.lists(CAPTIONS, min_size=1, max_size=4).flatmap(
    lambda a: st.lists(CAPTIONS, min_size=1, max_size=4).map(lambda b: dataset_of({"fit_a": a, "fit_b": b}))
)
LEVELS = st.sampled_from(["none", "marks", "all"])


@quick
@given(DATASETS, st.integers(0, 3))
def test_cleaning_twice_is_cleaning_once(dataset: Dataset, keep_tags: int) -> None:
    once = apply_captions(CaptionRecipe(), dataset, 0, keep_tags)
    assert apply_captions(CaptionRecipe(), once, 0, keep_tags) == once
    for _, old, new in caption_changes(dataset, once):
        rest = iter(split_tags(old))
        assert all(tag in rest for tag in split_tags(new))  # a subsequence
        assert split_tags(new)[:keep_tags] == split_tags(old)[:keep_tags]
        assert not is_sentence(old) and new


@quick
@given(DATASETS, LEVELS, st.sampled_from([0.3, 0.8, 1.0]), st.integers(0, 2))
def test_no_trigger_is_lost_and_nothing_changeable_pruned(
    dataset: Dataset, level: str, share: float, keep_tags: int
) -> None:
    clean = apply_captions(CaptionRecipe(), dataset, 0, keep_tags)
    after = apply_captions(CaptionRecipe(absorb_tags=level, absorb_min_share=share), dataset, 0, keep_tags)
    for first, old, new in zip(dataset.pictures, clean.pictures, after.pictures, strict=True):
        for word in ("zorak", "fit_a", "fit_b", "1girl"):
            assert mentions(new.caption, word) == mentions(first.caption, word)
        kept = {tag_key(tag) for tag in split_tags(new.caption)}
        gone = [tag for tag in split_tags(old.caption) if tag_key(tag) not in kept]
        assert all(kind_of(tag) in (*TRAITS, *OUTFIT) for tag in gone)
        assert level != "none" or not gone


@quick
@given(DATASETS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), LEVELS)
def test_a_larger_share_decouples_more_of_the_same(
    dataset: Dataset, one: float, other: float, seed: int, level: str
) -> None:
    def decoupled(share: float) -> dict[str, set[int]]:
        recipe = CaptionRecipe(absorb_tags=level, trigger_swap_rate=share, swap_tags=("red eyes", "freckles"))
        after = apply_captions(recipe, dataset, seed)
        assert apply_captions(recipe, dataset, seed) == after  # reproducible
        found: dict[str, set[int]] = {}
        for old, new in zip(dataset.concepts, after.concepts, strict=True):
            pairs = list(enumerate(zip(old.pictures, new.pictures, strict=True)))
            own = [i for i, (p, _) in pairs if mentions(p.caption, "zorak") and mentions(p.caption, old.trigger)]
            lost = {i for i, (p, q) in pairs if mentions(p.caption, "zorak") and not mentions(q.caption, "zorak")}
            assert lost <= set(own) and len(lost) == int(share * len(own) + 0.5)
            found[old.name] = lost
            for i in lost:
                caption = new.pictures[i].caption
                if is_sentence(caption):
                    continue
                keys = [booru_key(tag) for tag in split_tags(caption)]
                assert len(set(keys) - {"fit a"}) == len([key for key in keys if key != "fit a"])
                assert has_tag(caption, "freckles") and has_tag(caption, old.trigger)
        return found

    fewer, more = (decoupled(share) for share in sorted((one, other)))
    assert all(fewer[name] <= more[name] for name in more)


def test_shares_are_nested_in_larger_folders() -> None:
    shares = [
        apply_captions(CaptionRecipe(trigger_swap_rate=i / 10), outfits(20, 20), 0).pictures for i in range(1, 11)
    ]
    lost = [{i for i, picture in enumerate(pictures) if not has_tag(picture.caption, "zorak")} for pictures in shares]
    assert [len(one) for one in lost] == [4 * i for i in range(1, 11)]
    assert all(one < other for one, other in pairwise(lost))


def test_nothing_depends_on_the_global_seed() -> None:
    recipe = CaptionRecipe(absorb_tags="all", trigger_swap_rate=0.5)
    random.seed(1)
    first = apply_captions(recipe, outfits(), 0)
    random.seed(2)
    assert apply_captions(recipe, outfits(), 0) == first
