"""Writes small folders of captioned pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from autolora.data.sources import Picture


def noise_image(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A picture of coarse random blocks: different seeds are far apart for any perceptual hash."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def write_concepts(root: Path, concepts: Mapping[str, Sequence[str]], first_seed: int = 0) -> Path:
    """One folder a concept (`""` is the root itself), one different picture a caption."""
    seed = first_seed
    for folder, captions in concepts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, caption in enumerate(captions):
            noise_image(seed).save(root / folder / f"{number:03}.png")
            (root / folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
            seed += 1
    return root


def write_zorak(root: Path, pictures: int = 8) -> Path:
    """A character with two outfits, kohya style."""
    places = ("beach", "city", "blue sky", "meadow")
    return write_concepts(
        root,
        {
            f"10_zorak {fit}": [f"1girl, zorak, {fit}, {places[i % 4]}" for i in range(pictures)]
            for fit in ("fit_a", "fit_b")
        },
    )


def pictures_of(captions: Sequence[str], concept: str = "zorak") -> list[Picture]:
    """Pictures that exist only as captions."""
    return [Picture(Path(f"{concept}/{i}.png"), c, concept, 8, 8, str(i)) for i, c in enumerate(captions)]
