"""What does the ladder save, and does it cost anything? Replayed from the bank.

    python studies/ladder_replay.py --out runs/bank

The bank's recipes of a character are worked off as one study, once with the ladder and its finals, once with the whole
suite of the finals on every checkpoint. Compared are the renders, the order of the checkpoints, and what the oracle
says of the two picks. Renders of the base model are cached and counted in neither.
Writes studies/results/score/ladder.md, of all characters replayed so far, and each one's figures.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bank import checkpoints_of, kept_suite, load_pictures, open_character, whole_suite
from kept import keep, kept
from score_validity import Row, picked, rank, read_rows

from autolora.adapters.lora import LoRA
from autolora.files import write_atomic
from autolora.scoring.probes import SEARCH_GROUPS
from autolora.scoring.scorecard import Rendered
from autolora.scoring.scorer import Scorer
from autolora.study.finals import REPEATS
from autolora.study.ladder import climb
from autolora.study.trial import Point
from autolora.train.run import Run

RESULTS = Path(__file__).parent / "results" / "score"
KEPT = RESULTS / "ladder"
FINALISTS = 3  # recipes in the finals, with at most two checkpoints each


@dataclass(frozen=True)
class Replayed:
    """A character's bank as a study with the ladder saw it."""

    points: list[Point]  # by row
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


def replay(seed: int, out: Path, rows: Sequence[Row]) -> Replayed:
    """Work off the bank's checkpoints in the order of its recipes."""
    work = open_character(seed, out, [Run("ladder", LoRA(dim=16))])
    deciding = kept_suite(work)
    search = deciding.only(*SEARCH_GROUPS)
    points: list[Point] = []
    spent = 0
    paths = [path for path, _, _ in checkpoints_of(seed, out)]
    for row, path in zip(rows, paths, strict=True):
        stored = load_pictures(deciding, path)

        def render(rung: Scorer, stored: Rendered = stored) -> Rendered:
            nonlocal spent
            spent += rung.renders
            return {(p, w): stored[p, w] for p in rung.probes for w in rung.settings.weights}

        points.append(climb(blank_point(row, work.base_losses), points, search, render))
    whole, finals = (one.renders * REPEATS for one in (whole_suite(work, work.render_settings.search), deciding))
    field = finalists(points, rows)
    pick = max(field, key=lambda i: float(rows[i]["objective"]))
    return Replayed(points, spent + finals * len(field) + whole, whole * len(rows), pick)  # the winner is asked all


def blank_point(row: Row, base_losses: Sequence[float]) -> Point:
    """A row of the bank as its losses show it."""
    losses = json.loads(row["val_losses"])
    ratios = [round(a / b, 4) for a, b in zip(losses, base_losses, strict=True)]
    return Point(int(row["step"]), float(row["train_loss"]), float(row["val_loss"]), ratios)


def finalists(points: Sequence[Point], rows: Sequence[Row]) -> list[int]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[110, 111, 112, 113])
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    args = parser.parse_args()
    rows = read_rows()
    for seed in args.seeds:
        own = rows[str(seed)]
        keep(KEPT, seed, replay(seed, args.out, own).figures(own))
    found = kept(KEPT)
    write_atomic(RESULTS / "ladder.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
