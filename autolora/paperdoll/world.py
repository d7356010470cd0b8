"""Writes datasets of the synthetic test world: captioned images of a novel character in a kohya-style folder."""

from __future__ import annotations

import io
import random
from pathlib import Path

from autolora.errors import ConfigError, DatasetError
from autolora.files import write_atomic
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import Character, Look, Outfit, character_look, novel_character

IMAGES_PER_EPOCH = 100  # per folder: the repeats in a folder's name are chosen to come close to this


def caption(look: Look, character: Character, outfit: Outfit, full: bool = False) -> str:
    """Write a caption: class word, triggers, then only what should remain changeable.

    A full caption is like a tagger's: it names everything that is visible, including the character's traits and marks.
    """
    count, *tags = look.tags()
    if not full:
        tags = [look.values[group] for group in ("expression", "pose", "background")]
    return ", ".join(dict.fromkeys([count, character.trigger, outfit.trigger, *tags]))


def write_dataset(
    out: Path, seed: int, outfits: int = 2, images_per_outfit: int = 14, size: int = 64, full: bool = False
) -> Character:
    """Write the novel character of a seed as `N_trigger outfit/` folders of PNG images with .txt captions.

    Args:
        out: the folder; it must be empty or not exist yet.
        seed: of the character.
        outfits: the number of outfits, 1 to 4.
        images_per_outfit: the number of images of each.
        size: side of an image in pixels.
        full: captions name everything that is visible, for recipes that prune captions themselves.

    Raises:
        ConfigError: a number is out of range.
        DatasetError: the folder is not empty.
    """
    if not 1 <= outfits <= 4 or not 2 <= images_per_outfit <= 1000 or seed < 0:
        raise ConfigError(
            "paperdoll dataset needs --seed 0 or more, --outfits 1 to 4 and --images 2 to 1000, "
            f"got {seed}, {outfits} and {images_per_outfit}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not an empty folder; choose another or remove it")
    character = novel_character(seed, outfits)
    rng = random.Random(f"dataset-{seed}")
    repeats = max(1, round(IMAGES_PER_EPOCH / images_per_outfit))
    for outfit in character.outfits:
        folder = out / f"{repeats}_{character.trigger} {outfit.trigger}"
        for index in range(images_per_outfit):
            look = character_look(character, outfit, rng)
            buffer = io.BytesIO()
            draw(look, rng, size).save(buffer, "PNG")
            write_atomic(folder / f"{index + 1:03d}.png", buffer.getvalue())
            write_atomic(folder / f"{index + 1:03d}.txt", caption(look, character, outfit, full) + "\n")
    return character
