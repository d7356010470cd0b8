"""What does progressive evaluation save, and does it cost anything? Replayed from the bank.

    python -m experiments.replay.multi_fidelity

Progressive evaluation renders a checkpoint at the strongest LoRA weight first, and at the other weights only where that
does not settle it. The recipes of a character are run as one study, once with progressive evaluation and its finals,
and once with the finals' whole suite of prompts on every checkpoint. Compared are the number of renders, the order of
the checkpoints, and the attribute classifier's score of the two picks. Renders of the base model are cached and not
counted. Writes experiments/results/score/ladder.md, of all characters replayed so far, and the figures of each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autolora.evaluation.multi_fidelity import evaluate_progressively
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import REPEATS
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import Scorecard
from autolora.scoring.settings import ScoringSettings
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, load_results, save_result, save_table, table_head, table_row
from experiments.common.scores import Row, share_of_pick
from experiments.common.training import settings_of
from experiments.replay.bank_rows import facts_of, read_rows, rung_name
from experiments.replay.score_validity import spearman

RESULTS = results.RESULTS / "score"
CHARACTERS = RESULTS / "ladder"
FINALISTS = 3  # recipes in the finals, with at most two checkpoints each
COMPARED = ("spearman", "ladder", "whole")  # figures of the table, as the stored results call them


@dataclass(frozen=True)
class Replayed:
    """A character's bank as a study with progressive evaluation scored it."""

    points: list[CheckpointResult]  # by row
    renders: int
    full_renders: int  # of the whole suite on every checkpoint
    pick: int  # the row that the finals chose

    def figures(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the figures of the table: renders, agreement of the two orders, and the two picks' shares."""
        pairs = np.array([[p.objective, float(row["objective"])] for p, row in zip(self.points, rows, strict=True)])
        picked = rows[self.pick]
        return {
            "renders": self.renders,
            "full_renders": self.full_renders,
            "spearman": spearman([pairs]),
            "ladder": share_of_pick(rows, lambda row: float(row is picked)),
            "whole": share_of_pick(rows, lambda row: float(row["objective"])),
        }


def replay(rows: Sequence[Row], facts: dict[str, Any], settings: ScoringSettings) -> Replayed:
    """Evaluate the bank's checkpoints in the order of its recipes.

    Args:
        rows: of one character.
        facts: what is the same for all of them.
        settings: the limits that the search decides by.
    """
    points: list[CheckpointResult] = []
    by_recipe: dict[str, list[CheckpointResult]] = defaultdict(list)
    renders, spent = facts["renders"], 0
    for row in rows:
        earlier = by_recipe[row["recipe"]]
        point, weights = evaluated(row, earlier, points, facts["base_losses"], settings)
        earlier.append(point)
        points.append(point)
        spent += weights * renders["search"]
    final_rows = finalists(points, rows)
    pick = max(final_rows, key=lambda i: float(rows[i]["objective"]))
    # The winner is evaluated on all prompts.
    finals = renders["deciding"] * REPEATS * len(final_rows) + renders["whole"] * REPEATS
    return Replayed(points, spent + finals, renders["whole"] * REPEATS * len(rows), pick)


def evaluated(
    row: Row,
    earlier: Sequence[CheckpointResult],
    seen: Sequence[CheckpointResult],
    base_losses: Sequence[float],
    settings: ScoringSettings,
) -> tuple[CheckpointResult, int]:
    """Return a checkpoint as the search scores it, and at how many LoRA weights it is rendered for that.

    Args:
        row: the checkpoint.
        earlier: the results of its recipe so far.
        seen: the results of all recipes so far.
        base_losses: the base model's validation losses.
        settings: the limits that the search decides by.
    """
    rendered: set[float] = set()

    def score_at(weights: Sequence[float]) -> Scorecard:
        rendered.update(weights)
        return card_of(json.loads(row[rung_name(weights)]))

    result = evaluate_progressively(blank_point(row, base_losses), earlier, seen, settings, score_at)
    return result, len(rendered)


def card_of(content: dict[str, Any]) -> Scorecard:
    """Return the scorecard of a rung, as far as the bank keeps it."""
    by_weight = {w: {n: Estimate(**term) for n, term in terms.items()} for w, terms in content["by_weight"].items()}
    last = by_weight[max(by_weight, key=float)]
    return Scorecard(Estimate(**content["score"]), 1.0, last, by_weight, content["constraints"], {}, {}, "", {})


def blank_point(row: Row, base_losses: Sequence[float]) -> CheckpointResult:
    """Return a row of the bank as a result with losses only."""
    losses = json.loads(row["val_losses"])
    ratios = [round(a / b, 4) for a, b in zip(losses, base_losses, strict=True)]
    return CheckpointResult(int(row["step"]), float(row["train_loss"]), float(row["val_loss"]), ratios)


def finalists(points: Sequence[CheckpointResult], rows: Sequence[Row]) -> list[int]:
    """Return the rows of the best checkpoint of each of the best recipes."""
    by_recipe: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_recipe[row["recipe"]].append(i)
    best = [max(places, key=lambda i: points[i].objective) for places in by_recipe.values()]
    return sorted(sorted(best, key=lambda i: points[i].objective, reverse=True)[:FINALISTS])


def table(characters: dict[str, dict[str, float]]) -> str:
    """Return one line per character, the mean last."""
    lines = table_head(
        "character",
        "renders: progressive evaluation and finals",
        "whole suite",
        "share",
        "Spearman of the two orders",
        "attribute classifier's score of the pick, of the best: progressive evaluation",
        "whole suite",
    )
    columns = []
    for name, figures in characters.items():
        columns.append((figures["renders"] / figures["full_renders"], *(figures[key] for key in COMPARED)))
        share, agreement, progressive, whole = columns[-1]
        renders = (figures["renders"], figures["full_renders"])
        lines.append(
            table_row(name, *renders, f"{share:.1%}", f"{agreement:.2f}", f"{progressive:.1%}", f"{whole:.1%}")
        )
    means = np.mean(columns, axis=0)
    lines.append(
        f"| **mean** | | | **{means[0]:.1%}** | **{means[1]:.2f}** | **{means[2]:.1%}** | **{means[3]:.1%}** |"
    )
    return as_text(lines)


def main() -> None:
    """Replay every character of the bank and write the table."""
    argument_parser(__doc__).parse_args()
    settings = settings_of(study="quickstart").scoring
    for name, rows in read_rows().items():
        save_result(CHARACTERS, name, replay(rows, facts_of(name), settings).figures(rows))
    save_table(RESULTS / "ladder.md", table(load_results(CHARACTERS)))


if __name__ == "__main__":
    main()
