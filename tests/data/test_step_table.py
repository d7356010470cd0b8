"""The step table: it equals what the order of an epoch shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.concepts import Concept, Dataset
from autolora.data.random_draws import epoch_order
from autolora.data.step_table import make_step_table
from tests.data.folders import pictures_of


def _dataset(*concepts: tuple[str, list[str]]) -> Dataset:
    concept_list = tuple(Concept(f"zorak {t}", t, tuple(pictures_of(c, f"zorak {t}"))) for t, c in concepts)
    return Dataset("zorak", Path(), "zorak", "1girl", concept_list, ())


def test_the_table_counts_overlap() -> None:
    dataset = _dataset(*((f, [f"1girl, zorak, {f}"] * n) for f, n in (("a", 50), ("b", 100), ("c", 8))))
    table = make_step_table(dataset, (500,) * 3, 8)
    assert [(r.repeats, r.steps_per_epoch, r.steps_total, r.overlap) for r in table.concepts] == [
        (10, 500, 4000, 1),
        (5, 500, 4000, 1),
        (62.5, 500, 4000, 1),
    ]
    character = table.character
    assert (character.concept, character.images, character.steps_total) == ("zorak", 158, 12000)
    assert character.overlap == 3
    assert (table.steps_per_epoch, table.steps_total) == (1500, 12000)
    assert [row.risk for row in table.rows] == ["", "", "", "may overfit before the outfits are learned"]


def test_the_table_takes_steps_of_each_concept() -> None:
    dataset = _dataset(("a", ["zorak, a"] * 10), ("b", ["zorak, b"] * 4))
    table = make_step_table(dataset, (50, 10), 2, {"class images": 30})
    assert [(row.repeats, row.steps_total) for row in table.concepts] == [(5, 100), (2.5, 20)]
    assert table.character.steps_total == 120 and table.steps_total == 180


def test_captions_without_the_trigger_do_not_train_it() -> None:
    dataset = _dataset(("a", ["zorak, a"] * 5 + ["a"] * 5), ("b", ["zorak, b"] * 4))
    assert make_step_table(dataset, (100, 100), 2).character.overlap == 1.5
    shared = Dataset(
        "x",
        Path(),
        "zorak",
        "1girl",
        tuple(Concept(c.name, "zorak", c.pictures) for c in dataset.concepts),
        (),
    )
    assert [row.overlap for row in make_step_table(shared, (100, 100), 2).rows] == [1.5, 1.5, 1.5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 300), st.integers(1, 9))
def test_table_and_epoch_order_agree(sizes: list[int], steps: int, epochs: int) -> None:
    dataset = _dataset(*((f"f{i}", [f"zorak, f{i}"] * n) for i, n in enumerate(sizes)))
    table = make_step_table(dataset, (steps,) * len(sizes), epochs)
    generator = torch.Generator().manual_seed(1)
    shown = 0
    for concept, row in zip(dataset.concepts, table.concepts, strict=True):
        for _ in range(epochs):
            order = epoch_order(len(concept.pictures), steps, generator)
            shown += len(order)
            counts = Counter(order)
            assert all(abs(counts[i] - row.repeats) < 1 for i in range(row.images))
            assert set(order) <= set(range(row.images))
    assert shown == table.steps_total == table.character.steps_total
    assert table.character.overlap == pytest.approx(len(sizes))
