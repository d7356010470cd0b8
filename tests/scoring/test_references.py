"""References fitted on point clouds: what passes for real, what is half way, what cannot be separated."""

from __future__ import annotations

import numpy as np
import pytest

from autolora.errors import StudyError
from autolora.scoring.embeddings import Embeddings
from autolora.scoring.encoders import Encoder
from autolora.scoring.references import ReferenceImages, References, fit_references


class Flat:
    """An encoder for which the values of an image are its embedding."""

    name = "flat"

    def embed_pooled(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    def embed(self, images: np.ndarray) -> Embeddings:
        return Embeddings(self.embed_pooled(images), self.embed_pooled(images))

    def embed_texts(self, prompts: list[str]) -> np.ndarray:
        raise NotImplementedError


def cloud(center: float, count: int, seed: int, outfit: float = 0.0) -> np.ndarray:
    """Return (count, 12) points; the first axis separates the character, the second its outfits."""
    rows = np.random.default_rng(seed).normal(size=(count, 12))
    rows[:, 0] = rows[:, 0] * 0.5 + center
    rows[:, 1] = rows[:, 1] * 0.5 + outfit
    return rows


def embed(rows: np.ndarray) -> Embeddings:
    return Flat().embed(rows)


def fit(center: float, outfits: tuple[float, ...] = (0.0,)) -> References:
    """Fit a character with some outfits; the base model is at 0."""
    encoder: Encoder = Flat()  # type: ignore[assignment]
    images = ReferenceImages(
        "mona",
        {f"outfit {i}": cloud(center, 24, 10 + i, outfit) for i, outfit in enumerate(outfits)},
        {f"outfit {i}": cloud(center, 6, 20 + i, outfit) for i, outfit in enumerate(outfits)},
        cloud(0, 120, 3),
    )
    return fit_references(images, encoder, 100)


def test_real_images_pass_and_base_renders_do_not() -> None:
    reference = fit(5).character
    assert reference.real.mean() > 0.75
    assert reference.pass_scores(embed(cloud(5, 400, 7))).mean() > 0.75
    assert reference.pass_scores(embed(cloud(0, 400, 8))).mean() < 0.01


def test_near_images_pass_for_bleed_before_they_pass_for_the_character() -> None:
    references = fit(8)
    near = cloud(6.6, 400, 7)
    assert references.character.pass_scores(embed(near)).mean() < references.bleed.pass_scores(embed(near)).mean() - 0.1
    assert references.bleed.pass_scores(embed(cloud(0, 400, 8))).mean() < 0.01
    assert references.bleed.real.mean() > 0.95


def test_images_half_way_do_not_pass_half() -> None:
    """The mean position is one half, but no image passes."""
    assert fit(5).character.pass_scores(embed(cloud(2.5, 400, 7))).mean() < 0.25


def test_concepts_are_separated_from_their_siblings_and_the_character_is_not() -> None:
    references = fit(5, (-5, 5))
    first, second = references.concepts
    images = [cloud(5, 400, 7, -5), cloud(5, 400, 8, 5)]
    assert first.name == "outfit 0" and len(references.training) == 48
    assert first.pass_scores(embed(images[0])).mean() > 0.75 > 0.1 > first.pass_scores(embed(images[1])).mean()
    assert second.pass_scores(embed(images[1])).mean() > 0.75 > 0.1 > second.pass_scores(embed(images[0])).mean()
    assert references.character.pass_scores(embed(np.concatenate(images))).mean() > 0.75


def test_a_character_that_cannot_be_separated_from_the_base_model_is_refused() -> None:
    with pytest.raises(StudyError, match=r"unmeasurable.*flat separates"):
        fit(0.3)


def test_concepts_that_look_alike_are_listed_and_not_separated() -> None:
    references = fit(5, (0, 0))
    assert references.alike == ("outfit 0 and outfit 1",)
    assert all(concept.pass_scores(embed(cloud(5, 400, 7))).mean() > 0.8 for concept in references.concepts)


def test_another_character_in_the_right_outfit_does_not_pass() -> None:
    first, _ = fit(5, (-5, 5)).concepts
    assert first.pass_scores(embed(cloud(0, 400, 7, -5))).mean() < 0.01
