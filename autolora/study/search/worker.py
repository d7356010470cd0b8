"""A worker: how many trials train at once, which of them can, and what follows a failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from autolora.errors import StorageError, StudyError
from autolora.evaluation.session import Session
from autolora.evaluation.throughput import packed_speeds
from autolora.progress import Bars
from autolora.study.definition import StudyDefinition
from autolora.study.optuna_internals import storage_of, study_id_of
from autolora.study.running import RunningStudy
from autolora.study.search.best_so_far import ensure_best_so_far, remove_unfinished
from autolora.study.search.leases import TrialLeases
from autolora.study.search.trial_runner import TrialRunner
from autolora.train.loop import train


def run_study(
    running: RunningStudy,
    machine: str | None = None,
    on_checkpoint: Callable[[bool], None] = lambda trial_ended: None,
) -> None:
    """Run trials until the study is done; an interrupted trial goes back into the queue.

    Args:
        running: the study; any number of workers share it.
        machine: the name by which this worker's heartbeats are known; None: this machine's.
        on_checkpoint: is called after every checkpoint, with whether its trial ended.

    Raises:
        StorageError: a disk is full.
        StudyError: several trials in a row fail here.
    """
    settings, study = running.definition.settings, running.study
    ensure_best_so_far(running)
    packed = auto_batch_trials(running.definition, running.session, running.bars)
    leases = TrialLeases(
        storage_of(study),
        study_id_of(study),
        settings.heartbeat_interval,
        settings.grace_period,
        running.bars.log,
        machine,
    )
    slots = packed
    with leases:
        while slots:
            slots, packed = _run_trials(running, leases, on_checkpoint, slots, packed)
    remove_unfinished(running)


def auto_batch_trials(definition: StudyDefinition, session: Session, bars: Bars) -> int:
    """The number of trials that a worker trains at once where their adapters can share a set.

    It is `study.trials_per_device`; `auto` is the power of two that is fastest here, up to a fifth of the trials, as
    the sampler learns nothing from trials that train at the same time.
    """
    settings = definition.settings
    if not any(adapter.packable for adapter in session.context.adapter.adapters):
        return 1
    if isinstance(settings.trials_per_device, int):
        return settings.trials_per_device
    most = math.ceil(settings.budget.n_trials / 5)
    if most == 1:
        return 1
    recipes = (definition.run(recipe, {}) for recipe in definition.space)
    packing = next((run for run in recipes if run.adapter.packable), None)
    if packing is None:
        return 1
    with bars.task("trying how many trials train fastest at once", None):
        rates = packed_speeds(packing, session.context, most)
    if not rates:  # this recipe does not fit; each trial tells itself what it lacks
        return 1
    best = max(rates, key=lambda count: rates[count])
    bars.log(f"{best} trials at once" + (f": {rates[best] / rates[1]:.1f} times as fast as one" if best > 1 else ""))
    return best


def _run_trials(
    running: RunningStudy, leases: TrialLeases, on_checkpoint: Callable[[bool], None], slots: int, packed: int
) -> tuple[int, int]:
    """Run trials, `slots` at a time, until the study is over, they fail, or the next one needs another adapter set.

    Returns:
        The number of slots to go on with, 0 where the study is over; and the number of those that can share a set.
    """
    session = running.session
    adapter = session.context.adapter
    with adapter.widened(slots) if slots > 1 else nullcontext(adapter) as widened:
        wide_session = replace(session, context=replace(session.context, adapter=widened))
        runner = TrialRunner(replace(running, session=wide_session), leases, packed)
        try:
            while not runner.is_done:
                try:
                    for ready in train(runner.next_job, wide_session.context, runner.on_step):
                        for slot in ready:
                            runner.on_checkpoint(slot)
                            on_checkpoint(slot.name not in runner.trials)
                except (StorageError, StudyError, OSError):  # a disk, a folder, a changed recipe: no trial's failure
                    raise
                except Exception as error:
                    if not leases.held:
                        raise
                    if fewer := runner.on_failure(error):
                        return fewer, fewer
                if runner.needs_other_set:
                    return (1 if slots > 1 else packed), packed
        finally:
            runner.close()
    return 0, packed
