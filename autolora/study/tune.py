"""A study: asks for recipes, trains and scores them, stops what cannot win, and can be continued by anyone."""

from __future__ import annotations

import errno
import math
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.errors import MemoryFull, StorageError, StudyError, memory_full
from autolora.files import remove_leftovers, write_atomic
from autolora.progress import Bars
from autolora.study.budget import STEP
from autolora.study.cards import show_trial
from autolora.study.claims import Claims
from autolora.study.plan import Plan
from autolora.study.queue import Queue, uid_of
from autolora.study.space import drawn, suggest
from autolora.study.speed import pack_speeds
from autolora.study.trial import DIVERGED, Point, Record, points_of
from autolora.study.warm_start import ORIGIN
from autolora.study.workbench import Workbench
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import Assignment, Slot, train

TRIES = 3  # of a trial that fails by itself, and trials that fail in a row before a worker blames itself
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Driver:
    """Feeds the training loop with trials and judges every checkpoint it yields."""

    def __init__(self, plan: Plan, study: optuna.Study, work: Workbench, claims: Claims, bars: Bars) -> None:
        self.plan, self.study, self.work, self.claims, self.bars = plan, study, work, claims, bars
        self.queue = Queue(study, plan.settings, claims, bars)
        self.trials: dict[str, tuple[Trial, Record]] = {}  # by uid
        self.over = False  # nothing is left to do
        self.seen: dict[str, list[Point]] = {}  # the points of trials that ended, by uid
        self.failed: set[int] = set()  # trials that failed here since one got on
        self.study_bar = bars.add(f"study {plan.settings.name}", plan.settings.budget.trials, self._ended())
        self.trial_bars = [bars.add("trial", None) for _ in range(work.bench.adapter.slots)]

    def _ended(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=ENDED))

    def next_run(self) -> Assignment | None:
        """The next trial's run with the checkpoint it continues from, until the study is done."""
        self.bars.set(self.study_bar, self._ended())
        trial = self.queue.next()
        self.over = trial is None and not self.trials
        return self._assign(trial) if trial else None

    def _assign(self, trial: Trial) -> Assignment:
        recipe, values = suggest(trial, self.plan.space)
        uid = trial.user_attrs.get("uid")
        if uid is None:
            uid = uid_of(self.study, trial.number)
            trial.set_user_attr("recipe", recipe)
            trial.set_user_attr("uid", uid)
        run = self.plan.run(recipe, values)
        remove_leftovers(self.plan.files[uid])
        record = Record.open(self.plan.files.fetch(uid), run)
        self.trials[uid] = (trial, record)
        self._learn()
        shown = ", ".join(
            f"{k.split('.')[-1]} {v:.3g}" if isinstance(v, float) else f"{k.split('.')[-1]} {v}"
            for k, v in values.items()
        )
        kind = "unchanged" if trial.user_attrs.get("baseline") else shown
        kind += f"; as in {origin}" if (origin := trial.user_attrs.get(ORIGIN)) else ""
        self.bars.say(f"trial {trial.number}: {recipe} ({kind})" + (", continued" if record.curve else ""))
        return Assignment(run, record.latest() if record.curve else None, uid)

    def _learn(self) -> None:
        """Read the points of trials that ended since, here or elsewhere."""
        for trial in self.study.get_trials(deepcopy=False, states=ENDED):
            uid = trial.user_attrs.get("uid")
            if uid and uid not in self.seen:
                self.seen[uid] = points_of(self.plan.files.fetch(uid, only="curve.json"))

    def on_step(self, slot: Slot) -> None:
        """Move the bars."""
        (trial, _), bar = self.trials[slot.name], self.trial_bars[slot.index]
        self.bars.total(bar, slot.total_steps)
        self.bars.set(bar, slot.step, f"trial {trial.number} ({slot.run.name})")
        if slot.relief:
            self.bars.say(f"trial {trial.number}: {slot.relief}")
            slot.relief = ""

    def judge(self, slot: Slot) -> None:
        """Score a checkpoint, keep it, and end the trial where that is right.

        What is kept is kept by the trial's worker alone: one that lost it gives up.
        """
        trial, record = self.trials[slot.name]
        checkpoint = slot.checkpoint
        assert checkpoint is not None
        if not self.claims.holds(trial._trial_id):
            return self._give_up(slot)
        if checkpoint.diverged:
            trial.set_user_attr("reason", f"diverged at step {checkpoint.step}: the loss is no longer a number")
            return self._finish(slot, TrialState.COMPLETE)
        if record.scored_step() != checkpoint.step and not self._score(slot, checkpoint):
            return self._give_up(slot)
        best = record.best()
        assert best is not None
        number = len(record.curve)
        if number not in self._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(best.objective, number)
        said = f"trial {trial.number}, " if len(self.trials) > 1 else "  "
        self.bars.say(f"{said}step {checkpoint.step}: {record.curve[-1].words}")
        if record.hopelessly_overcooked(self.plan.settings.patience) and not checkpoint.done:
            trial.set_user_attr("reason", f"overcooked after step {record.overcooked_step()}")
            self._finish(slot, TrialState.COMPLETE)
        elif checkpoint.done:
            step = record.overcooked_step()
            trial.set_user_attr("reason", f"overcooked after step {step}" if step else "trained to its end")
            self._finish(slot, TrialState.COMPLETE)
        elif not trial.user_attrs.get("baseline") and trial.should_prune():
            trial.set_user_attr("reason", f"pruned at step {checkpoint.step}: behind the other trials")
            self._finish(slot, TrialState.PRUNED)

    def _score(self, slot: Slot, checkpoint: Checkpoint) -> bool:
        """Measure a checkpoint and keep it; False where the trial was lost meanwhile, and nothing is kept."""
        began, (trial, record) = time.perf_counter(), self.trials[slot.name]
        seen = [p for points in self.seen.values() for p in points]
        with self.work.bench.adapter.only(slot.index):
            new = self.work.measure(checkpoint, record.curve, [*seen, *record.curve], self.bars, record.samples)
        if not self.claims.holds(trial._trial_id):
            return False
        record.add(checkpoint, new)
        self.plan.files.send(slot.name)
        self.failed.clear()
        scoring = trial.user_attrs.get("scoring_seconds", 0.0) + time.perf_counter() - began
        trial.set_user_attr("scoring_seconds", scoring)
        trial.set_user_attr(STEP, checkpoint.step)
        return True

    @property
    def _storage(self) -> BaseStorage:
        return self.claims.storage

    def _give_up(self, slot: Slot) -> None:
        trial, _ = self.trials.pop(slot.name)
        self.bars.say(f"trial {trial.number}: another worker has taken it over, it is given up here")
        slot.stop()

    def _finish(self, slot: Slot, state: TrialState) -> None:
        trial, record = self.trials.pop(slot.name)
        best = record.best()
        trial.set_user_attr("training_seconds", slot.seconds)
        show_trial(trial, record, trial.user_attrs["reason"], self.plan.store)
        keep_constraints(self._storage, trial, best.constraints if best else {"diverged": 1.0})
        self._tell(trial, state, best.objective if best else DIVERGED)
        slot.stop()

    def _tell(self, trial: Trial, state: TrialState, value: float) -> None:
        """End a trial for good."""
        self.claims.end(trial._trial_id)
        told = value if state is TrialState.COMPLETE else None
        with suppress(UpdateFinishedTrialError):  # the database was lost right after it had kept this
            self.study.tell(trial, told, state=state, skip_if_finished=True)
        said = f"trial {trial.number}: " if self.trials else "  "
        self.bars.say(said + trial.user_attrs["reason"])
        self.bars.set(self.study_bar, self._ended())

    def fail(self, error: Exception) -> int:
        """A trial failed by itself: it is tried again a few times, here or elsewhere; the study goes on without it.

        One that the GPU's memory is too small for is skipped at once. Of several that trained at once none can be
        blamed: all are handed back, to go on half as many at a time where memory ran out, else one at a time.

        Returns:
            How many to go on with; 0: as many as before.

        Raises:
            StudyError: trial after trial fails here, so that it is this worker rather than a trial.
        """
        together = len(self.trials)
        self.trials.clear()
        if together > 1:
            fewer = self.work.bench.adapter.slots // 2 if isinstance(error, torch.OutOfMemoryError) else 1
            self.bars.say(f"training failed ({type(error).__name__}: {error}): its trials go on {fewer} at a time")
            for trial_id in list(self.claims.held):
                self.claims.hand_back(trial_id)
            return fewer
        too_large = isinstance(error, MemoryFull | torch.OutOfMemoryError)
        for trial_id in [held for held in list(self.claims.held) if self.claims.holds(held)]:
            trial = Trial(self.study, trial_id)
            failures = trial.user_attrs.get("failures", 0) + 1
            trial.set_user_attr("failures", failures)
            what = "skipped: " if too_large else f"failed: {type(error).__name__}: "
            trial.set_user_attr("reason", f"{what}{memory_full(error) if too_large else error}")
            folder = self.plan.files[trial.user_attrs.get("uid", f"number-{trial.number}")]
            write_atomic(folder / "failure.txt", "".join(traceback.format_exception(error)))
            self.bars.say(f"trial {trial.number} failed ({folder / 'failure.txt'})")
            if not too_large:
                self.failed.add(trial.number)
            if failures < TRIES and not too_large:
                self.claims.hand_back(trial_id)
            else:
                self._tell(trial, TrialState.FAIL, DIVERGED)
        if len(self.failed) >= TRIES:
            raise StudyError(f"{TRIES} trials in a row failed here, the last by {type(error).__name__}: {error}")
        return 0

    def close(self) -> None:
        """Take its bars away."""
        for bar in (self.study_bar, *self.trial_bars):
            self.bars.remove(bar)


