"""Defects on embeddings and pictures whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from autolora.scoring.failure_metrics import burn, confusion, cross_bleed, drift, memorisation, spread

RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def outfits(*shown: int) -> np.ndarray:
    """(prompts, 1, 2) how surely renders that show these outfits pass for each."""
    return np.eye(2)[list(shown)][:, None, :]


REAL = [np.eye(2)[[0, 0, 0]], np.eye(2)[[1, 1, 1]]]


def test_cross_bleed_is_nothing_where_each_outfit_is_itself() -> None:
    value, draws = cross_bleed([outfits(0, 0, 0, 0), outfits(1, 1, 1, 1)], REAL, 100, 0)
    assert value == 0
    assert draws.max() == 0


def test_cross_bleed_is_that_of_the_worst_pair() -> None:
    value, draws = cross_bleed([outfits(0, 0, 0, 1), outfits(0, 0, 0, 1)], REAL, 400, 0)
    assert value == pytest.approx(0.75)
    assert np.quantile(draws, 0.025) < 0.75 < np.quantile(draws, 0.975)


def test_cross_bleed_forgives_what_real_pictures_do_too() -> None:
    blurred = [np.eye(2)[[0, 1]], np.eye(2)[[0, 1]]]
    assert cross_bleed([outfits(0, 1), outfits(0, 1)], blurred, 50, 0)[0] == 0


def test_confusion_rows_are_shares() -> None:
    assert confusion([outfits(0, 0, 0, 1), outfits(1, 1)]).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_what_shows_no_outfit_is_no_mix_up() -> None:
    assert confusion([0.4 * outfits(1, 1), outfits(1, 1)]).tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert cross_bleed([0.4 * outfits(1, 1), outfits(1, 1)], REAL, 50, 0)[0] == 0


def test_copies_are_memorised_and_new_pictures_are_not() -> None:
    training = unit(RNG.normal(size=(12, 16)) + 2)
    copies = training[[0, 3, 5, 7] * 5]
    assert memorisation(copies, training).low > 0.8
    fresh = memorisation(unit(RNG.normal(size=(20, 16)) + 1), training)
    assert fresh.value == 0
    assert 0 < fresh.high < 0.2


def test_duplicates_in_training_hide_no_copy() -> None:
    training = unit(RNG.normal(size=(6, 16)) + 2)
    doubled = np.concatenate([training, training])
    assert memorisation(training, doubled).value == memorisation(training, training).value == 1


def test_too_few_training_pictures_are_unmeasurable() -> None:
    with pytest.raises(ValueError, match="2 distinct training pictures, at least 3"):
        memorisation(np.eye(4), np.eye(4)[[0, 1, 1]])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.5])
def test_spread_is_the_ratio_of_variances(share: float) -> None:
    base = RNG.normal(size=(10, 4, 8))
    center = base.mean(1, keepdims=True)
    value, draws = spread(center + np.sqrt(share) * (base - center), base, 200, 0)
    assert value == pytest.approx(share)
    assert draws.std() < 1e-6  # paired: what prompts differ by cancels


@pytest.mark.parametrize(("moved", "expected"), [(0, 0.0), (1, 1.0)])
def test_drift_is_nothing_for_the_base_and_one_for_other_seeds(moved: int, expected: float) -> None:
    base = np.random.default_rng(0).normal(size=(40, 2, 8))
    value, draws = drift(np.roll(base, moved, axis=1), base, 200, 0)
    assert value == pytest.approx(expected)
    assert draws.min() <= expected <= draws.max()


def test_drift_sees_a_class_word_that_is_led_away() -> None:
    base = np.random.default_rng(0).normal(size=(40, 2, 8))
    assert drift(base + 3, base, 200, 0)[0] > 3


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        spread(np.ones((3, 1, 4)), np.ones((3, 1, 4)), 10, 0)


def scenes(count: int, seed: int) -> np.ndarray:
    """Plain pictures of one muted colour each, with a little noise."""
    noise = np.random.default_rng(seed)
    colours = noise.uniform(70, 180, (count, 1, 1, 3))
    return np.clip(colours + noise.normal(0, 4, (count, 16, 16, 3)), 0, 255).astype(np.uint8)


def test_what_the_base_draws_is_not_burnt() -> None:
    value, draws = burn(scenes(40, 1), scenes(40, 2), scenes(10, 3), 20, 200, 0)
    assert np.quantile(draws, 0.975) < 1
    assert value < 0.6


@pytest.mark.parametrize("fault", ["saturated", "clipped", "noisy"])
def test_each_kind_of_burn_is_seen(fault: str) -> None:
    pictures = scenes(40, 1).astype(float)
    grey = pictures.mean(-1, keepdims=True)
    burnt = {
        "saturated": grey + (pictures - grey) * 2.5,
        "clipped": np.where(pictures > 100, 255, pictures),
        "noisy": pictures + RNG.normal(0, 30, pictures.shape),
    }[fault]
    value, draws = burn(np.clip(burnt, 0, 255).astype(np.uint8), scenes(40, 2), scenes(10, 3), 20, 200, 0)
    assert value > 1
    assert np.quantile(draws, 0.025) > 0.5


def test_colours_of_the_training_pictures_are_no_burn() -> None:
    vivid = scenes(40, 1).astype(float)
    grey = vivid.mean(-1, keepdims=True)
    vivid = np.clip(grey + (vivid - grey) * 2.5, 0, 255).astype(np.uint8)
    assert burn(vivid, scenes(40, 2), vivid, 20, 50, 0)[0] == pytest.approx(0, abs=1e-6)
