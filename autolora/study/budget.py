"""What a study may spend and has spent: its wall clock, trials, images, and trials in a row without a better one."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from autolora.data.concepts import Dataset
from autolora.report.formatting import counted
from autolora.settings import StudySettings
from autolora.train.run import Run

STEP = "step"  # user attribute of a trial: images shown up to its last checkpoint


def may_begin(trials: Sequence[FrozenTrial], settings: StudySettings) -> bool:
    """Whether another trial may start, the time aside; trials that have started are always ended.

    Args:
        trials: all trials of the study, those of other workers too.
        settings: with its budget.
    """
    budget = settings.budget
    if budget.max_images is not None and sum(trial.user_attrs.get(STEP, 0) for trial in trials) >= budget.max_images:
        return False
    return budget.max_stale_trials is None or trials_since_best(trials) < budget.max_stale_trials


def trials_since_best(trials: Sequence[FrozenTrial]) -> int:
    """The number of trials that ended since the best one so far; baselines do not count."""
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.datetime_complete]
    since, best = 0, float("-inf")
    for trial in sorted(ended, key=lambda t: (t.datetime_complete, t.number)):
        value = trial.value if trial.state is TrialState.COMPLETE and trial.value is not None else float("-inf")
        since = 0 if value > best or trial.user_attrs.get("baseline") else since + 1
        best = max(best, value)
    return since


def describe_plan(settings: StudySettings, baselines: Sequence[Run], dataset: Dataset, workers: int) -> str:
    """What the study will do, in three lines: its trials, its limits, its finals.

    Args:
        settings: the study's.
        baselines: its recipes unchanged.
        dataset: what they train on.
        workers: how many start on this machine.
    """
    images = [run.images_per_epoch(dataset) * run.train.epochs for run in baselines]
    each = f"{min(images):,}" + (f" to {max(images):,}" if max(images) > min(images) else "")
    budget = settings.budget
    sampled = max(0, budget.n_trials - len(baselines))
    here = f", {workers} workers here" if workers > 1 else ""
    trials = f"{counted(budget.n_trials, 'trial')}: {counted(len(baselines), 'baseline')} ({each} images each)"
    limits = []
    if budget.minutes is not None:
        limits.append(
            f"the study ends after {budget.minutes:g} minutes in all, its search after {settings.search_minutes:g}"
        )
    if budget.max_images is not None:
        limits.append(f"no trial starts after {budget.max_images:,} images in all")
    if budget.max_stale_trials is not None:
        limits.append(f"the search ends after {budget.max_stale_trials} trials in a row without a better one")
    finals = [f"re-score up to {counted(settings.n_finalists, 'finalist')}"]
    if settings.average_checkpoints:
        finals.append(f"up to {counted(min(2, settings.n_finalists), 'checkpoint average')}")
    if settings.try_lora_scales:
        finals.append("rescaled copies of the best")
    if settings.final_seeds:
        finals.append(f"train the best two recipes again with {counted(settings.final_seeds, 'more seed')} each")
    return "\n".join(
        [
            f"{trials} + {sampled} sampled{here}",
            f"limits: {'; '.join(limits) or 'none'}",
            f"finals: {', '.join(finals)}",
        ]
    )


def training_seconds(study: Study) -> float:
    """The seconds of training, of all workers and the finals."""
    return _seconds(study, "training")


def spent_seconds(study: Study) -> float:
    """The seconds of training and scoring, of all workers, over every continuation of the study."""
    return _seconds(study, "training") + _seconds(study, "scoring")


def _seconds(study: Study, part: str) -> float:
    trials = sum(trial.user_attrs.get(f"{part}_seconds", 0.0) for trial in study.get_trials(deepcopy=False))
    return float(trials + study.user_attrs.get(f"{part}_seconds", 0.0))


def add_seconds(study: Study, training: float, scoring: float) -> None:
    """Add the seconds of the finals to the study; a trial keeps its own seconds."""
    for part, seconds in (("training", training), ("scoring", scoring)):
        study.set_user_attr(f"{part}_seconds", study.user_attrs.get(f"{part}_seconds", 0.0) + seconds)


WORKED = "worked"  # user attribute of a trial: [since, until] of each lease, Unix seconds; the last `until` is the beat
PROCESS = "process/"  # prefix of user attributes of a study: [since, until] of each process, Unix seconds
MOST_AFTER_SEARCH = 0.5  # of the budget: with less time the finals are left out


class StudyClock:
    """The time that a study has taken and has left, over every continuation and all workers.

    The time counts in which at least one process worked, from its start on: preparation, search, finals and export.
    Where two machines' clocks differ, a worker's share of the time differs as much.
    """

    def __init__(
        self, study: Study, settings: StudySettings, started: float, now: Callable[[], float] = time.time
    ) -> None:
        """Begin to count.

        Args:
            study: keeps the times of all processes.
            settings: with its budget.
            started: when this process's command began, in Unix seconds.
            now: the time in Unix seconds.
        """
        self.study, self.settings, self.started, self._now = study, settings, started, now
        self.closing_seconds = 0.0  # what the export and the report take, as far as it is known
        self.finals_seconds = 0.0  # what the shortest finals take, as far as it is known
        self._key = f"{PROCESS}{uuid.uuid4().hex[:12]}"
        self._before = wall_seconds(study, started)
        self.beat()

    def beat(self) -> None:
        """Store until when this process has worked; a process that is killed has worked until then."""
        self.study.set_user_attr(self._key, [round(self.started, 1), round(self._now(), 1)])

    def elapsed(self) -> float:
        """The seconds that the study has taken so far."""
        return self._before + self._now() - self.started

    def left(self) -> float:
        """The seconds until the command should end; infinite without `budget.minutes`."""
        minutes = self.settings.budget.minutes
        return math.inf if minutes is None else 60 * minutes - self.elapsed()

    def search_left(self) -> float:
        """The seconds until the search should end.

        The finals get their share, and at least what the shortest take; none where that is too much of the budget.
        """
        minutes = self.settings.budget.minutes
        if minutes is None:
            return math.inf
        least = self.closing_seconds + self.finals_seconds
        if least > MOST_AFTER_SEARCH * 60 * minutes:
            return self.left() - self.closing_seconds
        return self.left() - max(60 * (minutes - self.settings.search_minutes), least)

    def finals_left(self) -> float:
        """The seconds until the finals should end."""
        return self.left() - self.closing_seconds


def wall_seconds(study: Study, until: float = math.inf) -> float:
    """The seconds up to a time, in Unix seconds, in which at least one process worked on a study."""
    spans = [tuple(span) for key, span in study.user_attrs.items() if key.startswith(PROCESS)]
    spans += [tuple(span) for trial in study.get_trials(deepcopy=False) for span in trial.user_attrs.get(WORKED, [])]
    return union_seconds((since, min(end, until)) for since, end in spans)


def union_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """The seconds that at least one of several spans covers."""
    total, until = 0.0, 0.0
    for since, end in sorted(spans):
        total += max(0.0, end - max(since, until))
        until = max(until, end)
    return total
