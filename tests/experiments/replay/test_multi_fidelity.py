"""The replay of progressive evaluation: the finalists and the table."""

from __future__ import annotations

from dataclasses import replace

from autolora.evaluation.result import CheckpointResult
from experiments.replay.multi_fidelity import FINALISTS, Replayed, blank_point, finalists, table
from tests.experiments.replay.test_score_validity import row


def point(objective: float, width: float) -> CheckpointResult:
    score = {"value": objective, "low": objective - width, "high": objective + width}
    return CheckpointResult(100, 0.1, 0.1, [0.5], objective, score)


def test_the_finals_take_the_best_checkpoint_of_each_of_the_best_recipes() -> None:
    rows = [row(i // 3, 0.5) for i in range(12)]
    values = [0.1, 0.7, 0.8, 0.2, 0.6, 0.1, -0.1, 0.2, 0.3, 0.1, 0.1, 0.1]
    chosen = finalists([point(value, 0.15) for value in values], rows)
    assert chosen == [2, 4, 8]
    assert len(chosen) == FINALISTS


def test_losses_are_relative_to_those_of_the_base_model() -> None:
    result = blank_point({"val_losses": "[0.2, 0.3]", "step": "7", "train_loss": "0.1", "val_loss": "0.25"}, (0.4, 0.3))
    assert (result.step, result.val_ratios) == (7, [0.5, 1.0])


def test_the_table_shows_renders_and_the_share_of_the_best() -> None:
    rows = [row(i, likeness, objective=likeness) for i, likeness in enumerate((0.5, 0.6, 0.8))]
    points = [point(value, 0.0) for value in (0.5, 0.6, 0.8)]
    right = Replayed(points, renders=10, full_renders=100, pick=2)
    text = table({"good": right.figures(rows), "poor": replace(right, pick=1).figures(rows)})
    assert "| good | 10 | 100 | 10.0% | 1.00 | 100.0% | 100.0% |" in text
    assert "| poor | 10 | 100 | 10.0% | 1.00 | 84.4% | 100.0% |" in text
    assert "| **mean** | | | **10.0%** | **1.00** | **92.2%** | **100.0%** |" in text
