"""Bleed as a tagger reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora.data.sources import Picture
from autolora.prepare.tag_bleed import character_tags, tag_bleed
from autolora.prepare.tagger_base import TaggerImages


class Reds:
    """Sees `red eyes` in red pictures, `blue hair` in blue ones and a smile in all."""

    categories: Mapping[str, str] = dict.fromkeys(("red eyes", "blue hair", "smile"), "general")

    def tag(self, pictures: TaggerImages) -> list[dict[str, float]]:
        means = [np.asarray(picture).mean((0, 1)) / 255 for picture in pictures]
        return [{"red eyes": red, "blue hair": blue, "smile": 1.0} for red, _, blue in means]


def plain(color: tuple[int, int, int], count: int) -> np.ndarray:
    return np.full((count, 8, 8, 3), color, np.uint8)


RED, PURPLE, GREEN = (255, 0, 0), (255, 0, 255), (0, 255, 0)


def test_the_characters_tags_are_the_traits_of_most_pictures(tmp_path: Path) -> None:
    pictures = []
    for i, color in enumerate([RED] * 3 + [PURPLE] * 2):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (8, 8), color).save(path)
        pictures.append(Picture(path, "mona", "mona", 8, 8, str(i), bucket=(8, 8)))
    assert character_tags(Reds(), pictures) == ("red eyes",)  # a smile is no trait, blue hair in two of five


def test_bleed_is_how_much_oftener_than_on_the_base_models_renders() -> None:
    tags = ("red eyes", "blue hair")
    base = [plain(GREEN, 2), plain(RED, 2)]
    assert tag_bleed(Reds(), tags, base, base, 50).value == 0
    found = tag_bleed(Reds(), tags, base, [plain(PURPLE, 2), plain(RED, 2)], 50)
    assert found.value == pytest.approx(0.5)  # both tags more on the first prompt's renders, none on the second's
    assert found.low < 0.1 and found.high > 0.9
    assert tag_bleed(Reds(), tags, base, [plain(GREEN, 2), plain(GREEN, 2)], 50).value == pytest.approx(-0.25)
