"""The synthetic test world: looks, tags, novel characters and their datasets."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import ConfigError, DatasetError
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import (
    GROUPS,
    Look,
    character_look,
    nonsense_word,
    novel_character,
    parse_prompt,
    random_novel_look,
    sample_values,
)
from autolora.paperdoll.tokenizer import build_tokenizer
from autolora.paperdoll.world import write_dataset


def test_every_value_of_every_group_is_visible() -> None:
    """A change of one attribute changes the image if everything else is equal, including the random placement."""
    values = sample_values(random.Random(0)) | {"accessory": "none", "background": "meadow", "count": "1girl"}
    for group, options in GROUPS.items():
        images = {v: np.asarray(draw(Look(values | {group: v}), random.Random(1))).astype(int) for v in options}
        for first, second in itertools.combinations(options, 2):
            changed = (np.abs(images[first] - images[second]).max(2) > 24).sum()
            assert changed >= 3, f"{group}: {first} and {second} look the same"


def test_a_drawing_depends_only_on_its_look_and_random_generator() -> None:
    look = random_novel_look(random.Random(3))
    assert draw(look, random.Random(5)).tobytes() == draw(look, random.Random(5)).tobytes()
    assert draw(look, random.Random(5)).tobytes() != draw(look, random.Random(6)).tobytes()


@pytest.mark.parametrize("size", [32, 64, 96])
def test_drawings_have_any_size(size: int) -> None:
    assert draw(Look(sample_values(random.Random(0))), random.Random(0), size).size == (size, size)


def test_tags_and_prompts_round_trip() -> None:
    for seed in range(50):
        look = Look(sample_values(random.Random(seed)))
        values = {g: v for g, v in look.values.items() if (g, v) != ("accessory", "none")}
        assert parse_prompt(", ".join(look.tags())) == values


def test_novel_characters_depend_only_on_their_seed_and_differ() -> None:
    assert novel_character(7, 3) == novel_character(7, 3)
    marks = {novel_character(seed).marks for seed in range(100, 140)}
    assert len(marks) == 40
    triggers = [novel_character(seed, 4) for seed in range(20)]
    assert all(len({c.trigger, *(o.trigger for o in c.outfits)}) == 5 for c in triggers)


def test_base_looks_never_have_marks_or_novel_outfits() -> None:
    for seed in range(200):
        look = Look(sample_values(random.Random(seed)))
        assert look.marks is None
        assert look.values["outfit"] in GROUPS["outfit"]


def test_a_thousand_words_have_different_tokens() -> None:
    tokenizer = build_tokenizer()
    words = {nonsense_word(random.Random(seed)) for seed in range(1000)} | {"Ünïcødé", "日本", "mona_taco"}
    ids = {word: tuple(tokenizer(word).input_ids) for word in words}
    assert len(set(ids.values())) == len(words)
    assert all(tokenizer.eos_token_id not in row[1:-1] for row in ids.values())
    assert all(tokenizer.unk_token_id not in row[1:-1] for row in ids.values())


def test_known_words_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    for word in ("hair", "twintails", "overalls", "glasses", "girl", "boy", "purple"):
        assert len(tokenizer(word).input_ids) == 3


def test_a_dataset_loads_with_its_concepts(tmp_path: Path) -> None:
    character = write_dataset(tmp_path / "doll", seed=3, outfits=3, images_per_outfit=8)
    dataset = load_dataset(DatasetSettings(path=str(tmp_path / "doll")))
    assert dataset.trigger == character.trigger
    assert dataset.class_word == character.traits["count"]
    assert {c.trigger for c in dataset.concepts} == {o.trigger for o in character.outfits}
    assert len(dataset.pictures) + len(dataset.validation) == 24


def test_used_folders_and_impossible_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not an empty folder"):
        write_dataset(tmp_path / "used", seed=0)
    with pytest.raises(ConfigError, match="--outfits 1 to 4"):
        write_dataset(tmp_path / "new", seed=0, outfits=5)


def test_all_looks_of_a_character_have_its_traits() -> None:
    character = novel_character(11)
    looks = [character_look(character, character.outfits[0], random.Random(i)) for i in range(20)]
    assert all(look.values["hair_color"] == character.traits["hair_color"] for look in looks)
    assert len({look.values["background"] for look in looks}) > 2
