"""The comparison of the study with the guide's recipes, on made-up scores."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.live.promise import by_character, recipes, scores_by_arm, table, verdict


def character(**scores: list[float]) -> dict[str, Any]:
    return {
        f"{arm}-{i}": {"score": s, "steps": 100} for arm, arm_scores in scores.items() for i, s in enumerate(arm_scores)
    }


@pytest.mark.parametrize(
    ("ours", "expected"), [((0.8, 0.82, 0.78), "better"), ((0.5, 0.52, 0.48), "tie"), ((0.2, 0.22, 0.18), "worse")]
)
def test_a_difference_of_more_than_two_seed_deviations_counts(ours: tuple[float, ...], expected: str) -> None:
    figures = character(onebake=list(ours), lora=[0.5, 0.48, 0.53], lokr=[0.1, 0.1, 0.13])
    best, ahead, comparison = verdict(scores_by_arm(figures))
    assert best == "lora" and comparison == expected
    assert f"| 1 | 100 | 100 | {ours[0]:.2f}, " in table({"180": figures}, 8)
    assert f"| lora | {ahead:+.1f} | {expected} |" in table({"180": figures}, 8)


def test_a_character_counts_only_with_every_recipe_judged() -> None:
    complete = {f"180-{arm}-{i}": {"score": 0.5, "steps": 1} for arm in ("onebake", *recipes()) for i in range(2)}
    characters = by_character(complete | {f"181-onebake-{i}": {"score": 0.5, "steps": 1} for i in range(2)})
    assert list(characters) == ["180"] and characters["180"]["onebake-0"]["score"] == 0.5


def test_all_recipes_of_the_guide_are_compared() -> None:
    assert set(recipes()) == {"lora", "prodigy", "locon", "loha", "lokr", "ia3", "dylora"}
