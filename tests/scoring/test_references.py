"""References fitted on clouds: what passes for real, what is half way, what cannot be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from autolora.errors import StudyError
from autolora.scoring.encoders import Embeddings, Encoder
from autolora.scoring.references import ReferenceImages, References, fit_references


class Flat:
    """Takes the first values of pictures for their embeddings."""

    name = "flat"

    def embed_pooled(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), -1)

    def embed(self, pictures: np.ndarray) -> Embeddings:
        return Embeddings(self.embed_pooled(pictures), self.embed_pooled(pictures))

    def embed_texts(self, prompts: list[str]) -> np.ndarray:
        raise NotImplementedError


def cloud(center: float, count: int, seed: int, outfit: float = 0.0) -> np.ndarray:
    """(count, 12); the first axis tells the character, the second its outfit."""
    rows = np.random.default_rng(seed).normal(size=(count, 12))
    rows[:, 0] = rows[:, 0] * 0.5 + center
    rows[:, 1] = rows[:, 1] * 0.5 + outfit
    return rows


def seen(rows: np.ndarray) -> Embeddings:
    return Flat().embed(rows)


def fit(center: float, outfits: tuple[float, ...] = (0.0,)) -> References:
    """A character in some outfits, against a base model at 0."""
    encoder: Encoder = Flat()  # type: ignore[assignment]
    material = ReferenceImages(
        "mona",
        {f"outfit {i}": cloud(center, 24, 10 + i, outfit) for i, outfit in enumerate(outfits)},
        {f"outfit {i}": cloud(center, 6, 20 + i, outfit) for i, outfit in enumerate(outfits)},
        cloud(0, 120, 3),
    )
    return fit_references(material, encoder, 100)


def test_real_pictures_pass_and_the_base_model_does_not() -> None:
    reference = fit(5).character
    assert reference.real.mean() > 0.75
    assert reference.passes(seen(cloud(5, 400, 7))).mean() > 0.75
    assert reference.passes(seen(cloud(0, 400, 8))).mean() < 0.01


def test_what_comes_near_is_bleed_before_it_is_a_likeness() -> None:
    references = fit(8)
    near = cloud(6.6, 400, 7)
    assert references.character.passes(seen(near)).mean() < references.bleed.passes(seen(near)).mean() - 0.1
    assert references.bleed.passes(seen(cloud(0, 400, 8))).mean() < 0.01
    assert references.bleed.real.mean() > 0.95


def test_half_way_is_not_half_passed() -> None:
    """A mean position of one half would call this half a likeness; no picture of it is one."""
    assert fit(5).character.passes(seen(cloud(2.5, 400, 7))).mean() < 0.25


def test_concepts_are_told_from_their_siblings_and_the_character_is_not() -> None:
    found = fit(5, (-5, 5))
    first, second = found.concepts
    pictures = [cloud(5, 400, 7, -5), cloud(5, 400, 8, 5)]
    assert first.name == "outfit 0" and len(found.training) == 48
    assert first.passes(seen(pictures[0])).mean() > 0.75 > 0.1 > first.passes(seen(pictures[1])).mean()
    assert second.passes(seen(pictures[1])).mean() > 0.75 > 0.1 > second.passes(seen(pictures[0])).mean()
    assert found.character.passes(seen(np.concatenate(pictures))).mean() > 0.75


def test_what_cannot_be_told_from_the_base_model_is_refused() -> None:
    with pytest.raises(StudyError, match=r"unmeasurable.*flat tells"):
        fit(0.3)


def test_concepts_that_look_alike_are_named_and_not_told_apart() -> None:
    found = fit(5, (0, 0))
    assert found.alike == ("outfit 0 and outfit 1",)
    assert all(concept.passes(seen(cloud(5, 400, 7))).mean() > 0.8 for concept in found.concepts)


def test_another_character_in_the_right_outfit_does_not_pass() -> None:
    first, _ = fit(5, (-5, 5)).concepts
    assert first.passes(seen(cloud(0, 400, 7, -5))).mean() < 0.01
