"""Discriminants, score terms and intervals, on embeddings with a known result."""

from __future__ import annotations

import numpy as np
import pytest

from autolora.config import compose
from autolora.errors import ConfigError
from autolora.scoring.intervals import Estimate, bootstrap_means, estimate, expansion, with_exact_bounds
from autolora.scoring.settings import ScoringSettings
from autolora.scoring.terms import cross_fit, editability, fit_discriminant, relative_position
from autolora.settings import build_settings

RNG = np.random.default_rng(0)


def cloud(center: float, count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 16))
    rows[:, 0] = rows[:, 0] * 0.3 + center
    return rows


def test_the_discriminant_finds_the_axis_that_separates() -> None:
    discriminant = fit_discriminant(cloud(3, 40, 1), cloud(0, 40, 2))
    assert abs(discriminant.direction[0]) > 0.9
    assert np.linalg.norm(discriminant.direction) == pytest.approx(1)


@pytest.mark.parametrize("columns", [16, 400])
def test_the_discriminant_solves_the_shrunk_covariance(columns: int) -> None:
    """This must also hold with more columns than rows, where the covariance alone has no inverse."""
    generator = np.random.default_rng(0)
    positives, negatives = generator.normal(1, 1, (20, columns)), generator.normal(0, 2, (30, columns))
    centered = np.concatenate([positives - positives.mean(0), negatives - negatives.mean(0)])
    covariance = centered.T @ centered / 50
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / columns * np.eye(columns)
    direction = np.linalg.solve(shrunk, positives.mean(0) - negatives.mean(0))
    assert fit_discriminant(positives, negatives).direction == pytest.approx(direction / np.linalg.norm(direction))


def test_auc_is_about_a_half_without_a_difference_and_one_with_it() -> None:
    assert 0.25 < cross_fit(cloud(0, 60, 1), cloud(0, 60, 2))[1] < 0.75
    assert cross_fit(cloud(4, 30, 1), cloud(0, 30, 2))[1] > 0.99


def test_positions_are_cross_validated() -> None:
    """If only chance separates the images, those that the discriminant was fitted on lie too high."""
    positives, negatives = cloud(0, 12, 1), cloud(0, 40, 2)
    unseen, _ = cross_fit(positives, negatives)
    seen = fit_discriminant(positives, negatives)(positives)
    assert len(unseen) == len(positives)
    assert seen.mean() - unseen.mean() > 0.3


def test_too_few_images_have_an_auc_of_0() -> None:
    assert cross_fit(cloud(4, 1, 1), cloud(0, 30, 2))[1] == 0.0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_relative_position_runs_from_base_to_real(share: float) -> None:
    base = RNG.normal(0, 0.1, (12, 2))
    real = RNG.normal(5, 0.1, 9)
    rendered = base + 5 * share
    value, draws = relative_position(rendered, base, real, 200, 0)
    assert value == pytest.approx(share, abs=0.05)
    interval = estimate(value, draws)
    assert interval.low <= interval.value <= interval.high


def test_the_position_is_paired_so_that_shared_noise_cancels() -> None:
    base = RNG.normal(0, 3, (12, 2))
    _, draws = relative_position(base + 1, base, np.full(9, 40.0) + base.mean(), 400, 0)
    assert draws.std() < 0.01


def test_editability_is_1_for_the_base_model_and_0_if_prompts_change_nothing() -> None:
    texts = np.eye(8)[:6]
    base = np.stack([np.stack([t, t]) for t in texts]) + RNG.normal(0, 0.01, (6, 2, 8))
    assert editability(base, base, texts, 100, 0)[0] == pytest.approx(1)
    fixed = np.broadcast_to(base.mean(axis=0), base.shape)
    assert editability(fixed, base, texts, 100, 0)[0] == pytest.approx(0, abs=1e-9)
    assert editability(base + fixed, base, texts, 100, 0)[0] == pytest.approx(1)


def test_the_bootstrap_over_prompts_is_wider_than_over_images() -> None:
    table = np.repeat(RNG.normal(size=(10, 1)), 8, axis=1)  # the seeds of a prompt agree, so they add no information
    assert bootstrap_means(table, 500, 0).std() > 2 * table.std() / np.sqrt(table.size)


def test_the_same_seed_gives_the_same_draws() -> None:
    table = RNG.normal(size=(7, 3))
    assert np.array_equal(bootstrap_means(table, 50, 3), bootstrap_means(table, 50, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": ()}, "weights"),
        ({"seeds_per_class_prompt": 0}, "seeds_per_class_prompt"),
        ({"outfit_prompts": ("red dress",)}, "outfit_prompts"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoringSettings(**{"outfit_prompts": ("a", "b"), **wrong})  # type: ignore[arg-type]


def test_95_percent_intervals_of_few_prompts_contain_the_truth_that_often() -> None:
    """For means of five normal values, percentiles alone contain the truth in five of six cases."""
    noise, plain, wide = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values = noise.normal(size=(5, 1))
        draws = bootstrap_means(values, 400, 0)
        narrow, expanded = (estimate(float(values.mean()), draws, *sizes) for sizes in ((), (5,)))
        plain += narrow.low <= 0 <= narrow.high
        wide += expanded.low <= 0 <= expanded.high
    assert plain < 0.87 * 400 and 0.92 * 400 < wide < 0.98 * 400
    assert expansion(10_000) == pytest.approx(1, abs=0.001) and expansion(1) == 1
    assert expansion(5) > expansion(5, 6) > expansion(5, 100) > np.sqrt(5 / 4)  # more samples add degrees of freedom


def test_no_hit_in_few_renders_does_not_rule_bleed_out() -> None:
    for renders in (8, 16, 24, 100):
        bound = with_exact_bounds(Estimate(0.0, 0.0, 0.0), renders).high
        assert (1 - bound) ** renders == pytest.approx(0.025)
    assert with_exact_bounds(Estimate(0.0, 0.0, 0.0), 24).high < ScoringSettings.max_bleed
    assert with_exact_bounds(Estimate(0.0, 0.0, 0.0), 16).high > ScoringSettings.max_bleed
    assert with_exact_bounds(Estimate(0.5, 0.3, 0.7), 24) == Estimate(0.5, 0.3, 0.7)
    assert with_exact_bounds(Estimate(1.0, 1.0, 1.0), 24).low == pytest.approx(
        1 - with_exact_bounds(Estimate(0.0, 0.0, 0.0), 24).high
    )


def test_the_default_prompts_are_enough_to_rule_bleed_out() -> None:
    for name in ("character", "paperdoll", "style", "object"):
        settings = build_settings(compose("train", [f"scoring={name}"])).scoring
        renders = settings.num_class_renders * settings.seeds_per_class_prompt
        assert with_exact_bounds(Estimate(0.0, 0.0, 0.0), renders).high < settings.max_bleed
