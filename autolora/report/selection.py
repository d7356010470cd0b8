"""The trials of a report in the order in which the page lists and compares them."""

from __future__ import annotations

import math

from autolora.report.figures.comparison import ComparedTrial
from autolora.report.figures.curves import CURVE_TERMS
from autolora.report.schema import Report, TrialRow


def ranked_trials(report: Report) -> list[TrialRow]:
    """All trials as the table lists them: the exported one, then those that break no constraint, each by score."""

    def rank(trial: TrialRow) -> tuple[bool, bool, bool, float, int]:
        value = trial.score.value if trial.score else -math.inf
        return trial.number != report.best, trial.score is None, bool(trial.broken), -value, trial.number

    return sorted(report.trials, key=rank)


def leading_trials(report: Report) -> list[tuple[str, TrialRow]]:
    """The exported trial and the baselines by name, each once."""
    best = report.trial(report.best)
    leading = [] if best is None else [("exported", best)]
    for name, trial_number in report.baselines.items():
        trial = report.trial(trial_number)
        if trial is not None and trial is not best:
            leading.append((name, trial))
    return leading


def compared_trials(report: Report) -> list[ComparedTrial]:
    """The leading trials that have a score, with the terms of the baselines at the end of their training."""
    compared = []
    for name, trial in leading_trials(report):
        if trial.score is not None:
            last = trial.curve[-1] if trial.curve and trial.number != report.best else None
            ends = {term: float(getattr(last, term)) for term in CURVE_TERMS} if last else {}
            compared.append(ComparedTrial(name, trial, {"score": trial.score, **trial.terms}, ends))
    return compared
