"""How many images of each kind a run shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autolora.data.concepts import Concept, Dataset
from autolora.errors import ConfigError
from autolora.preflight.sections import schedule_section
from autolora.train.run import Run, TrainSettings
from tests.data.folders import pictures_of


def two_outfits() -> Dataset:
    """Return a dataset of two sub-concepts: four images repeated five times, and three shown once."""
    first = tuple(replace(p, repeats=5) for p in pictures_of(["1girl, mona, dress"] * 4, "mona dress"))
    second = tuple(pictures_of(["1girl, mona, suit"] * 3, "mona suit"))
    return Dataset(
        "mona",
        Path(),
        "mona",
        "1girl",
        (Concept("mona dress", "dress", first), Concept("mona suit", "suit", second)),
        (),
    )


def image_counts(**settings: object) -> tuple[int, ...]:
    return Run("test", train=TrainSettings(**settings)).images_by_concept(two_outfits())  # type: ignore[arg-type]


def test_image_counts_come_from_the_recipe_or_the_folders_repeats() -> None:
    assert image_counts(images_per_concept=100) == (100, 100)
    assert image_counts(images_per_concept=None) == (20, 3)
    assert image_counts(images_per_concept=100, min_character_images=300) == (150, 150)


def test_single_concepts_can_have_their_own_image_count() -> None:
    assert image_counts(images_per_concept=100, concept_images={"suit": 7}) == (100, 7)
    assert image_counts(
        images_per_concept=100, concept_images={"mona_dress": 9, "Suit": 7}, min_character_images=300
    ) == (
        9,
        7,
    )
    with pytest.raises(ConfigError, match=r"train\.concept_images\.hat: .* it has mona_dress, dress, mona_suit, suit"):
        image_counts(concept_images={"hat": 5})


@pytest.mark.parametrize(
    "settings", [{"images_per_concept": 99_999_999_999}, {"concept_images": {"suit": 99_999_999_999}}]
)
def test_an_epoch_that_never_ends_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"an epoch would show 99999999999 images of mona (dress|suit), more than"):
        image_counts(**settings)


def test_a_schedule_of_many_steps_is_shown_at_once() -> None:
    run = Run("test", train=TrainSettings(images_per_concept=10_000_000, epochs=1_000))
    ((_, _, highest, steps, line),) = schedule_section([run], two_outfits()).rows
    assert (highest, steps, line) == (run.optimizer.lr, 5_000_000_000, "█" * 16)


def test_class_images_are_a_share_of_the_concepts_images() -> None:
    run = Run("test", train=TrainSettings(images_per_concept=100, prior_preservation_ratio=0.5, reg_ratio=0.25))
    assert run.class_images_per_epoch(two_outfits()) == {
        "class images": 80,
        "without triggers": 20,
        "regularization": 50,
    }
    assert run.images_per_epoch(two_outfits()) == 350
    assert run.optimizer_steps(two_outfits()) == 8 * 88


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concept_images": {"suit": 0}}, r"train\.concept_images\.suit must be a whole number of at least 1, got 0"),
        ({"concept_images": {"suit": "many"}}, r"got 'many'"),
        ({"reg_ratio": 5.0}, r"train\.reg_ratio must be from 0"),
        ({"num_class_images": 0}, r"train\.num_class_images must be at least 1"),
        (
            {"unmasked_weight": 1.5, "caption_tag_dropout_rate": 1.0},
            r"unmasked_weight must be .*; train\.caption_tag_dropout_rate must be",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**settings)  # type: ignore[arg-type]
