"""A worker's sittings at a study: how many trials train at once, of which adapters, and what follows a failure."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import optuna

from autolora.errors import StorageError
from autolora.evaluation.session import Session
from autolora.evaluation.throughput import packed_speeds
from autolora.progress import Bars
from autolora.study.definition import StudyDefinition
from autolora.study.search.leases import TrialLeases
from autolora.study.search.trial_runner import TrialRunner
from autolora.train.loop import train


def run_study(
    definition: StudyDefinition,
    study: optuna.Study,
    session: Session,
    bars: Bars,
    machine: str | None = None,
    heard: Callable[[bool], None] = lambda ended: None,
) -> None:
    """Run trials until the study is done; what is interrupted goes back into the queue.

    Args:
        plan: what to run.
        study: where trials come from, shared with any number of workers.
        work: what every trial is trained and judged with.
        bars: where progress is shown.
        machine: the name by which this worker's heartbeats are known; None: this machine's.
        heard: is called after every checkpoint, with whether its trial ended.

    Raises:
        StorageError: a disk is full.
        StudyError: trial after trial fails here.
    """
    settings, packed = definition.settings, auto_batch_trials(definition, session, bars)
    beat, grace = settings.heartbeat_interval, settings.grace_period
    slots = packed
    with TrialLeases(study._storage, study._study_id, beat, grace, bars.log, machine) as leases:
        while slots:
            slots, packed = _sitting(definition, study, session, leases, bars, heard, slots, packed)


def auto_batch_trials(definition: StudyDefinition, session: Session, bars: Bars) -> int:
    """How many trials a worker trains at once, of those whose adapters share a set: `study.trials_per_device`.

    `auto` is the power of two that is fastest here, up to a fifth of the trials: the sampler learns nothing from those
    that train beside the one it draws.
    """
    settings = definition.settings
    if not any(adapter.packs for adapter in session.context.adapter.adapters):
        return 1
    if isinstance(settings.trials_per_device, int):
        return settings.trials_per_device
    most = math.ceil(settings.budget.n_trials / 5)
    if most == 1:
        return 1
    recipes = (definition.run(recipe, {}) for recipe in definition.space)
    packing = next((run for run in recipes if run.adapter.packs), None)
    if packing is None:
        return 1
    with bars.task("trying how many trials train fastest at once", None):
        rates = packed_speeds(packing, session.context, most)
    if not rates:  # another recipe may: each says itself what it lacks
        return 1
    best = max(rates, key=lambda count: rates[count])
    bars.log(f"{best} trials at once" + (f": {rates[best] / rates[1]:.1f} times as fast as one" if best > 1 else ""))
    return best


def _sitting(
    definition: StudyDefinition,
    study: optuna.Study,
    session: Session,
    leases: TrialLeases,
    bars: Bars,
    heard: Callable[[bool], None],
    slots: int,
    packed: int,
) -> tuple[int, int]:
    """Run trials, so many at once, until the study is over, they fail, or the next one wants another set.

    Returns:
        How many at once to go on with, 0 where the study is over; and how many of those whose adapters share a set.
    """
    adapter = session.context.adapter
    with adapter.widened(slots) if slots > 1 else nullcontext(adapter) as wide:
        driver = TrialRunner(
            definition, study, replace(session, context=replace(session.context, adapter=wide)), leases, bars, packed
        )
        try:
            while not driver.over:
                try:
                    for ready in train(driver.next_run, driver.session.context, driver.on_step):
                        for slot in ready:
                            driver.judge(slot)
                            heard(slot.name not in driver.trials)
                except StorageError:
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise StorageError(f"the disk is full ({error}); free some space and go on") from error
                    if not leases.held:
                        raise
                    if fewer := driver.fail(error):
                        return fewer, fewer
                if driver.others:
                    return (1 if slots > 1 else packed), packed
        finally:
            driver.close()
    return 0, packed
