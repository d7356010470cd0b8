"""What a study may spend, and has spent: trials, minutes, steps, and for how long without anything better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from autolora.data.concepts import Dataset
from autolora.report.formatting import counted
from autolora.settings import StudySettings
from autolora.train.run import Run

STEP = "step"  # user attribute: images a trial was shown up to its last checkpoint


def may_begin(trials: Sequence[FrozenTrial], settings: StudySettings) -> bool:
    """Whether another trial may begin; those that did are ended. `trials` are all of the study, those of others too."""
    if worked_seconds(trials) / 60 >= settings.search_minutes:
        return False
    budget = settings.budget
    if budget.max_images is not None and sum(trial.user_attrs.get(STEP, 0) for trial in trials) >= budget.max_images:
        return False
    return budget.max_stale_trials is None or trials_since_best(trials) < budget.max_stale_trials


def trials_since_best(trials: Sequence[FrozenTrial]) -> int:
    """How many trials ended, one after the other, since the best one so far; recipes as they are do not count."""
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.datetime_complete]
    since, best = 0, float("-inf")
    for trial in sorted(ended, key=lambda t: (t.datetime_complete, t.number)):
        value = trial.value if trial.state is TrialState.COMPLETE and trial.value is not None else float("-inf")
        since = 0 if value > best or trial.user_attrs.get("baseline") else since + 1
        best = max(best, value)
    return since


def describe_plan(settings: StudySettings, runs: Sequence[Run], dataset: Dataset, workers: int) -> str:
    """What is planned, before anything runs.

    Args:
        settings: the study's.
        runs: its recipes as they are.
        dataset: what they train on.
        workers: that start here.
    """
    steps = [run.images_per_epoch(dataset) * run.train.epochs for run in runs]
    each = f"{min(steps):,}" + (f" to {max(steps):,}" if max(steps) > min(steps) else "")
    budget = settings.budget
    limits = [f"{counted(budget.n_trials, 'trial')}, {len(runs)} of them recipes as they are ({each} steps each)"]
    if budget.minutes is not None:
        limits.append(f"none begins after {settings.search_minutes:g} of {budget.minutes:g} minutes")
    if budget.max_images is not None:
        limits.append(f"none begins after {budget.max_images:,} steps in all")
    if budget.max_stale_trials is not None:
        limits.append(f"the search ends after {budget.max_stale_trials} trials in a row without a better one")
    who, whose = f"of the best {settings.n_finalists} those within reach are", "the best two's"
    if settings.n_finalists == 1:
        who, whose = "the best one is", "its"
    again = [f"{who} judged again"]
    if settings.average_checkpoints:
        again.append(f"averages of {whose} checkpoints too")
    if settings.try_lora_scales:
        again.append("the best one stronger or weaker too")
    if settings.final_seeds:
        again.append(f"the best two recipes trained again with {settings.final_seeds} seeds more")
    here = [f"{workers} workers here"] if workers > 1 else []
    return "plan: " + "; ".join([*limits, ", ".join(again), *here])


def training_seconds(study: Study) -> float:
    """Seconds that training took, by all workers, finals included."""
    return _seconds(study, "training")


def spent_seconds(study: Study) -> float:
    """Seconds that training and scoring took, by all workers and however often the study was continued."""
    return _seconds(study, "training") + _seconds(study, "scoring")


def _seconds(study: Study, part: str) -> float:
    trials = sum(trial.user_attrs.get(f"{part}_seconds", 0.0) for trial in study.get_trials(deepcopy=False))
    return float(trials + study.user_attrs.get(f"{part}_seconds", 0.0))


def add_seconds(study: Study, training: float, scoring: float) -> None:
    """Count time that the finals took; that of a trial is its own."""
    for part, seconds in (("training", training), ("scoring", scoring)):
        study.set_user_attr(f"{part}_seconds", study.user_attrs.get(f"{part}_seconds", 0.0) + seconds)


WORKED = "worked"  # user attribute: [since, until] of each claim in Unix seconds; its last `until` is the heartbeat


def worked_seconds(trials: Iterable[FrozenTrial]) -> float:
    """Wall-clock seconds in which at least one worker worked on a study, over all its sittings."""
    total, until = 0.0, 0.0
    for since, end in sorted(span for trial in trials for span in trial.user_attrs.get(WORKED, [])):
        total += max(0.0, end - max(since, until))
        until = max(until, end)
    return total
