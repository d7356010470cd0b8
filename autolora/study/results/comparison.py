"""Several studies side by side: which recipe wins how often, whatever characters, bases and spaces they are of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from autolora.errors import StudyError
from autolora.evaluation.result import CheckpointResult, load_results
from autolora.files import write_atomic
from autolora.report.charts import format_estimate
from autolora.report.tables import Section, as_dict
from autolora.scoring.intervals import Estimate, with_exact_bounds
from autolora.study.storage import load_study_from_folder

DRAWS = 4000
UNCHANGED, TUNED = "unchanged", "tuned"
TERMS = ("fidelity", "likeness", "editability", "bleed_class")


@dataclass(frozen=True)
class ComparisonRow:
    """The best checkpoint of one recipe in one study, unchanged, or the best of all its trials: tuned."""

    study: str
    dataset: str
    base: str
    recipe: str
    kind: str
    trial: int
    point: CheckpointResult

    def as_row(self) -> dict[str, Any]:
        """One flat row, for a spreadsheet."""
        score = self.point.score or {}
        found: dict[str, Any] = {
            "study": self.study,
            "dataset": self.dataset,
            "base": self.base,
            "recipe": self.recipe,
            "kind": self.kind,
            "trial": self.trial,
            "step": self.point.step,
            "weight": self.point.weight,
            "broken": " ".join(self.point.broken),
        }
        for name, term in {"score": score, **{name: self.point.terms.get(name, {}) for name in TERMS}}.items():
            found |= {f"{name}{end}": term.get(key) for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
        return found


def read_study(folder: Path) -> list[ComparisonRow]:
    """The entries of a study's folder.

    Raises:
        StudyError: it holds no study, or none with a scored checkpoint.
    """
    study = load_study_from_folder(folder)
    identity = study.user_attrs["space"]
    found: dict[tuple[str, str], ComparisonRow] = {}
    for trial in study.get_trials(deepcopy=False):
        points = [p for p in load_results(folder / "trials" / trial.user_attrs.get("uid", "")) if p.score]
        best = max(points, key=lambda p: p.objective, default=None)
        if best is None:
            continue
        recipe = trial.user_attrs["recipe"]
        for kind in [TUNED, *([UNCHANGED] if trial.user_attrs.get("baseline") else [])]:
            known = found.get((recipe, kind))
            if known is None or best.objective > known.point.objective:
                found[recipe, kind] = ComparisonRow(
                    str(folder),
                    identity.get("dataset", "?"),
                    identity.get("base model", "?"),
                    recipe,
                    kind,
                    trial.number,
                    best,
                )
    if not found:
        raise StudyError(f"{folder}: no trial has a scored checkpoint yet; run it longer")
    return list(found.values())


def wins(entries: Sequence[ComparisonRow], kind: str) -> dict[str, tuple[Estimate, int]]:
    """By recipe, the share of the studies that have it which it wins, and how many these are; the most winning first.

    The interval is a bootstrap over studies in which each score is drawn anew within its own interval, taken as normal;
    what breaks a limit loses to what breaks none.
    """
    own = [entry for entry in entries if entry.kind == kind]
    studies = list(dict.fromkeys(entry.study for entry in own))
    recipes = list(dict.fromkeys(entry.recipe for entry in own))
    table = {(entry.study, entry.recipe): entry for entry in own}
    generator = np.random.default_rng(0)
    won = np.zeros((len(studies), len(recipes)))  # as measured
    drawn = np.zeros((DRAWS, len(studies), len(recipes)))  # with every score drawn anew
    taken = np.array([[(study, recipe) in table for recipe in recipes] for study in studies], dtype=float)
    for row, study in enumerate(studies):
        values, spread = np.full(len(recipes), -np.inf), np.zeros(len(recipes))
        for column, recipe in enumerate(recipes):
            entry = table.get((study, recipe))
            if entry and entry.point.score:
                score = entry.point.score
                values[column] = entry.point.objective
                spread[column] = (score["high"] - score["low"]) / (2 * norm.ppf(0.975))
        won[row, values.argmax()] = 1
        noise = generator.standard_normal((DRAWS, len(recipes))) * spread
        drawn[np.arange(DRAWS), row, (values + noise).argmax(axis=1)] = 1
    picked = generator.integers(len(studies), size=(DRAWS, len(studies)))
    found = {}
    for column, recipe in enumerate(recipes):
        of, weights = drawn[np.arange(DRAWS)[:, None], picked, column], taken[picked, column]
        shares = (of * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        value = float(won[:, column].sum() / taken[:, column].sum())
        low, high = np.quantile(shares[weights.sum(axis=1) > 0], [0.025, 0.975])
        share, studies_of = (
            Estimate(value, min(value, float(low)), max(value, float(high))),
            int(taken[:, column].sum()),
        )
        found[recipe] = with_exact_bounds(share, studies_of), studies_of
    return dict(sorted(found.items(), key=lambda item: -item[1][0].value))


def compare_sections(entries: Sequence[ComparisonRow]) -> list[Section]:
    """What the comparison says: wins of the recipes as they are and tuned, then every entry."""
    sections = []
    for kind, title in ((TUNED, "Who wins, each recipe at its best trial"), (UNCHANGED, "Who wins, recipes unchanged")):
        won = wins(entries, kind).items()
        rows = tuple((recipe, share.value, share.low, share.high, count) for recipe, (share, count) in won)
        words = "share of the studies won, with a 95% interval over studies and over each score's own interval"
        sections.append(Section(title, ("recipe", "won", "low", "high", "studies"), rows, (words,) if rows else ()))
    columns = ("study", "recipe", "kind", "trial", "score", "bleed", "breaks")
    ranked = sorted(entries, key=lambda e: (e.study, e.kind, -e.point.objective))
    return [*sections, Section("Every study", columns, tuple(map(_in_words, ranked)))]


def _in_words(entry: ComparisonRow) -> tuple[str | int, ...]:
    score, bleed = (Estimate(**term) for term in (entry.point.score or {}, entry.point.terms["bleed_class"]))
    broken = ", ".join(entry.point.broken)
    return entry.study, entry.recipe, entry.kind, entry.trial, format_estimate(score), format_estimate(bleed), broken


def write_comparison(entries: Sequence[ComparisonRow], sections: Sequence[Section], out: Path) -> list[Path]:
    """Write `comparison.csv`, one row an entry, and `comparison.json`, which has the wins too.

    Raises:
        StorageError: the folder cannot be written.
    """
    rows = [entry.as_row() for entry in entries]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out / "comparison.csv", text.getvalue())
    content = {"entries": rows, **as_dict(sections[:2])}
    write_atomic(out / "comparison.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return [out / "comparison.csv", out / "comparison.json"]
