"""The choice of one of the bank's recipes, on made-up rows."""

from __future__ import annotations

import pytest

from experiments.replay.prior import best_of, worth
from tests.experiments.replay.test_score_validity import row


def bank(*likeness: float) -> list[dict[str, str]]:
    """Return two checkpoints per recipe: the first with the given likeness, the second with none."""
    return [r for i, value in enumerate(likeness) for r in (row(4 * i, value, objective=1), row(4 * i, 0, objective=0))]


def test_a_recipe_is_worth_its_pick() -> None:
    worths = worth(bank(0.9, 0.5))
    assert worths == {"0": pytest.approx(1), "4": pytest.approx(2 * 0.5 / 1.5 / (2 * 0.9 / 1.9))}


def test_the_best_mean_is_kept_and_ties_are_counted() -> None:
    characters = {"a": bank(0.9, 0.8, 0.2), "b": bank(0.8, 0.9, 0.21), "c": bank(0.9, 0.7, 0.19, 1.0)}
    recipe, values, tied = best_of(characters)  # "12" has rows on one character only
    assert recipe == "0" and tied == 1 and len(values) == 3
