"""The validation images: enough, seeded, and never a near-duplicate of a training image."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from autolora.data import split
from autolora.data.sources import Picture, read_folder
from autolora.data.split import NEAR_DUPLICATE_BITS, difference_hashes, split_validation, validation_count
from autolora.errors import DatasetError
from tests.data.folders import noise_image, write_concepts


def _by_concept(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    return {name: [p for p in pictures if p.concept == name] for name in dict.fromkeys(p.concept for p in pictures)}


def _distances(hashes: NDArray[np.bool_]) -> NDArray[np.int_]:
    """The number of bits in which each pair differs, (n, n)."""
    return (hashes[:, None] != hashes[None, :]).sum(axis=2)


def _check(concepts: Mapping[str, Sequence[Picture]], seed: int = 0) -> tuple[Picture, ...]:
    """Split, and assert what is true of every split."""
    train, validation = split_validation(concepts, 0.15, 3, seed)
    trained = [p for pictures in train.values() for p in pictures]
    assert sorted(p.path for p in (*trained, *validation)) == sorted(p.path for c in concepts.values() for p in c)
    for name in concepts:
        assert train[name]
        assert any(p.concept == name for p in validation)
        assert all(p.concept == name for p in train[name])
    return validation


@pytest.mark.parametrize(
    ("images", "count"), [(3, 1), (5, 1), (6, 3), (8, 3), (20, 3), (24, 4), (100, 15), (1000, 150)]
)
def test_number_of_validation_images(images: int, count: int) -> None:
    assert validation_count(images, 0.15, 3) == count
    assert validation_count(images, 0.5, 600) <= images // 2


def test_a_split_is_seeded_and_does_not_depend_on_the_path(tmp_path: Path) -> None:
    captions = {"1_a": ["a"] * 12, "1_b": ["b"] * 4}
    here, there = (_by_concept(read_folder(write_concepts(tmp_path / name, captions))) for name in "xy")
    validation = _check(here)
    assert [sum(p.concept == name for p in validation) for name in "ab"] == [3, 1]
    assert [p.path.name for p in _check(there)] == [p.path.name for p in validation]
    assert len({tuple(p.path.name for p in _check(here, seed)) for seed in range(6)}) > 1


def _copies(image: Image.Image) -> dict[str, Image.Image]:
    return {
        "half.png": image.resize((48, 48), Image.Resampling.LANCZOS),
        "brighter.png": ImageEnhance.Brightness(image).enhance(1.1),
        "jpeg.jpg": image,
        "cropped.png": image.crop((1, 1, 95, 95)),
    }


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    folder = tmp_path / "1_a"
    folder.mkdir()
    for i in range(8):
        image = noise_image(i, (96, 96))
        image.save(folder / f"{i}.png")
        for name, copy in list(_copies(image).items())[: i % 5]:
            copy.save(folder / f"{i}-{name}")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(path.name)
    concepts = _by_concept(read_folder(tmp_path))
    for seed in range(10):
        validation = _check(concepts, seed)
        validation_names = {p.path.name[0] for p in validation}
        training_names = {p.path.name[0] for p in concepts["a"] if p not in validation}
        assert not validation_names & training_names
    original = [p for p in concepts["a"] if p.path.stem == p.path.name[0]]
    distances = _distances(difference_hashes(original))
    assert distances[~np.eye(len(original), dtype=bool)].min() > NEAR_DUPLICATE_BITS


def test_a_copy_in_another_concept_stays_with_its_original(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"1_a": ["a"] * 8, "1_b": ["b"] * 8})
    for name in ("000.png", "001.png", "002.png"):
        (root / "1_b" / name).write_bytes((root / "1_a" / name).read_bytes())
    concepts = _by_concept(read_folder(root))
    for seed in range(10):
        validation = _check(concepts, seed)
        for i in range(3):
            assert (concepts["a"][i] in validation) == (concepts["b"][i] in validation)


def test_similar_images_can_be_split_but_copies_cannot(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"1_a": ["a"] * 6, "1_b": ["b"] * 6})
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(root / "1_a" / f"{i:03}.png")  # all have the same hash
    _check(_by_concept(read_folder(root)))
    for i in range(6):
        Image.new("RGB", (16, 16), "red").save(root / "1_a" / f"{i:03}.png")
    with pytest.raises(DatasetError, match="no image is left for validation: concept `a` has only copies of one image"):
        split_validation(_by_concept(read_folder(root)), 0.15, 3, 0)


def test_a_chain_of_near_duplicates_stays_on_one_side() -> None:
    pictures = [Picture(Path(str(i)), "", "a", 8, 8, str(i)) for i in range(9)]
    places = np.array([8, 0, 12, 4, 20, 30, 40, 50, 60])  # of 0, 4, 8 and 12, each is near only its neighbors
    hashes = np.arange(64) < places[:, None]  # the number of different bits is the distance of two places
    with patch.object(split, "difference_hashes", return_value=hashes):
        for seed in range(10):
            _, validation = split_validation({"a": pictures}, 0.15, 3, seed)
            assert not set(pictures[:4]) & set(validation)  # a group of four does not fit into three validation images
            assert len(validation) == 3


def test_near_alike_images_of_two_concepts_are_held_out_as_asked() -> None:
    """Where the threshold is lowered anyway, it is lowered until the number fits: not to one here and four there."""
    gaps = {"a": [3] * 10 + [4], "b": [3] * 3 + [4] + [3] * 7}  # at 4 bits one group each; at 3 groups of 11 + 1, 4 + 8
    looks = np.random.default_rng(0).random((2, 1, 64)) < 0.5  # the concepts are unlike
    places = [np.cumsum([0, *gap])[:, None] for gap in gaps.values()]
    hashes = np.concatenate([(np.arange(64) < place) ^ look for place, look in zip(places, looks, strict=True)])
    concepts = {c: [Picture(Path(f"{c}/{i}"), "", c, 8, 8, f"{c}/{i}") for i in range(12)] for c in gaps}
    with patch.object(split, "difference_hashes", return_value=hashes):
        _, validation = split_validation(concepts, 0.15, 3, 0)
    assert Counter(picture.concept for picture in validation) == {"a": 3, "b": 3}


def test_a_concept_that_shares_all_its_looks_gets_its_images_first() -> None:
    """Each image of `a` is a near-duplicate of one of `b`, which has others of its own."""
    looks = np.random.default_rng(0).random((24, 64)) < 0.5
    concepts = {
        c: [Picture(Path(f"{c}/{i}"), "", c, 8, 8, f"{c}/{i}") for i in range(n)] for c, n in (("b", 18), ("a", 6))
    }
    hashes = looks[[*range(18), *range(6)]]
    for seed in range(10):
        with patch.object(split, "difference_hashes", return_value=hashes):
            _, validation = split_validation(concepts, 0.15, 3, seed)
        assert Counter(picture.concept for picture in validation) == {"a": 3, "b": 3}


def test_too_few_images(tmp_path: Path) -> None:
    concepts = _by_concept(read_folder(write_concepts(tmp_path, {"1_a": ["a"] * 2, "1_b": ["b"], "1_c": ["c"] * 3})))
    with pytest.raises(DatasetError) as caught:
        split_validation(concepts, 0.15, 3, 0)
    assert "concept `a` has 2 image(s): at least 3 are needed" in str(caught.value)
    assert "concept `b` has 1 image(s)" in str(caught.value)
    assert "concept `c`" not in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=12), min_size=1, max_size=3),
    st.floats(0.01, 0.5),
    st.integers(1, 6),
    st.integers(0, 9),
)
def test_no_training_image_is_a_near_duplicate_of_a_validation_image(
    drawn: list[list[int]], share: float, minimum: int, seed: int
) -> None:
    """Images with the same number are near-duplicates, in any concept; two numbers of each concept are unique."""
    drawn = [[*numbers, 100 + 2 * c, 101 + 2 * c] for c, numbers in enumerate(drawn)]
    concepts = {
        str(c): [Picture(Path(f"{c}/{i}"), "", str(c), 8, 8, f"{c}/{i}") for i in range(len(numbers))]
        for c, numbers in enumerate(drawn)
    }
    flat = np.array([n for numbers in drawn for n in numbers])
    looks = np.random.default_rng(0).random((200, 64)) < 0.5  # hashes with large distances
    with patch.object(split, "difference_hashes", return_value=looks[flat]):
        train, validation = split_validation(concepts, share, minimum, seed)
    number = dict(zip((p.path for c in concepts.values() for p in c), flat.tolist(), strict=True))
    trained = [p for pictures in train.values() for p in pictures]
    assert len(trained) + len(validation) == len(flat)
    assert not {number[p.path] for p in trained} & {number[p.path] for p in validation}
    for name, pictures in concepts.items():
        assert train[name]
        count = sum(p.concept == name for p in validation)
        assert 1 <= count <= validation_count(len(pictures), share, minimum)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.sampled_from([0.01, 0.03, 0.06]), st.integers(1, 50), st.integers(0, 999))
def test_blocks_give_the_same_groups_as_the_full_matrix(pictures: int, noise: float, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    looks = rng.random((5, 64)) < 0.5
    hashes = looks[rng.integers(0, 5, pictures)] ^ (rng.random((pictures, 64)) < noise)
    files, bits = rng.integers(0, 2 * pictures, pictures), rng.integers(-1, 5, pictures)
    hashes = np.stack([hashes[list(files).index(file)] for file in files])  # copies of one file have the same hash
    distances = np.where(files[:, None] == files[None, :], -1, _distances(hashes))
    near = distances <= np.minimum(bits[:, None], bits[None, :])
    expected: list[list[int]] = []
    while left := sorted(set(range(pictures)) - {i for group in expected for i in group}):
        group = {left[0]}
        while (grown := set(np.flatnonzero(near[sorted(group)].any(axis=0)).tolist())) > group:
            group = grown
        expected.append(sorted(group))
    with patch.object(split, "_BLOCK_ROWS", block):
        assert split._group_duplicates(hashes, [str(file) for file in files], bits) == expected


def test_many_images_are_grouped_in_little_memory() -> None:
    """Less memory than the full matrix at two bytes per pair, if no images or all images are similar."""
    pictures = 3_000
    files, bits = [str(i) for i in range(pictures)], np.full(pictures, NEAR_DUPLICATE_BITS)
    different = np.random.default_rng(0).random((pictures, 64)) < 0.5
    for hashes, groups in ((different, pictures), (np.zeros_like(different), 1)):
        tracemalloc.start()
        assert len(split._group_duplicates(hashes, files, bits)) == groups
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < pictures**2 * 2
