"""What the comparison with the guide's recipes concludes, on scores whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.live.promise import arms, by_character, recipes, table, verdict


def character(**scores: list[float]) -> dict[str, Any]:
    return {f"{arm}-{i}": {"score": s, "steps": 100} for arm, own in scores.items() for i, s in enumerate(own)}


@pytest.mark.parametrize(
    ("ours", "expected"), [((0.8, 0.82, 0.78), "better"), ((0.5, 0.52, 0.48), "tie"), ((0.2, 0.22, 0.18), "worse")]
)
def test_beyond_two_spreads_of_seeds_one_is_better(ours: tuple[float, ...], expected: str) -> None:
    found = character(onebake=list(ours), lora=[0.5, 0.48, 0.53], lokr=[0.1, 0.1, 0.13])
    best, ahead, called = verdict(arms(found))
    assert best == "lora" and called == expected
    assert f"| 1 | 100 | 100 | {ours[0]:.2f}, " in table({"180": found}, 8)
    assert f"| lora | {ahead:+.1f} | {expected} |" in table({"180": found}, 8)


def test_a_character_counts_once_every_recipe_was_judged() -> None:
    whole = {f"180-{arm}-{i}": {"score": 0.5, "steps": 1} for arm in ("onebake", *recipes()) for i in range(2)}
    found = by_character(whole | {f"181-onebake-{i}": {"score": 0.5, "steps": 1} for i in range(2)})
    assert list(found) == ["180"] and found["180"]["onebake-0"]["score"] == 0.5


def test_the_guide_is_all_of_its_recipes_by_name() -> None:
    assert set(recipes()) == {"lora", "prodigy", "locon", "loha", "lokr", "ia3", "dylora"}
