"""A trial's curve: its best checkpoint, where it overcooked, when it is hopeless."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolora.adapters.lora import LoRA
from autolora.optim.optimizers import AdamW
from autolora.study.trial import Point, Record
from autolora.train.run import Run

LIMIT = 0.5


def point(step: int, objective: float, bleed: tuple[float, float], diverged: bool = False) -> Point:
    """A point whose class bleed at weights 0.7 and 1.0 is given; its interval is 0.1 to each side."""
    by_weight = {
        weight: {"bleed_class": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        for weight, value in zip(("0.7", "1"), bleed, strict=True)
    }
    constraints = {"bleed_class": max(bleed) + 0.1 - LIMIT}
    return Point(
        step, objective, {"value": objective}, 1.0, {}, by_weight, constraints, {}, 0.1, 0.1, [], "", {}, {}, diverged
    )


def record(*points: Point) -> Record:
    return Record(Path("nowhere"), Run("made-up", LoRA(), AdamW()), list(points))


@pytest.mark.parametrize(
    ("bleeds", "step"),
    [
        ([(0.1, 0.2), (0.2, 0.6), (0.3, 0.7)], 200),  # over the limit at full weight from the second on
        ([(0.1, 0.6), (0.2, 0.3), (0.3, 0.4)], None),  # came back
        ([(0.1, 0.2), (0.2, 0.3)], None),
        ([(0.6, 0.7)], 100),
    ],
)
def test_overcooked_from_the_step_after_which_all_are(bleeds: list[tuple[float, float]], step: int | None) -> None:
    curve = [point(100 * (i + 1), 0.5, bleed) for i, bleed in enumerate(bleeds)]
    assert record(*curve).overcooked_step() == step


def test_hopeless_only_where_no_weight_can_save_it() -> None:
    sure, weight_saves = point(100, 0.1, (0.7, 0.9)), point(100, 0.1, (0.5, 0.9))
    assert record(sure, sure).hopelessly_overcooked(patience=2)
    assert not record(sure).hopelessly_overcooked(patience=2)
    assert not record(sure, weight_saves).hopelessly_overcooked(patience=2)


def test_the_best_is_the_earliest_of_equals() -> None:
    curve = [point(100, 0.4, (0, 0)), point(200, 0.6, (0, 0)), point(300, 0.6, (0, 0))]
    best = record(*curve).best()
    assert best is not None and best.step == 200
    assert record().best() is None
