"""Triggers, class words, the step ledger and the order of an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data import Concept, Dataset, DatasetSettings, describe, epoch_order, load_dataset, step_ledger
from autolora.data.triggers import check_trigger, find_class_word, find_trigger, own_trigger
from autolora.errors import ConfigError, DatasetError
from tests.data.folders import pictures_of, write_concepts, write_zorak


def test_a_kohya_folder_becomes_a_dataset(tmp_path: Path) -> None:
    dataset = load_dataset(DatasetSettings(path=str(write_zorak(tmp_path / "zorak-data"))))
    assert (dataset.name, dataset.trigger, dataset.class_word) == ("zorak-data", "zorak", "1girl")
    assert [(c.name, c.trigger) for c in dataset.concepts] == [
        ("zorak fit_a", "fit_a"),
        ("zorak fit_b", "fit_b"),
    ]
    assert len(dataset.pictures) == 10
    assert Counter(p.concept for p in dataset.held_out) == {"zorak fit_a": 3, "zorak fit_b": 3}
    assert not {p.path for p in dataset.pictures} & {p.path for p in dataset.held_out}
    text = describe(dataset)
    assert "zorak-data: 10 pictures to train on, 6 held out" in text
    assert "trigger: zorak (in 10 of 10 captions)" in text
    assert "zorak fit_b  fit_b           5         3  24x24" in text


def test_home_and_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zorak(tmp_path / "Zorak (ünï) x=1, 日本")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_dataset(DatasetSettings("~/Zorak (ünï) x=1, 日本")).name == "Zorak (ünï) x=1, 日本"


@pytest.mark.parametrize(
    ("concept", "captions", "trigger"),
    [
        ("zorak fit_a", ["1girl, zorak, fit_a", "zorak, fit_a, 1girl"], "zorak"),  # the folder's first word
        ("Mona_Taco", ["1girl, mona taco, hat", "1girl, mona taco"], "mona taco"),
        ("pictures", ["1girl, solo, xyq, long hair, smile"] * 2, "xyq"),  # the only tag that is not common
        ("pictures", ["1girl, Xyq"] * 9 + ["1girl"], "Xyq"),  # nine tenths are enough
        ("red hair mona", ["1girl, red hair, mona"] * 3, "mona"),
        ("monaco", ["1girl, mona"] * 3, "mona"),
    ],
)
def test_the_trigger_is_found(concept: str, captions: list[str], trigger: str) -> None:
    assert find_trigger(pictures_of(captions, concept), "1girl") == trigger


def test_an_unclear_trigger_is_asked_for() -> None:
    both = pictures_of(["1girl, zorak, blarg"] * 3, "pictures")
    with pytest.raises(DatasetError, match=r"zorak, blarg are all in most captions: add dataset\.trigger=WORD"):
        find_trigger(both, "1girl")
    with pytest.raises(DatasetError, match=r"no tag could be the trigger"):
        find_trigger(pictures_of(["1girl, red hair, smile", "1girl, zorak"], "zorak"), "1girl")
    assert check_trigger(both, "ZORAK") == "zorak"
    assert check_trigger(pictures_of(["a photo of sks man"]), "sks") == "sks"
    with pytest.raises(DatasetError, match=r"dataset.trigger=zorka is in no caption \(close to it: zorak\)"):
        check_trigger(both, "zorka")


@pytest.mark.parametrize(
    ("captions", "word"),
    [
        (["1boy, 1girl", "1girl", "1boy"], "1girl"),  # first of the list, in most captions
        (["1girl, 1boy", "1boy", "1boy"], "1boy"),
        (["solo, zorak"] * 2, "solo"),
        (["a photo of a woman, smiling"] * 2, "woman"),
    ],
)
def test_the_class_word_is_found(captions: list[str], word: str) -> None:
    assert find_class_word(pictures_of(captions)) == word


def test_sub_concepts_have_their_own_trigger_if_a_tag_tells_them_apart() -> None:
    a = pictures_of(["1girl, zorak, blue robe, qix, beach", "1girl, zorak, blue robe, qix"], "zorak qix")
    b = pictures_of(["1girl, zorak, armor, beach", "1girl, zorak, armor"], "zorak armed")
    assert own_trigger(a, b, "zorak", "1girl") == "qix"
    assert own_trigger(b, a, "zorak", "1girl") == "armor"
    assert own_trigger(a, [], "zorak", "1girl") == "qix"
    assert own_trigger(b, [], "zorak", "1girl") == "zorak"  # nothing to tell it apart from
    assert own_trigger(b, b, "zorak", "1girl") == "zorak"


def test_every_reason_at_once(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"1_a": ["smile", "zorak"], "1_b": ["city"] * 3})
    with pytest.raises(DatasetError) as caught:
        load_dataset(DatasetSettings(str(root)))
    text = str(caught.value)
    assert "no class word" in text
    assert "no tag could be the trigger" in text
    assert "concept `a` has 2 picture(s): at least 3 are needed" in text
    with pytest.raises(DatasetError, match=r"add dataset\.path=FOLDER"):
        load_dataset(DatasetSettings())


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"held_out_share=0\.9: .*; dataset.held_out_min=0: .*trigger='a, b'"):
        DatasetSettings("x", trigger="a, b", held_out_share=0.9, held_out_min=0)


def _dataset(*concepts: tuple[str, list[str]]) -> Dataset:
    made = tuple(Concept(f"zorak {t}", t, tuple(pictures_of(c, f"zorak {t}"))) for t, c in concepts)
    return Dataset("zorak", Path(), "zorak", "1girl", made, ())


def test_the_ledger_counts_overlap() -> None:
    dataset = _dataset(*((f, [f"1girl, zorak, {f}"] * n) for f, n in (("a", 50), ("b", 100), ("c", 8))))
    ledger = step_ledger(dataset, 500, 8)
    assert [(r.repeats, r.steps_per_epoch, r.steps_total, r.overlap) for r in ledger.concepts] == [
        (10, 500, 4000, 1),
        (5, 500, 4000, 1),
        (62.5, 500, 4000, 1),
    ]
    character = ledger.character
    assert (character.concept, character.images, character.steps_total) == ("zorak", 158, 12000)
    assert character.overlap == 3
    assert (ledger.steps_per_epoch, ledger.steps_total) == (1500, 12000)
    assert ledger.text().splitlines()[0].split() == ["images", "repeats", "steps/epoch", "steps", "overlap"]
    assert ledger.text().splitlines()[-1].split() == ["zorak", "158", "9.5", "1500", "12000", "x3"]


def test_captions_without_the_trigger_do_not_train_it() -> None:
    dataset = _dataset(("a", ["zorak, a"] * 5 + ["a"] * 5), ("b", ["zorak, b"] * 4))
    assert step_ledger(dataset, 100, 2).character.overlap == 1.5
    shared = Dataset(
        "x",
        Path(),
        "zorak",
        "1girl",
        tuple(Concept(c.name, "zorak", c.pictures) for c in dataset.concepts),
        (),
    )
    assert [row.overlap for row in step_ledger(shared, 100, 2).rows] == [1.5, 1.5, 1.5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 300), st.integers(1, 9))
def test_ledger_and_epoch_order_agree(sizes: list[int], steps: int, epochs: int) -> None:
    dataset = _dataset(*((f"f{i}", [f"zorak, f{i}"] * n) for i, n in enumerate(sizes)))
    ledger = step_ledger(dataset, steps, epochs)
    generator = torch.Generator().manual_seed(1)
    shown = 0
    for concept, row in zip(dataset.concepts, ledger.concepts, strict=True):
        for _ in range(epochs):
            order = epoch_order(len(concept.pictures), steps, generator)
            shown += len(order)
            counts = Counter(order)
            assert all(abs(counts[i] - row.repeats) < 1 for i in range(row.images))
            assert set(order) <= set(range(row.images))
    assert shown == ledger.steps_total == ledger.character.steps_total
    assert ledger.character.overlap == pytest.approx(len(sizes))


def test_epoch_order_is_seeded_shuffled_and_checked() -> None:
    def order(seed: int) -> list[int]:
        return epoch_order(10, 25, torch.Generator().manual_seed(seed))

    assert order(1) == order(1) != order(2)
    assert order(1)[:10] != order(1)[10:20]
    assert sorted(order(1)[:10]) == sorted(order(1)[10:20]) == list(range(10))
    for images, steps in ((0, 3), (3, -1)):
        with pytest.raises(ValueError, match="at least one image"):
            epoch_order(images, steps, torch.Generator())
    assert epoch_order(3, 0, torch.Generator()) == []
