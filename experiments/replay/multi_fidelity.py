"""What does the ladder save, and does it cost anything? Replayed from the bank.

    python -m experiments.replay.multi_fidelity

The bank's recipes of a character are worked off as one study, once with the ladder and its finals, once with the whole
suite of the finals on every checkpoint. Compared are the renders, the order of the checkpoints, and what the oracle
says of the two picks. Renders of the base model are cached and counted in neither.
Writes experiments/results/score/ladder.md, of all characters replayed so far, and each one's figures.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autolora import config as cfg
from autolora.evaluation.multi_fidelity import evaluate_progressively
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import REPEATS
from autolora.files import write_atomic
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import Scorecard
from autolora.scoring.settings import ScoringSettings
from experiments.common.results import keep, kept
from experiments.replay.bank import rung_name
from experiments.replay.score_validity import BANK, Row, picked, rank, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "score"
KEPT = RESULTS / "ladder"
FINALISTS = 3  # recipes in the finals, with at most two checkpoints each


@dataclass(frozen=True)
class Replayed:
    """A character's bank as a study with the ladder saw it."""

    points: list[CheckpointResult]  # by row
    renders: int
    full_renders: int  # of the whole suite on every checkpoint
    pick: int  # the row that the finals chose

    def figures(self, rows: Sequence[Row]) -> dict[str, float]:
        """What the table tells: renders, agreement of the two orders, the oracle's value of the two picks."""
        pairs = np.array([[p.objective, float(row["objective"])] for p, row in zip(self.points, rows, strict=True)])
        chosen = rows[self.pick]
        return {
            "renders": self.renders,
            "full_renders": self.full_renders,
            "spearman": rank([pairs]),
            "ladder": picked(list(rows), lambda row: float(row is chosen)),
            "whole": picked(list(rows), lambda row: float(row["objective"])),
        }


def replay(rows: Sequence[Row], facts: dict[str, Any], settings: ScoringSettings) -> Replayed:
    """Work off the bank's checkpoints in the order of its recipes.

    Args:
        rows: of one character.
        facts: what is the same for all of them.
        settings: the limits that the ladder decides by.
    """
    points: list[CheckpointResult] = []
    by_recipe: dict[str, list[CheckpointResult]] = defaultdict(list)
    renders, spent = facts["renders"], 0
    for row in rows:
        own = by_recipe[row["recipe"]]
        point, weights = evaluated(row, own, points, facts["base_losses"], settings)
        own.append(point)
        points.append(point)
        spent += weights * renders["search"]
    field = finalists(points, rows)
    pick = max(field, key=lambda i: float(rows[i]["objective"]))
    finals = renders["deciding"] * REPEATS * len(field) + renders["whole"] * REPEATS  # the winner is asked all
    return Replayed(points, spent + finals, renders["whole"] * REPEATS * len(rows), pick)


def evaluated(
    row: Row,
    own: Sequence[CheckpointResult],
    seen: Sequence[CheckpointResult],
    base_losses: Sequence[float],
    settings: ScoringSettings,
) -> tuple[CheckpointResult, int]:
    """A row of the bank as the ladder judges it, and at how many weights it renders for that; see `evaluate_progressively`."""
    asked: set[float] = set()

    def judge(at: Sequence[float]) -> Scorecard:
        asked.update(at)
        return seen_card(json.loads(row[rung_name(at)]))

    return evaluate_progressively(blank_point(row, base_losses), own, seen, settings, judge), len(asked)


def seen_card(content: dict[str, Any]) -> Scorecard:
    """A scorecard as far as the bank keeps it for the ladder."""
    by_weight = {w: {n: Estimate(**term) for n, term in terms.items()} for w, terms in content["by_weight"].items()}
    last = by_weight[max(by_weight, key=float)]
    return Scorecard(Estimate(**content["score"]), 1.0, last, by_weight, content["constraints"], {}, {}, "", {})


def blank_point(row: Row, base_losses: Sequence[float]) -> CheckpointResult:
    """A row of the bank as its losses show it."""
    losses = json.loads(row["val_losses"])
    ratios = [round(a / b, 4) for a, b in zip(losses, base_losses, strict=True)]
    return CheckpointResult(int(row["step"]), float(row["train_loss"]), float(row["val_loss"]), ratios)


def finalists(points: Sequence[CheckpointResult], rows: Sequence[Row]) -> list[int]:
    """The best checkpoint of each of the best recipes."""
    by_recipe: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_recipe[row["recipe"]].append(i)
    best = {recipe: max(own, key=lambda i: points[i].objective) for recipe, own in by_recipe.items()}
    return sorted(sorted(best.values(), key=lambda i: points[i].objective, reverse=True)[:FINALISTS])


def table(found: dict[str, dict[str, float]]) -> str:
    """One line a character, the mean last."""
    lines = [
        "| character | renders: ladder and finals | whole suite | share | Spearman of the two orders "
        "| oracle's score of the pick: ladder | whole suite |",
        "|" + "---|" * 7,
    ]
    columns = []
    for name, one in found.items():
        share = one["renders"] / one["full_renders"]
        columns.append((share, one["spearman"], one["ladder"], one["whole"]))
        lines.append(
            f"| {name} | {one['renders']} | {one['full_renders']} | {share:.1%} | {one['spearman']:.2f} "
            f"| {one['ladder']:.1%} | {one['whole']:.1%} |"
        )
    means = np.mean(columns, axis=0)
    lines.append(
        f"| **mean** | | | **{means[0]:.1%}** | **{means[1]:.2f}** | **{means[2]:.1%}** | **{means[3]:.1%}** |"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replay every character of the bank and write the table."""
    settings = cfg.scoring_settings(cfg.compose("tune", [], "quickstart"))
    for name, own in read_rows().items():
        facts = json.loads((BANK / f"{name}.json").read_text("utf-8"))
        keep(KEPT, name, replay(own, facts, settings).figures(own))
    found = kept(KEPT)
    write_atomic(RESULTS / "ladder.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
