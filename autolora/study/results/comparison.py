"""Several studies compared: which recipe wins how often, over any datasets, base models and search spaces."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from autolora.errors import StudyError
from autolora.evaluation.result import CheckpointResult
from autolora.files import path_below, write_atomic
from autolora.report.formatting import format_estimate
from autolora.report.tables import Section, as_dict
from autolora.scoring.intervals import Array, Estimate, with_exact_bounds
from autolora.study.storage import load_study_from_folder
from autolora.study.trials import readable_results

DRAWS = 4000
UNCHANGED, TUNED = "unchanged", "tuned"
TERMS = ("fidelity", "likeness", "editability", "bleed_class")
SUFFIXES = {"": "value", "_low": "low", "_high": "high"}  # of a term's columns


@dataclass(frozen=True)
class ComparisonRow:
    """The best checkpoint of one recipe in one study: of its baseline, or of all its trials."""

    study: str
    dataset: str
    base: str
    recipe: str
    kind: str  # UNCHANGED or TUNED
    trial: int
    result: CheckpointResult

    def as_dict(self) -> dict[str, Any]:
        """One flat row for a spreadsheet."""
        row: dict[str, Any] = {
            "study": self.study,
            "dataset": self.dataset,
            "base": self.base,
            "recipe": self.recipe,
            "kind": self.kind,
            "trial": self.trial,
            "step": self.result.step,
            "weight": self.result.weight,
            "broken": " ".join(self.result.broken),
        }
        terms = {"score": self.result.score or {}, **{name: self.result.terms.get(name, {}) for name in TERMS}}
        for name, term in terms.items():
            row |= {f"{name}{suffix}": term.get(key) for suffix, key in SUFFIXES.items()}
        return row


def read_study(folder: Path) -> list[ComparisonRow]:
    """Read the rows of a study from its folder.

    Raises:
        StudyError: it holds no study, or no trial of it has a scored checkpoint.
    """
    study = load_study_from_folder(folder)
    identity = study.user_attrs["space"]
    rows: dict[tuple[str, str], ComparisonRow] = {}
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        results = readable_results(path_below(folder / "trials", uid), trial) if uid else []
        best = max((p for p in results if p.score), key=lambda p: p.objective, default=None)
        if best is None:
            continue
        recipe = trial.user_attrs["recipe"]
        dataset, base = identity.get("dataset", "?"), identity.get("base model", "?")
        for kind in [TUNED, *([UNCHANGED] if trial.user_attrs.get("baseline") else [])]:
            earlier = rows.get((recipe, kind))
            if earlier is None or best.objective > earlier.result.objective:
                rows[recipe, kind] = ComparisonRow(str(folder), dataset, base, recipe, kind, trial.number, best)
    if not rows:
        raise StudyError(f"{folder}: no trial has a scored checkpoint yet; run it longer")
    return list(rows.values())


def wins(rows: Sequence[ComparisonRow], kind: str) -> dict[str, tuple[Estimate, int]]:
    """By recipe, the share of its studies that it wins and the number of its studies; the highest share first.

    The interval is a bootstrap over studies in which each score is drawn anew from a normal distribution of the width
    of its own interval. A checkpoint that breaks a limit loses to one that breaks none.
    """
    rows = [row for row in rows if row.kind == kind]
    studies = list(dict.fromkeys(row.study for row in rows))
    recipes = list(dict.fromkeys(row.recipe for row in rows))
    table = {(row.study, row.recipe): row for row in rows}
    generator = np.random.default_rng(0)
    won = np.zeros((len(studies), len(recipes)))  # as measured
    drawn = np.zeros((DRAWS, len(studies), len(recipes)))  # with every score drawn anew
    takes_part = np.array([[(study, recipe) in table for recipe in recipes] for study in studies], dtype=float)
    for place, study in enumerate(studies):
        objectives, deviations = np.full(len(recipes), -np.inf), np.zeros(len(recipes))
        for column, recipe in enumerate(recipes):
            row = table.get((study, recipe))
            if row and row.result.score:
                score = row.result.score
                objectives[column] = row.result.objective
                deviations[column] = (score["high"] - score["low"]) / (2 * norm.ppf(0.975))
        won[place, objectives.argmax()] = 1
        noise = generator.standard_normal((DRAWS, len(recipes))) * deviations
        drawn[np.arange(DRAWS), place, (objectives + noise).argmax(axis=1)] = 1
    resampled = generator.integers(len(studies), size=(DRAWS, len(studies)))
    shares = {}
    for column, recipe in enumerate(recipes):
        share = float(won[:, column].sum() / takes_part[:, column].sum())
        low, high = _interval(drawn[..., column], takes_part[:, column], resampled)
        count = int(takes_part[:, column].sum())
        shares[recipe] = with_exact_bounds(Estimate(share, min(share, low), max(share, high)), count), count
    return dict(sorted(shares.items(), key=lambda item: -item[1][0].value))


def _interval(drawn: Array, takes_part: Array, resampled: NDArray[np.int64]) -> tuple[float, float]:
    """The 95% interval of the share of studies that a recipe wins.

    Args:
        drawn: (draws, studies), 1 where it wins.
        takes_part: (studies,), 1 where it takes part.
        resampled: (draws, studies), the studies of each bootstrap sample.
    """
    weights = takes_part[resampled]
    counts = weights.sum(axis=1)
    shares = (drawn[np.arange(len(drawn))[:, None], resampled] * weights).sum(axis=1) / np.maximum(counts, 1)
    low, high = np.quantile(shares[counts > 0], [0.025, 0.975])
    return float(low), float(high)


def compare_sections(rows: Sequence[ComparisonRow]) -> list[Section]:
    """The tables of the comparison: wins of the tuned recipes and of the baselines, then every row."""
    sections = []
    for kind, title in ((TUNED, "Who wins, each recipe at its best trial"), (UNCHANGED, "Who wins, recipes unchanged")):
        won = wins(rows, kind).items()
        cells = tuple((recipe, share.value, share.low, share.high, count) for recipe, (share, count) in won)
        words = "share of the studies won, with a 95% interval over studies and over each score's own interval"
        sections.append(Section(title, ("recipe", "won", "low", "high", "studies"), cells, (words,) if cells else ()))
    columns = ("study", "recipe", "kind", "trial", "score", "bleed", "breaks")
    ranked = sorted(rows, key=lambda row: (row.study, row.kind, -row.result.objective))
    return [*sections, Section("Every study", columns, tuple(map(_cells, ranked)))]


def _cells(row: ComparisonRow) -> tuple[str | int, ...]:
    score, bleed = (Estimate(**term) for term in (row.result.score or {}, row.result.terms["bleed_class"]))
    broken = ", ".join(row.result.broken)
    return row.study, row.recipe, row.kind, row.trial, format_estimate(score), format_estimate(bleed), broken


def write_comparison(rows: Sequence[ComparisonRow], sections: Sequence[Section], out: Path) -> list[Path]:
    """Write `comparison.csv` with all rows, and `comparison.json` with the rows and the wins.

    Raises:
        StorageError: the folder cannot be written.
    """
    entries = [row.as_dict() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, entries[0])
    writer.writeheader()
    writer.writerows(entries)
    write_atomic(out / "comparison.csv", text.getvalue())
    content = {"entries": entries, **as_dict(sections[:2])}
    write_atomic(out / "comparison.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return [out / "comparison.csv", out / "comparison.json"]
