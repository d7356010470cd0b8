"""The progress of a running study: as a table for the terminal, as a line for a log, and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial
from rich.table import Table

from autolora.evaluation.result import CheckpointResult
from autolora.report.formatting import duration, format_estimate
from autolora.scoring.intervals import Estimate
from autolora.study.budget import spent_seconds, wall_seconds
from autolora.study.definition import StudyDefinition
from autolora.study.trials import ENDED, readable_results


@dataclass(frozen=True)
class StudyProgress:
    """The trials that ended, the best checkpoint so far, and the time that is left."""

    study: str
    ended: int
    trials: int
    seconds_left: float | None  # of the search; None before a trial has ended
    trial: int | None = None
    recipe: str = ""
    step: int | None = None  # images shown up to the best checkpoint
    score: Estimate | None = None
    bleed: Estimate | None = None
    likeness: Estimate | None = None
    breaks: tuple[str, ...] = ()  # the limits that the best checkpoint breaks

    def as_dict(self) -> dict[str, Any]:
        """The progress as a JSON object."""
        return asdict(self)

    @property
    def left(self) -> str:
        """The time that is left for the search, in words."""
        return "?" if self.seconds_left is None else duration(self.seconds_left)

    def line(self) -> str:
        """The progress as one line."""
        start = f"{self.study}: {self.ended} of {self.trials} trials, {self.left} of search left; "
        if self.trial is None or self.score is None or self.bleed is None:
            return start + "no checkpoint is scored yet"
        broken = f", breaks {', '.join(self.breaks)}" if self.breaks else ""
        return start + (
            f"best trial {self.trial} ({self.recipe}) after {self.step} images: score {format_estimate(self.score)}, "
            f"bleed {format_estimate(self.bleed)}{broken}"
        )

    def table(self) -> Table:
        """The progress as a table."""
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        cells = {
            "trials": f"{self.ended}/{self.trials}",
            "search left": self.left,
            "best so far": "-" if self.trial is None else f"#{self.trial} {self.recipe}, {self.step} images",
            "score": "-" if self.score is None else format_estimate(self.score),
            "bleed": "-" if self.bleed is None else format_estimate(self.bleed),
            "likeness": "-" if self.likeness is None else format_estimate(self.likeness),
            "breaks": ", ".join(self.breaks) or "nothing" if self.trial is not None else "-",
        }
        for name in cells:
            table.add_column(name, no_wrap=name in ("trials", "search left"))
        table.add_row(*cells.values())
        return table


def study_progress(definition: StudyDefinition, study: Study) -> StudyProgress:
    """The progress of a study, from the results that its trials have written."""
    trials = study.get_trials(deepcopy=False)
    scored = [(trial, result) for trial in trials if (result := _best(definition, trial))]
    best, result = max(scored, key=lambda pair: pair[1].objective, default=(None, None))
    ended = sum(trial.state in ENDED for trial in trials)
    size = definition.settings.budget.n_trials
    left = _seconds_left(definition, study, size - ended, spent_seconds(study) / ended) if ended else None
    progress = StudyProgress(definition.settings.name, ended, size, left)
    if best is None or result is None or result.score is None:
        return progress
    return replace(
        progress,
        trial=best.number,
        recipe=best.user_attrs["recipe"],
        step=result.step,
        score=Estimate(**result.score),
        bleed=Estimate(**result.terms["bleed_class"]),
        likeness=Estimate(**result.terms["likeness"]),
        breaks=tuple(result.broken),
    )


def _seconds_left(definition: StudyDefinition, study: Study, more: int, each: float) -> float:
    """The seconds until the search ends, with its last trial or with its minutes.

    Args:
        definition: the study's settings.
        study: its trials so far.
        more: trials that have not ended yet.
        each: seconds of one trial.
    """
    return min(more * each, max(0.0, 60 * definition.settings.search_minutes - wall_seconds(study)))


def _best(definition: StudyDefinition, trial: FrozenTrial) -> CheckpointResult | None:
    """A trial's best checkpoint, read without its weights; None if none was scored."""
    uid = trial.user_attrs.get("uid")
    results = readable_results(definition.trial_files[uid], trial) if uid else []
    return max((p for p in results if p.score), key=lambda p: p.objective, default=None)