def run_study(
    plan: Plan,
    study: optuna.Study,
    work: Workbench,
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
    settings, slots = plan.settings, at_once(plan, work, bars)
    beat, grace = settings.heartbeat_seconds, settings.grace_seconds
    with Claims(study._storage, study._study_id, beat, grace, bars.say, machine) as claims:
        while slots:
            slots = _sitting(plan, study, work, claims, bars, heard, slots)


def at_once(plan: Plan, work: Workbench, bars: Bars) -> int:
    """How many trials a worker trains at once: `study.pack`, or 1 where a recipe's adapter trains alone.

    `auto` is the power of two that is fastest here, up to a fifth of the trials: the sampler learns nothing from those
    that train beside the one it draws.
    """
    settings = plan.settings
    if not all(adapter.packs for adapter in work.bench.adapter.adapters):
        return 1
    if isinstance(settings.pack, int):
        return settings.pack
    most = math.ceil(settings.budget.trials / 5)
    if most == 1:
        return 1
    with bars.task("trying how many trials train fastest at once", None):
        rates = pack_speeds(plan.run(next(iter(plan.space)), {}), work.bench, most)
    if not rates:  # another recipe may: each says itself what it lacks
        return 1
    best = max(rates, key=lambda count: rates[count])
    bars.say(f"{best} trials at once" + (f": {rates[best] / rates[1]:.1f} times as fast as one" if best > 1 else ""))
    return best


def _sitting(
    plan: Plan,
    study: optuna.Study,
    work: Workbench,
    claims: Claims,
    bars: Bars,
    heard: Callable[[bool], None],
    slots: int,
) -> int:
    """Run trials, so many at once, until the study is over; how many to go on with where that failed, else 0."""
    adapter = work.bench.adapter
    with adapter.widened(slots) if slots > 1 else nullcontext(adapter) as wide:
        driver = Driver(plan, study, replace(work, bench=replace(work.bench, adapter=wide)), claims, bars)
        try:
            while not driver.over:
                try:
                    for ready in train(driver.next_run, driver.work.bench, driver.on_step):
                        for slot in ready:
                            driver.judge(slot)
                            heard(slot.name not in driver.trials)
                except StorageError:
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise StorageError(f"the disk is full ({error}); free some space and go on") from error
                    if not claims.held:
                        raise
                    if fewer := driver.fail(error):
                        return fewer
        finally:
            driver.close()
    return 0


def keep_constraints(storage: BaseStorage, trial: Trial, constraints: dict[str, float]) -> None:
    """Store a trial's constraints by name, and as the list that the dashboard reads.

    `Trial.set_constraint` keeps what an interrupted worker wrote; this is the last word.
    """
    for name, broken_by in constraints.items():
        storage.set_trial_system_attr(trial._trial_id, f"constraints:{name}", float(broken_by))
    storage.set_trial_system_attr(trial._trial_id, "constraints", [float(v) for v in constraints.values()])


def records(plan: Plan, study: optuna.Study) -> list[tuple[FrozenTrial, Record]]:
    """Every trial that has a scored checkpoint, with its record."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if not uid:
            continue
        folder = plan.files.fetch(uid, ended=True) if trial.state.is_finished() else plan.files[uid]
        if (folder / "curve.json").is_file():
            found.append((trial, Record.open(folder, plan.run(*drawn(trial)))))
    return [(trial, record) for trial, record in found if record.curve]
