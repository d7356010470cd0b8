"""The rows of the replay bank: one line of CSV per checkpoint, in experiments/results/bank/<weights>/<seed>.csv.

Rows need nothing else of the bank: neither its images nor its checkpoints.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

from autolora.errors import StudyError
from autolora.files import atomic_path, write_atomic
from autolora.paperdoll.weights import VERSION, weights_hash
from autolora.provenance import provenance
from autolora.renamed_keys import RENAMED_KEYS
from experiments.common.results import RESULTS
from experiments.common.scores import Row

BANK = RESULTS / "bank" / VERSION
SPACE = str(BANK.parent / "space.yaml")  # the study whose ranges the bank's recipes are drawn from
CHARACTERS = (110, 111, 112, 113)  # with 48 recipes each; the smaller banks of other characters lie beside theirs
# Rows call a config key as it was called when the bank was begun.
STORED_KEYS = {new: old for old, new in RENAMED_KEYS.items()}


def stored_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with each key by its name in the rows."""
    return {STORED_KEYS.get(key, key): value for key, value in values.items()}


def recipe_values(row: Row) -> dict[str, Any]:
    """Return the values of a row's recipe by today's config keys; `recipe` is its name."""
    return {RENAMED_KEYS.get(key, key): value for key, value in json.loads(row["recipe"]).items()}


def rung_name(weights: Sequence[float]) -> str:
    """Return the column with what the multi-fidelity search sees when it renders at these LoRA weights."""
    return "rung@" + "+".join(f"{weight:g}" for weight in weights)


def rows_of(seed: int) -> list[Row]:
    """Return a character's rows so far; none where they are of other weights."""
    path = BANK / f"{seed}.csv"
    if not path.is_file() or facts_of(seed)["weights"] != weights_hash():
        return []
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def facts_of(seed: int | str) -> dict[str, Any]:
    """Return what is the same for all rows of a character: numbers of renders, and the base model's losses."""
    facts: dict[str, Any] = json.loads((BANK / f"{seed}.json").read_text("utf-8"))
    return facts


def read_rows() -> dict[str, list[Row]]:
    """Return the bank's rows by character.

    Raises:
        StudyError: there are none yet.
    """
    rows: dict[str, list[Row]] = {}
    for path in (BANK / f"{seed}.csv" for seed in CHARACTERS):
        if path.is_file():
            with path.open(newline="") as handle:
                rows[path.stem] = list(csv.DictReader(handle))
    if not rows:
        raise StudyError(f"{BANK} holds no rows yet: run python -m experiments.replay.bank fill and measure first")
    return rows


def write_rows(seed: int, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Add rows to a character's, in the place of older rows of the same recipes, and write how they were measured."""
    measured = {row["number"] for row in rows}
    merged: list[dict[str, Any]] = [row for row in rows_of(seed) if int(row["number"]) not in measured]
    merged = sorted([*merged, *rows], key=lambda row: (int(row["number"]), int(row["step"])))
    names = list(dict.fromkeys(name for row in merged for name in row))  # some terms need two outfits
    with atomic_path(BANK / f"{seed}.csv") as temporary, temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=names)
        writer.writeheader()
        writer.writerows(merged)
    facts = provenance() | {"weights": weights_hash(), "rows": len(merged)} | facts
    write_atomic(BANK / f"{seed}.json", json.dumps(facts, indent=2) + "\n")
