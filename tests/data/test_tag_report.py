"""Tag frequencies, tags to absorb, and how often each tag is shown."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.captions import booru_key
from autolora.data.concepts import Dataset
from autolora.data.random_draws import epoch_order
from autolora.data.step_table import OVERFITS
from autolora.data.tag_report import RISKS, TagSteps, absorbed_by_level, images_by_tag, tag_rows
from autolora.errors import ConfigError
from tests.data.folders import dataset_of, outfits


def test_rows_count_captions_per_concept() -> None:
    dataset = dataset_of(
        {
            "fit_a": ["1girl, zorak, fit_a, smile, Blue_Hair", "1girl, zorak, fit_a, blue hair", "zorak, blue hair"],
            "fit_b": ["1girl, zorak, fit_b, smile, hat", "a photo of zorak in fit_b"],
        }
    )
    rows = {row.tag: row for row in tag_rows(dataset)}
    assert [(row.tag, row.count) for row in tag_rows(dataset)][:3] == [("zorak", 5), ("1girl", 3), ("blue hair", 3)]
    assert rows["zorak"].kind == rows["fit_b"].kind == "trigger"
    assert rows["1girl"].kind == "class word"
    assert rows["blue hair"].kind == "hair colour"
    assert rows["fit_b"].shares == {"zorak fit_a": 0, "zorak fit_b": 1}  # one of the captions is a sentence
    assert rows["smile"].shares == {"zorak fit_a": 1 / 3, "zorak fit_b": 1 / 2}
    assert {tag: row.absorbed for tag, row in rows.items() if row.absorbed} == {"blue hair": ("zorak fit_a",)}


def test_tags_to_absorb_are_computed_after_cleaning() -> None:
    dataset = outfits()
    looks = ("blue hair", "long hair", "red eyes", "pale skin")
    clothes = {"fit_a": ("blue robe",), "fit_b": ("red armor",)}
    assert absorbed_by_level(dataset) == {
        "marks": {"zorak": ("gold horns",), **clothes},
        "all": {"zorak": ("gold horns", *looks), **clothes},
    }
    assert absorbed_by_level(dataset_of({"fit_a": ["zorak, fit_a, smile"]})) == {"marks": {}, "all": {}}
    junk = dataset_of({"fit_a": ["zorak, fit_a, hair, long hair"]})
    assert absorbed_by_level(junk)["all"] == {"zorak": ("long hair",)}


def test_risks_are_marked() -> None:
    rows = {row.tag: row for row in images_by_tag(outfits(10, 5), {"zorak fit_a": 1000, "zorak fit_b": 500}, 8)}
    assert rows["zorak"] == TagSteps("zorak", "trigger", 1500, 12000, 2.0, OVERFITS)
    assert rows["1girl"].risk == "bleed"
    assert rows["blue hair"].risk == rows["hat"].risk == "absorbed"
    assert rows["fit_a"] == TagSteps("fit_a", "trigger", 1000, 8000, 1.0, "")
    assert rows["fit_b"] == TagSteps("fit_b", "trigger", 500, 4000, 1.0, "")
    assert rows["red armor"] == TagSteps("red armor", "clothing", 500, 4000, 1.0, "")
    assert rows["beach"] == TagSteps("beach", "scenery", 600, 4800, 0.8, "")
    assert {row.risk for row in rows.values()} == {"", *RISKS}
    base = dataset_of({"zorak": ["zorak"], "fit_a": ["zorak, fit_a"]})  # as in the step table, relative to the mean
    assert images_by_tag(base, {"zorak zorak": 100, "zorak fit_a": 300}, 1)[0].overlap == 2.0
    half = images_by_tag(dataset_of({"fit_a": ["1girl, zorak, fit_a", "fit_a"]}), {"zorak fit_a": 10}, 1)
    assert {row.tag: (row.overlap, row.risk) for row in half}["zorak"] == (0.5, "")
    assert {row.tag: row.risk for row in half}["1girl"] == ""


@pytest.mark.parametrize("steps", [{"zorak fit_a": 10}, {"zorak fit_a": 10, "zorak fit_b": 0}, {"a": 1, "b": 1}, {}])
def test_steps_must_match_the_concepts(steps: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="steps of zorak fit_a, zorak fit_b"):
        images_by_tag(outfits(), steps, 1)
    with pytest.raises(ConfigError, match="and 0"):
        images_by_tag(outfits(), {"zorak fit_a": 1, "zorak fit_b": 1}, 0)


CAPTIONS = st.lists(st.sampled_from(["zorak", "Zorak", "fit_a", "1girl", "smile", "blue hair"]), min_size=1, max_size=5)
CONCEPTS = st.lists(st.lists(CAPTIONS.map(", ".join), min_size=1, max_size=7), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(CONCEPTS, st.integers(1, 4), st.integers(1, 5))
def test_images_by_tag_equal_what_an_epoch_shows(concepts: list[list[str]], passes: int, epochs: int) -> None:
    dataset: Dataset = dataset_of({f"fit_{i}": captions for i, captions in enumerate(concepts)})
    steps = {c.name: passes * (i + 1) * len(c.pictures) for i, c in enumerate(dataset.concepts)}
    shown: Counter[str] = Counter()
    generator = torch.Generator().manual_seed(passes)
    for concept in dataset.concepts:
        for i in epoch_order(len(concept.pictures), steps[concept.name], generator):
            shown.update({booru_key(tag) for tag in concept.pictures[i].tags})
    rows = images_by_tag(dataset, steps, epochs)
    assert {booru_key(row.tag): row.steps_per_epoch for row in rows} == shown
    assert all(row.steps_total == row.steps_per_epoch * epochs for row in rows)
