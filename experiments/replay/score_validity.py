"""Does the score say what the oracle says? Replayed from the bank, beside the scores that others choose by.

    python -m experiments.replay.score_validity

The oracle's own score of a checkpoint is the harmonic mean of mark likeness with the trigger and accuracy of prompted
attributes, averaged over weights 0.7 and 1.0, less the bleed above the limit. Agreement is Spearman's; intervals draw
whole recipes, as checkpoints of one recipe are no independent witnesses. The best checkpoint is chosen by one half of
the oracle's renders and valued by the other, so that luck in the choice is not counted as merit.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.paperdoll.weights import VERSION, weights_hash
from autolora.provenance import provenance
from autolora.scoring.intervals import Array

BANK = Path(__file__).parents[1] / "results" / "bank" / VERSION
RESULTS = Path(__file__).parents[1] / "results" / "score"
CHARACTERS = (110, 111, 112, 113)  # of the bank; smaller banks of others lie beside theirs
WEIGHTS = ("0.7", "1")
BLEED_LIMIT = 0.15
DRAWS = 1000

Row = dict[str, str]
JUDGES: dict[str, Callable[[Row], float]] = {
    "autolora": lambda row: float(row["objective"]),
    "autolora, score alone": lambda row: float(row["score"]),
    "CLIP-I": lambda row: mean_of(row, "clip_i"),
    "CLIP-T": lambda row: mean_of(row, "clip_t"),
    "CLIP-I + CLIP-T": lambda row: mean_of(row, "clip_i") + mean_of(row, "clip_t"),
    "-KID": lambda row: -mean_of(row, "kid"),
    "-validation loss": lambda row: -float(row["val_loss"]),
}


def read_rows() -> dict[str, list[Row]]:
    """The bank's rows by character.

    Raises:
        StudyError: there are none yet.
    """
    found: dict[str, list[Row]] = {}
    for path in (BANK / f"{seed}.csv" for seed in CHARACTERS):
        if path.is_file():
            with path.open(newline="") as handle:
                found[path.stem] = list(csv.DictReader(handle))
    if not found:
        raise StudyError(f"{BANK} holds no rows yet: run python -m experiments.replay.bank fill and measure first")
    return found


def mean_of(row: Row, name: str) -> float:
    """A figure's mean over the weights."""
    return float(np.mean([float(row[f"{name}@{weight}"]) for weight in WEIGHTS]))


def oracle_score(row: Mapping[str, Any], half: str = "") -> float:
    """The oracle's own score, by all of its renders or by one half of them (`_a`, `_b`)."""
    values = []
    for weight in WEIGHTS:
        likeness, accuracy = (float(row[f"oracle_{name}{half}@{weight}"]) for name in ("likeness", "accuracy"))
        bleed = float(row[f"oracle_bleed{half}@{weight}"])
        values.append(2 * likeness * accuracy / max(likeness + accuracy, 1e-9) - max(0.0, bleed - BLEED_LIMIT))
    return float(np.mean(values))


def agreement(rows: list[Row], judge: Callable[[Row], float], truth: Callable[[Row], float]) -> tuple[float, Array]:
    """Spearman's correlation and its draws over recipes."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault(row["recipe"], []).append((judge(row), truth(row)))
    every = [np.array(group) for group in groups.values()]
    generator = np.random.default_rng(0)
    draws = [rank([every[i] for i in generator.integers(len(every), size=len(every))]) for _ in range(DRAWS)]
    return rank(every), np.array(draws)


def rank(groups: list[Array]) -> float:
    """Spearman's correlation of the two columns of all groups together; 0 where one is constant."""
    pairs = np.concatenate(groups)
    found = float(spearmanr(pairs[:, 0], pairs[:, 1])[0])
    return 0.0 if math.isnan(found) else found


def picked(rows: list[Row], judge: Callable[[Row], float]) -> float:
    """The oracle's score of the judge's pick as a share of the best there was, by halves in turn."""
    return share_of_best(max(rows, key=judge), rows)


def share_of_best(figures: Mapping[str, Any], rows: list[Row]) -> float:
    """The oracle's score by its figures as a share of the best row's, which one half chooses and the other values."""
    shares = []
    for chosen_by, valued_by in (("_a", "_b"), ("_b", "_a")):
        best = oracle_score(max(rows, key=lambda row: oracle_score(row, chosen_by)), valued_by)
        shares.append(oracle_score(figures, valued_by) / best)
    return float(np.mean(shares))


def last_epoch(rows: list[Row]) -> float:
    """The same for the last epoch of the first recipe, the guide's as it is."""
    guide = [row for row in rows if row["recipe"] == rows[0]["recipe"]]
    return picked(rows, lambda row: float(row is guide[-1]))


def table(title: str, characters: list[str], lines: dict[str, list[str]]) -> str:
    """A Markdown table, one line a judge and one column a character."""
    head = f"| {title} | " + " | ".join(characters) + " |\n|" + "---|" * (len(characters) + 1) + "\n"
    return head + "".join(f"| {name} | " + " | ".join(cells) + " |\n" for name, cells in lines.items()) + "\n"


def main() -> None:
    """Write the tables."""
    by_character = read_rows()
    rows = [row for own in by_character.values() for row in own]
    names = [*by_character, "mean", "worst"]

    def agreements(judge: Callable[[Row], float], truth: Callable[[Row], float]) -> list[str]:
        found = [agreement(own, judge, truth) for own in by_character.values()]
        values = [value for value, _ in found]
        intervals = [np.quantile(draws, [0.025, 0.975]) for _, draws in found]
        low, high = np.quantile(np.mean([draws for _, draws in found], axis=0), [0.025, 0.975])
        cells = [f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})" for value, ends in zip(values, intervals, strict=True)]
        return [*cells, f"**{np.mean(values):.2f}** ({low:.2f} to {high:.2f})", f"{min(values):.2f}"]

    def picks(values: list[float]) -> list[str]:
        return [*(f"{value:.1%}" for value in values), f"**{np.mean(values):.1%}**", f"{min(values):.1%}"]

    text = table(
        "Spearman with the oracle's score", names, {name: agreements(j, oracle_score) for name, j in JUDGES.items()}
    )
    bleeds = {
        f"bleed_class at weight {w}": agreements(
            lambda row, w=w: float(row[f"bleed_class@{w}"]),  # type: ignore[misc]
            lambda row, w=w: float(row[f"oracle_bleed@{w}"]),  # type: ignore[misc]
        )
        for w in WEIGHTS
    }
    both = agreements(lambda row: mean_of(row, "bleed_class"), lambda row: mean_of(row, "oracle_bleed"))
    bleeds["bleed_class, mean of both"] = both
    text += table("Spearman with the oracle's bleed (at 0.7 most rates are 0: ties)", names, bleeds)
    chosen = {name: picks([picked(own, judge) for own in by_character.values()]) for name, judge in JUDGES.items()}
    chosen["the guide's last epoch"] = picks([last_epoch(own) for own in by_character.values()])
    text += table("the oracle's score of the pick, of the best there was", names, chosen)
    write_atomic(RESULTS / "validity.md", text)
    facts = provenance() | {"checkpoints": len(rows), "characters": list(by_character)}
    facts |= {"weights": f"{VERSION} {weights_hash()}"}
    write_atomic(RESULTS / "validity.json", json.dumps(facts, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
