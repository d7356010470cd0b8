"""Agreement and picks of scores, on made-up rows."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.common.scores import classifier_score, share_of_pick
from experiments.replay.score_validity import agreement, last_epoch


def row(recipe: int, likeness: float, bleed: float = 0.0, objective: float = 0.0) -> dict[str, str]:
    figures = {"recipe": str(recipe), "objective": str(objective)}
    for weight in ("0.7", "1"):
        for half in ("", "_a", "_b"):
            figures[f"oracle_likeness{half}@{weight}"] = str(likeness)
            figures[f"oracle_accuracy{half}@{weight}"] = "1.0"
            figures[f"oracle_bleed{half}@{weight}"] = str(bleed)
    return figures


RNG = np.random.default_rng(0)
ROWS = [row(i // 4, value, objective=value) for i, value in enumerate(RNG.uniform(0.2, 0.9, 80))]


def test_bleed_up_to_the_limit_costs_nothing_and_beyond_it_does() -> None:
    assert classifier_score(row(0, 1.0, 0.15)) == pytest.approx(1)
    assert classifier_score(row(0, 1.0, 0.55)) == pytest.approx(0.6)
    assert classifier_score(row(0, 0.5)) == pytest.approx(2 / 3)


def test_agreement_is_1_for_the_truth_and_about_0_for_noise() -> None:
    value, draws = agreement(ROWS, lambda r: float(r["objective"]), classifier_score)
    assert value == pytest.approx(1) and draws.min() == pytest.approx(1)
    noise = {id(r): x for r, x in zip(ROWS, RNG.normal(size=80), strict=True)}
    value, draws = agreement(ROWS, lambda r: noise[id(r)], classifier_score)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert low < 0 < high and abs(value) < 0.4


def test_a_pick_is_a_share_of_the_best() -> None:
    assert share_of_pick(ROWS, lambda r: float(r["objective"])) == pytest.approx(1)
    worst = share_of_pick(ROWS, lambda r: -float(r["objective"]))
    assert worst == pytest.approx(min(map(classifier_score, ROWS)) / max(map(classifier_score, ROWS)))
    assert last_epoch(ROWS) == pytest.approx(classifier_score(ROWS[3]) / max(map(classifier_score, ROWS)))
