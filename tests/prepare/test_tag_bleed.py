"""Bleed measured by a tagger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora.data.sources import Picture
from autolora.prepare.tag_bleed import character_tags, tag_bleed
from autolora.prepare.tagger_base import TaggerImages


class ColourTagger:
    """Finds `red eyes` in red images, `blue hair` in blue images and a smile in all images."""

    categories: Mapping[str, str] = dict.fromkeys(("red eyes", "blue hair", "smile"), "general")

    def tag(self, images: TaggerImages) -> list[dict[str, float]]:
        means = [np.asarray(image).mean((0, 1)) / 255 for image in images]
        return [{"red eyes": red, "blue hair": blue, "smile": 1.0} for red, _, blue in means]


def plain(color: tuple[int, int, int], count: int) -> np.ndarray:
    return np.full((count, 8, 8, 3), color, np.uint8)


RED, PURPLE, GREEN = (255, 0, 0), (255, 0, 255), (0, 255, 0)


def test_the_characters_tags_are_the_traits_of_most_images(tmp_path: Path) -> None:
    pictures = []
    for i, color in enumerate([RED] * 3 + [PURPLE] * 2):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (8, 8), color).save(path)
        pictures.append(Picture(path, "mona", "mona", 8, 8, str(i), bucket=(8, 8)))
    assert character_tags(ColourTagger(), pictures) == (
        "red eyes",
    )  # a smile is not a trait, blue hair is in two of five


def test_bleed_is_the_excess_over_the_base_models_renders() -> None:
    tags = ("red eyes", "blue hair")
    base = [plain(GREEN, 2), plain(RED, 2)]
    assert tag_bleed(ColourTagger(), tags, base, base, 50).value == 0
    bleed = tag_bleed(ColourTagger(), tags, base, [plain(PURPLE, 2), plain(RED, 2)], 50)
    assert bleed.value == pytest.approx(0.5)  # the mean of 1 for the first prompt and 0 for the second
    assert bleed.low < 0.1 and bleed.high > 0.9
    assert tag_bleed(ColourTagger(), tags, base, [plain(GREEN, 2), plain(GREEN, 2)], 50).value == pytest.approx(-0.25)
