"""Metrics of faults, on embeddings and images with a known result."""

from __future__ import annotations

import numpy as np
import pytest

from autolora.scoring.failure_metrics import (
    class_drift,
    concept_mixing,
    diversity,
    memorization,
    oversaturation,
)

RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def outfits(*indices: int) -> np.ndarray:
    """Return (prompts, 1, 2) pass scores of renders that show these outfits."""
    return np.eye(2)[list(indices)][:, None, :]


REAL = [np.eye(2)[[0, 0, 0]], np.eye(2)[[1, 1, 1]]]


def test_concept_mixing_is_0_if_each_render_shows_its_own_outfit() -> None:
    value, draws = concept_mixing([outfits(0, 0, 0, 0), outfits(1, 1, 1, 1)], REAL, 100, 0)
    assert value == 0
    assert draws.max() == 0


def test_concept_mixing_is_the_worst_pairs() -> None:
    value, draws = concept_mixing([outfits(0, 0, 0, 1), outfits(0, 0, 0, 1)], REAL, 400, 0)
    assert value == pytest.approx(0.75)
    assert np.quantile(draws, 0.025) < 0.75 < np.quantile(draws, 0.975)


def test_concept_mixing_ignores_confusion_that_real_images_have_too() -> None:
    blurred = [np.eye(2)[[0, 1]], np.eye(2)[[0, 1]]]
    assert concept_mixing([outfits(0, 1), outfits(0, 1)], blurred, 50, 0)[0] == 0


def test_renders_that_show_no_outfit_do_not_count_as_mixing() -> None:
    assert concept_mixing([0.4 * outfits(1, 1), outfits(1, 1)], REAL, 50, 0)[0] == 0
    assert concept_mixing([0.6 * outfits(1, 1), outfits(1, 1)], REAL, 50, 0)[0] == 1


def test_copies_are_memorized_and_new_images_are_not() -> None:
    training = unit(RNG.normal(size=(12, 16)) + 2)
    copies = training[[0, 3, 5, 7] * 5]
    assert memorization(copies, training).low > 0.8
    fresh = memorization(unit(RNG.normal(size=(20, 16)) + 1), training)
    assert fresh.value == 0
    assert 0 < fresh.high < 0.2


def test_duplicate_training_images_do_not_hide_copies() -> None:
    training = unit(RNG.normal(size=(6, 16)) + 2)
    doubled = np.concatenate([training, training])
    assert memorization(training, doubled).value == memorization(training, training).value == 1


def test_memorization_needs_three_distinct_training_images() -> None:
    with pytest.raises(ValueError, match="only 2 distinct training images, at least 3"):
        memorization(np.eye(4), np.eye(4)[[0, 1, 1]])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.5])
def test_diversity_is_the_ratio_of_variances(share: float) -> None:
    base = RNG.normal(size=(10, 4, 8))
    center = base.mean(1, keepdims=True)
    value, draws = diversity(center + np.sqrt(share) * (base - center), base, 200, 0)
    assert value == pytest.approx(share)
    assert draws.std() < 1e-6  # the draws are paired, so differences between prompts cancel


@pytest.mark.parametrize(("moved", "expected"), [(0, 0.0), (1, 1.0)])
def test_class_drift_is_0_for_the_base_model_and_1_for_other_seeds(moved: int, expected: float) -> None:
    base = np.random.default_rng(0).normal(size=(40, 2, 8))
    value, draws = class_drift(np.roll(base, moved, axis=1), base, 200, 0)
    assert value == pytest.approx(expected)
    assert draws.min() <= expected <= draws.max()


def test_class_drift_detects_a_class_word_that_moved_away() -> None:
    base = np.random.default_rng(0).normal(size=(40, 2, 8))
    assert class_drift(base + 3, base, 200, 0)[0] > 3


def test_diversity_needs_two_seeds() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        diversity(np.ones((3, 1, 4)), np.ones((3, 1, 4)), 10, 0)


def scenes(count: int, seed: int) -> np.ndarray:
    """Return images of one muted colour each, with slight noise."""
    noise = np.random.default_rng(seed)
    colours = noise.uniform(70, 180, (count, 1, 1, 3))
    return np.clip(colours + noise.normal(0, 4, (count, 16, 16, 3)), 0, 255).astype(np.uint8)


def test_images_like_the_base_models_are_not_oversaturated() -> None:
    value, draws = oversaturation(scenes(40, 1), scenes(40, 2), scenes(10, 3), 20, 200, 0)
    assert np.quantile(draws, 0.975) < 1
    assert value < 0.6


@pytest.mark.parametrize("fault", ["saturated", "clipped", "noisy"])
def test_each_kind_of_oversaturation_is_detected(fault: str) -> None:
    images = scenes(40, 1).astype(float)
    grey = images.mean(-1, keepdims=True)
    spoiled = {
        "saturated": grey + (images - grey) * 2.5,
        "clipped": np.where(images > 100, 255, images),
        "noisy": images + RNG.normal(0, 30, images.shape),
    }[fault]
    value, draws = oversaturation(np.clip(spoiled, 0, 255).astype(np.uint8), scenes(40, 2), scenes(10, 3), 20, 200, 0)
    assert value > 1
    assert np.quantile(draws, 0.025) > 0.5


def test_vivid_training_images_are_not_oversaturation() -> None:
    vivid = scenes(40, 1).astype(float)
    grey = vivid.mean(-1, keepdims=True)
    vivid = np.clip(grey + (vivid - grey) * 2.5, 0, 255).astype(np.uint8)
    assert oversaturation(vivid, scenes(40, 2), vivid, 20, 50, 0)[0] == pytest.approx(0, abs=1e-6)
