"""What follows when a trial fails: it is tried again a few times, or skipped; the study goes on without it."""

from __future__ import annotations

import traceback
from collections.abc import Collection

import torch
from optuna.trial import Trial

from autolora.errors import MemoryFull, StudyError, memory_full
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.study.artifacts import TrialFiles
from autolora.study.search.leases import TrialLeases

TRIES = 3  # of a trial that fails; and trials that may fail in a row before the worker itself is at fault


def fewer_at_once(error: Exception, slots: int, leases: TrialLeases, bars: Bars) -> int:
    """Put all trials that trained at once back into the queue; returns how many to train at once from now on."""
    fewer = slots // 2 if isinstance(error, torch.OutOfMemoryError) else 1
    bars.log(f"training failed ({type(error).__name__}: {error}): its trials go on {fewer} at a time")
    for trial_id in list(leases.held):
        leases.release(trial_id)
    return fewer


def fail_trial(trial: Trial, error: Exception, files: TrialFiles, failed: set[int], bars: Bars) -> bool:
    """Keep why a trial failed, in its storage and in its folder; returns whether it is to be tried again.

    A trial that the GPU's memory is too small for is not.

    Args:
        trial: the trial.
        error: why it failed.
        files: the trials' folders; `failure.txt` receives the traceback.
        failed: the numbers of trials that failed in a row; this one is added.
        bars: receives a line about it.
    """
    too_large = isinstance(error, MemoryFull | torch.OutOfMemoryError)
    failures = trial.user_attrs.get("failures", 0) + 1
    trial.set_user_attr("failures", failures)
    prefix = "skipped: " if too_large else f"failed: {type(error).__name__}: "
    trial.set_user_attr("reason", f"{prefix}{memory_full(error) if too_large else error}")
    path = files[trial.user_attrs.get("uid", f"number-{trial.number}")] / "failure.txt"
    write_atomic(path, "".join(traceback.format_exception(error)))
    bars.log(f"trial {trial.number} failed ({path})")
    if not too_large:
        failed.add(trial.number)
    return failures < TRIES and not too_large


def refuse_to_go_on(failed: Collection[int], error: Exception) -> None:
    """End this worker where several trials in a row failed.

    Raises:
        StudyError: they did.
    """
    if len(failed) >= TRIES:
        raise StudyError(f"{TRIES} trials in a row failed here, the last by {type(error).__name__}: {error}")
