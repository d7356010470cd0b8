"""Triggers, class words, sub-concepts by folder or tag, and the buckets of a dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from autolora.data.buckets import BucketSettings
from autolora.data.concepts import DatasetSettings, load_dataset, with_buckets
from autolora.data.triggers import check_trigger, find_class_word, find_trigger, own_trigger
from autolora.errors import ConfigError, DatasetError
from tests.data.folders import noise_image, pictures_of, write_concepts, write_zorak


def test_a_kohya_folder_becomes_a_dataset(tmp_path: Path) -> None:
    dataset = load_dataset(DatasetSettings(path=str(write_zorak(tmp_path / "zorak-data"))))
    assert (dataset.name, dataset.trigger, dataset.class_word) == ("zorak-data", "zorak", "1girl")
    assert [(c.name, c.trigger) for c in dataset.concepts] == [
        ("zorak fit_a", "fit_a"),
        ("zorak fit_b", "fit_b"),
    ]
    assert len(dataset.pictures) == 10
    assert Counter(p.concept for p in dataset.validation) == {"zorak fit_a": 3, "zorak fit_b": 3}
    assert not {p.path for p in dataset.pictures} & {p.path for p in dataset.validation}


def test_home_and_unusual_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zorak(tmp_path / "Zorak (ünï) x=1, 日本")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_dataset(DatasetSettings("~/Zorak (ünï) x=1, 日本")).name == "Zorak (ünï) x=1, 日本"


@pytest.mark.parametrize(
    ("concept", "captions", "trigger"),
    [
        ("zorak fit_a", ["1girl, zorak, fit_a", "zorak, fit_a, 1girl"], "zorak"),  # the folder's first word
        ("Mona_Taco", ["1girl, mona taco, hat", "1girl, mona taco"], "mona taco"),
        ("pictures", ["1girl, solo, xyq, long hair, smile"] * 2, "xyq"),  # the only uncommon tag
        ("pictures", ["1girl, Xyq"] * 9 + ["1girl"], "Xyq"),  # 90% of the captions are enough
        ("red hair mona", ["1girl, red hair, mona"] * 3, "mona"),
        ("monaco", ["1girl, mona"] * 3, "mona"),
    ],
)
def test_the_trigger_is_found(concept: str, captions: list[str], trigger: str) -> None:
    assert find_trigger(pictures_of(captions, concept), "1girl") == trigger


def test_an_ambiguous_trigger_is_an_error() -> None:
    both = pictures_of(["1girl, zorak, blarg"] * 3, "pictures")
    with pytest.raises(DatasetError, match=r"zorak, blarg are all in most captions: set dataset\.trigger=WORD"):
        find_trigger(both, "1girl")
    with pytest.raises(DatasetError, match=r"no tag could be the trigger"):
        find_trigger(pictures_of(["1girl, red hair, smile", "1girl, zorak"], "zorak"), "1girl")
    assert check_trigger(both, "ZORAK") == "zorak"
    assert check_trigger(pictures_of(["a photo of sks man"]), "sks") == "sks"
    with pytest.raises(DatasetError, match=r"dataset.trigger=zorka is in no caption \(similar tags: zorak\)"):
        check_trigger(both, "zorka")


@pytest.mark.parametrize(
    ("captions", "word"),
    [
        (["1boy, 1girl", "1girl", "1boy"], "1girl"),  # the first of CLASS_WORDS in most captions
        (["1girl, 1boy", "1boy", "1boy"], "1boy"),
        (["solo, zorak"] * 2, "solo"),
        (["a photo of a woman, smiling"] * 2, "woman"),
    ],
)
def test_the_class_word_is_found(captions: list[str], word: str) -> None:
    assert find_class_word(pictures_of(captions)) == word


def test_sub_concepts_have_their_own_trigger_if_a_tag_separates_them() -> None:
    a = pictures_of(["1girl, zorak, blue robe, qix, beach", "1girl, zorak, blue robe, qix"], "zorak qix")
    b = pictures_of(["1girl, zorak, armor, beach", "1girl, zorak, armor"], "zorak armed")
    assert own_trigger(a, b, "zorak", "1girl") == "qix"
    assert own_trigger(b, a, "zorak", "1girl") == "armor"
    assert own_trigger(a, [], "zorak", "1girl") == "qix"
    assert own_trigger(b, [], "zorak", "1girl") == "zorak"  # there is no other concept
    assert own_trigger(b, b, "zorak", "1girl") == "zorak"


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"1_a": ["smile", "zorak"], "1_b": ["city"] * 3})
    with pytest.raises(DatasetError) as caught:
        load_dataset(DatasetSettings(str(root)))
    text = str(caught.value)
    assert "no class word" in text
    assert "no tag could be the trigger" in text
    assert "concept `a` has 2 image(s): at least 3 are needed" in text
    with pytest.raises(DatasetError, match=r"set dataset\.path=FOLDER"):
        load_dataset(DatasetSettings())


def test_settings_are_checked() -> None:
    with pytest.raises(
        ConfigError, match=r"validation_split=0\.9: .*; dataset.min_validation_images=0: .*trigger='a, b'"
    ):
        DatasetSettings("x", trigger="a, b", validation_split=0.9, min_validation_images=0)


def _one_folder(root: Path, left_over: int = 0) -> DatasetSettings:
    """A plain folder of one character whose two outfits differ only by a tag."""
    captions = [f"1girl, zorak, {fit}, {place}" for fit in ("fita", "fitb") for place in ("beach", "city", "sky") * 2]
    return DatasetSettings(str(write_concepts(root / "mona", {"": captions + ["1girl, zorak, beach"] * left_over})))


def test_outfits_in_one_folder_are_found_by_tags_that_never_occur_together(tmp_path: Path) -> None:
    dataset = load_dataset(_one_folder(tmp_path))
    assert [(c.name, c.trigger, len(c.pictures)) for c in dataset.concepts] == [
        ("fita", "fita", 3),
        ("fitb", "fitb", 3),
    ]


def test_outfits_are_not_guessed_if_many_images_have_no_tag_but_can_be_named(tmp_path: Path) -> None:
    settings = _one_folder(tmp_path, left_over=6)
    assert [c.name for c in load_dataset(settings).concepts] == ["mona"]
    named = load_dataset(replace(settings, concepts=("fitb",)))
    assert {c.name: len(c.pictures) + sum(p.concept == c.name for p in named.validation) for c in named.concepts} == {
        "mona": 12,
        "fitb": 6,
    }
    with pytest.raises(DatasetError, match=r"dataset\.concepts: fitc in no caption"):
        load_dataset(replace(settings, concepts=("fita", "fitc")))
    several = str(write_zorak(tmp_path / "several"))
    with pytest.raises(DatasetError, match=r"dataset\.concepts applies to images in one folder"):
        load_dataset(DatasetSettings(several, concepts=("fit_a",)))


def test_copies_among_regularization_images_are_left_out(tmp_path: Path) -> None:
    root, others = write_zorak(tmp_path / "zorak"), tmp_path / "reg"
    write_concepts(others, {"1_1girl": ["1girl"] * 3}, first_seed=100)
    for copy, original in (("again.png", others / "1_1girl" / "000.png"), ("own.png", next(root.rglob("*.png")))):
        (others / "1_1girl" / copy).write_bytes(original.read_bytes())
    dataset = load_dataset(DatasetSettings(str(root), reg_data_dir=str(others)))
    assert len(dataset.regularization) == 3 and {p.caption for p in dataset.regularization} == {"1girl"}
    assert dataset.notes == ("2 regularization images are left out: they are copies of others or of training images",)


def test_every_image_gets_a_bucket(tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "zorak")
    for number, size in enumerate(((60, 30), (62, 31), (30, 60), (64, 64))):
        noise_image(50 + number, size).save(root / "10_zorak fit_a" / f"00{number}.png")
    settings = DatasetSettings(str(root), buckets=BucketSettings(count=3, bucket_reso_steps=8))
    bucketed = with_buckets(load_dataset(settings), settings, 32)
    shapes = {(p.width > p.height) - (p.width < p.height): p.bucket for p in (*bucketed.pictures, *bucketed.validation)}
    assert shapes[0] == (32, 32) and len(set(shapes.values())) == 3
    assert all(w * h <= 32 * 32 and w % 8 == h % 8 == 0 for w, h in shapes.values() if w and h)
    square = with_buckets(
        load_dataset(settings), replace(settings, buckets=BucketSettings(count=1, bucket_reso_steps=8)), 32
    )
    assert {p.bucket for p in (*square.pictures, *square.validation)} == {(32, 32)}


def test_small_images_are_left_out_if_images_may_not_be_enlarged(tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "zorak")  # 24 px
    for path in sorted((root / "10_zorak fit_a").glob("*.png"))[2:]:
        noise_image(ord(path.stem[-1]), (40, 40)).save(path)
    for path in (root / "10_zorak fit_b").glob("*.png"):
        noise_image(200 + ord(path.stem[-1]), (40, 40)).save(path)
    settings = DatasetSettings(str(root), bucket_upscale=False, buckets=BucketSettings(bucket_reso_steps=8))
    dataset = load_dataset(settings)
    bucketed = with_buckets(dataset, settings, 32)
    small = [p.path.name for p in dataset.pictures if p.width == 24]
    assert small and bucketed.notes == tuple(f"{name}: smaller than its bucket and left out" for name in small)
    assert {p.width for p in bucketed.pictures} == {40}
    assert len(with_buckets(dataset, replace(settings, bucket_upscale=True), 32).pictures) == len(dataset.pictures)
    with pytest.raises(DatasetError, match=r"smaller than their bucket and dataset\.bucket_upscale is false"):
        with_buckets(dataset, settings, 64)
