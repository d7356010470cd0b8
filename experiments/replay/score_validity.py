"""Does the score agree with the attribute classifier, and better than other scores? Replayed from the bank.

    python -m experiments.replay.score_validity

The classifier's score of a checkpoint is in `experiments.common.scores.classifier_score`. Agreement is Spearman's rank
correlation. Its intervals draw whole recipes, as the checkpoints of one recipe are not independent. A pick is compared
with the best checkpoint, which one half of the classifier's renders chooses and the other half scores, so that luck in
the choice is not counted as merit. Writes experiments/results/score/validity.md and validity.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

from autolora.files import write_atomic
from autolora.provenance import provenance
from autolora.scoring.intervals import Array
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import save_table, table_head, table_row, weights_name
from experiments.common.scores import WEIGHTS, Row, classifier_score, mean_over_weights, share_of_pick
from experiments.replay.bank_rows import read_rows

RESULTS = results.RESULTS / "score"
DRAWS = 1000

Score = Callable[[Row], float]
SCORES: dict[str, Score] = {
    "autolora": lambda row: float(row["objective"]),
    "autolora, score alone": lambda row: float(row["score"]),
    "CLIP-I": lambda row: mean_over_weights(row, "clip_i"),
    "CLIP-T": lambda row: mean_over_weights(row, "clip_t"),
    "CLIP-I + CLIP-T": lambda row: mean_over_weights(row, "clip_i") + mean_over_weights(row, "clip_t"),
    "-KID": lambda row: -mean_over_weights(row, "kid"),
    "-validation loss": lambda row: -float(row["val_loss"]),
}


def agreement(rows: list[Row], score: Score, truth: Score) -> tuple[float, Array]:
    """Return Spearman's correlation of two scores, and its draws over recipes, (draws,)."""
    by_recipe: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append((score(row), truth(row)))
    groups = [np.array(group) for group in by_recipe.values()]
    generator = np.random.default_rng(0)
    draws = [spearman([groups[i] for i in generator.integers(len(groups), size=len(groups))]) for _ in range(DRAWS)]
    return spearman(groups), np.array(draws)


def spearman(groups: list[Array]) -> float:
    """Return Spearman's correlation of the two columns of all groups together; 0 where a column is constant."""
    pairs = np.concatenate(groups)
    correlation = float(spearmanr(pairs[:, 0], pairs[:, 1])[0])
    return 0.0 if math.isnan(correlation) else correlation


def last_epoch(rows: list[Row]) -> float:
    """Return the share of the best of the first recipe's last epoch: the guide's recipe, unchanged."""
    guide = [row for row in rows if row["recipe"] == rows[0]["recipe"]]
    return share_of_pick(rows, lambda row: float(row is guide[-1]))


def table(title: str, columns: list[str], lines: dict[str, list[str]]) -> str:
    """Return a Markdown table with one line per score, and an empty line after it."""
    return (
        "\n".join([*table_head(title, *columns), *(table_row(name, *cells) for name, cells in lines.items())]) + "\n\n"
    )


def agreements(by_character: dict[str, list[Row]], score: Score, truth: Score) -> list[str]:
    """Return the cells of one line: the agreement on each character, the mean with its interval, and the worst."""
    found = [agreement(rows, score, truth) for rows in by_character.values()]
    values = [value for value, _ in found]
    intervals = [np.quantile(draws, [0.025, 0.975]) for _, draws in found]
    low, high = np.quantile(np.mean([draws for _, draws in found], axis=0), [0.025, 0.975])
    cells = [f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})" for value, ends in zip(values, intervals, strict=True)]
    return [*cells, f"**{np.mean(values):.2f}** ({low:.2f} to {high:.2f})", f"{min(values):.2f}"]


def picks(values: list[float]) -> list[str]:
    """Return the cells of one line: the share of the best on each character, the mean and the worst."""
    return [*(f"{value:.1%}" for value in values), f"**{np.mean(values):.1%}**", f"{min(values):.1%}"]


def tables(by_character: dict[str, list[Row]]) -> str:
    """Return the three tables: agreement of scores, agreement of bleed, and what the scores pick."""
    columns = [*by_character, "mean", "worst"]
    scores = {name: agreements(by_character, score, classifier_score) for name, score in SCORES.items()}
    bleeds = {
        f"bleed_class at weight {w}": agreements(
            by_character,
            lambda row, w=w: float(row[f"bleed_class@{w}"]),  # type: ignore[misc]
            lambda row, w=w: float(row[f"oracle_bleed@{w}"]),  # type: ignore[misc]
        )
        for w in WEIGHTS
    }
    bleeds["bleed_class, mean of both"] = agreements(
        by_character,
        lambda row: mean_over_weights(row, "bleed_class"),
        lambda row: mean_over_weights(row, "oracle_bleed"),
    )
    chosen = {
        name: picks([share_of_pick(rows, score) for rows in by_character.values()]) for name, score in SCORES.items()
    }
    chosen["the guide's last epoch"] = picks([last_epoch(rows) for rows in by_character.values()])
    return (
        table("Spearman with the attribute classifier's score", columns, scores)
        + table("Spearman with the attribute classifier's bleed (at 0.7 most rates are 0: ties)", columns, bleeds)
        + table("the attribute classifier's score of the pick, as a share of the best", columns, chosen)
    )


def main() -> None:
    """Write the tables."""
    argument_parser(__doc__).parse_args()
    by_character = read_rows()
    facts = provenance() | {"checkpoints": sum(map(len, by_character.values())), "characters": list(by_character)}
    facts |= {"weights": weights_name()}
    save_table(RESULTS / "validity.md", tables(by_character))
    write_atomic(RESULTS / "validity.json", json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
