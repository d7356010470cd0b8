"""How a running study stands: for a person at a terminal, as a plain line, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial
from rich.table import Table

from autolora.evaluation.result import CheckpointResult, load_results
from autolora.report.charts import format_estimate
from autolora.report.formatting import duration
from autolora.scoring.intervals import Estimate
from autolora.study.budget import spent_seconds, worked_seconds
from autolora.study.definition import StudyDefinition
from autolora.study.trials import ENDED


@dataclass(frozen=True)
class StudyProgress:
    """Trials that ended, the best checkpoint so far, and what is left; `breaks` names the limits that it breaks."""

    study: str
    ended: int
    trials: int
    seconds_left: float | None  # of the search; None before a trial has ended
    trial: int | None = None
    recipe: str = ""
    step: int | None = None
    score: Estimate | None = None
    bleed: Estimate | None = None
    likeness: Estimate | None = None
    breaks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For a script."""
        return asdict(self)

    @property
    def left(self) -> str:
        """The time that the search has left in words."""
        return "?" if self.seconds_left is None else duration(self.seconds_left)

    def line(self) -> str:
        """For a log."""
        start = f"{self.study}: {self.ended} of {self.trials} trials, {self.left} of search left; "
        if self.trial is None or self.score is None or self.bleed is None:
            return start + "no checkpoint is scored yet"
        broken = f", breaks {', '.join(self.breaks)}" if self.breaks else ""
        return start + (
            f"best trial {self.trial} ({self.recipe}) at step {self.step}: score {format_estimate(self.score)}, "
            f"bleed {format_estimate(self.bleed)}{broken}"
        )

    def table(self) -> Table:
        """For a terminal."""
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        cells = {
            "trials": f"{self.ended}/{self.trials}",
            "search left": self.left,
            "best so far": "-" if self.trial is None else f"#{self.trial} {self.recipe} @ {self.step}",
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
    """How a study stands, by what its trials have written."""
    trials = study.get_trials(deepcopy=False)
    found = [(trial, point) for trial in trials if (point := _best(definition, trial))]
    best, point = max(found, key=lambda pair: pair[1].objective, default=(None, None))
    ended = sum(trial.state in ENDED for trial in trials)
    size = definition.settings.budget.n_trials
    left = _seconds_left(definition, trials, size - ended, spent_seconds(study) / ended) if ended else None
    whole = StudyProgress(definition.settings.name, ended, size, left)
    if best is None or point is None or point.score is None:
        return whole
    return replace(
        whole,
        trial=best.number,
        recipe=best.user_attrs["recipe"],
        step=point.step,
        score=Estimate(**point.score),
        bleed=Estimate(**point.terms["bleed_class"]),
        likeness=Estimate(**point.terms["likeness"]),
        breaks=tuple(point.broken),
    )


def _seconds_left(definition: StudyDefinition, trials: Sequence[FrozenTrial], more: int, each: float) -> float:
    """Until so many more trials have ended, or the last one that begins in time, where each takes so many seconds."""
    until_late = 60 * definition.settings.search_minutes - worked_seconds(trials)
    return min(more * each, until_late + each if until_late > 0 else 0.0)


def _best(definition: StudyDefinition, trial: FrozenTrial) -> CheckpointResult | None:
    """A trial's best checkpoint, read without its weights; None where it has none that was scored."""
    points = load_results(definition.trial_files[trial.user_attrs.get("uid", "")])
    return max((p for p in points if p.score), key=lambda p: p.objective, default=None)
