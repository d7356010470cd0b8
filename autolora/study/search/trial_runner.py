"""What drives the training loop: trials go in, their checkpoints are scored, and what cannot win is stopped."""

from __future__ import annotations

import time
import traceback
from contextlib import suppress

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from autolora.errors import MemoryFull, StudyError, memory_full
from autolora.evaluation.result import DIVERGED, CheckpointResult, load_results
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.files import remove_leftovers, write_atomic
from autolora.progress import Bars
from autolora.study.budget import STEP
from autolora.study.definition import StudyDefinition
from autolora.study.search.leases import TrialLeases
from autolora.study.search.queue import Queue
from autolora.study.search.trial_note import publish_trial_note
from autolora.study.space import suggest
from autolora.study.trials import ENDED, ORIGIN, keep_constraints, uid_of
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import Job, TrainingSlot

TRIES = 3  # of a trial that fails by itself, and trials that fail in a row before a worker blames itself


class TrialRunner:
    """Feeds the training loop with trials and judges every checkpoint it yields."""

    def __init__(
        self,
        definition: StudyDefinition,
        study: optuna.Study,
        session: Session,
        leases: TrialLeases,
        bars: Bars,
        packed: int,
    ) -> None:
        self.definition, self.study, self.session, self.leases, self.bars = definition, study, session, leases, bars
        self.packed = packed  # trials at once, of adapters that share a set
        self.others = False  # the next trial's adapter wants another set: alone, or with others
        self.queue = Queue(study, definition.settings, leases, bars)
        self.trials: dict[str, tuple[Trial, TrialFolder]] = {}  # by uid
        self.over = False  # nothing is left to do
        self.seen: dict[str, list[CheckpointResult]] = {}  # the points of trials that ended, by uid
        self.failed: set[int] = set()  # trials that failed here since one got on
        self.study_bar = bars.add(
            f"study {definition.settings.name}", definition.settings.budget.n_trials, self._ended()
        )
        self.trial_bars = [bars.add("trial", None) for _ in range(session.context.adapter.slots)]

    def _ended(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=ENDED))

    def next_run(self) -> Job | None:
        """The next trial's run with the checkpoint it continues from, until the study is done."""
        self.bars.set(self.study_bar, self._ended())
        trial = self.queue.next()
        self.over = trial is None and not self.trials
        return self._assign(trial) if trial else None

    def _assign(self, trial: Trial) -> Job | None:
        recipe, values = suggest(trial, self.definition.space)
        uid = trial.user_attrs.get("uid")
        if uid is None:
            uid = uid_of(self.study, trial.number)
            trial.set_user_attr("recipe", recipe)
            trial.set_user_attr("uid", uid)
        run = self.definition.run(recipe, values)
        if self.packed > 1 and run.adapter.packs != (self.session.context.adapter.slots > 1):
            self.leases.hand_back(trial._trial_id)  # the first to be taken when those in training have ended
            self.others = True
            return None
        remove_leftovers(self.definition.trial_files[uid])
        record = TrialFolder.open(self.definition.trial_files.fetch(uid), run)
        self.trials[uid] = (trial, record)
        self._learn()
        shown = ", ".join(
            f"{k.split('.')[-1]} {v:.3g}" if isinstance(v, float) else f"{k.split('.')[-1]} {v}"
            for k, v in values.items()
        )
        kind = "unchanged" if trial.user_attrs.get("baseline") else shown
        kind += f"; as in {origin}" if (origin := trial.user_attrs.get(ORIGIN)) else ""
        self.bars.log(f"trial {trial.number}: {recipe} ({kind})" + (", continued" if record.results else ""))
        return Job(run, record.latest() if record.results else None, uid)

    def _learn(self) -> None:
        """Read the points of trials that ended since, here or elsewhere."""
        for trial in self.study.get_trials(deepcopy=False, states=ENDED):
            uid = trial.user_attrs.get("uid")
            if uid and uid not in self.seen:
                self.seen[uid] = load_results(self.definition.trial_files.fetch(uid, only="curve.json"))

    def on_step(self, slot: TrainingSlot) -> None:
        """Move the bars."""
        (trial, _), bar = self.trials[slot.name], self.trial_bars[slot.index]
        self.bars.total(bar, slot.total_steps)
        self.bars.set(bar, slot.step, f"trial {trial.number} ({slot.run.name})")
        if slot.relief:
            self.bars.log(f"trial {trial.number}: {slot.relief}")
            slot.relief = ""

    def judge(self, slot: TrainingSlot) -> None:
        """Score a checkpoint, keep it, and end the trial where that is right.

        What is kept is kept by the trial's worker alone: one that lost it gives up.
        """
        trial, record = self.trials[slot.name]
        checkpoint = slot.checkpoint
        assert checkpoint is not None
        if not self.leases.holds(trial._trial_id):
            return self._give_up(slot)
        if checkpoint.diverged:
            trial.set_user_attr("reason", f"diverged at step {checkpoint.step}: the loss is no longer a number")
            return self._finish(slot, TrialState.COMPLETE)
        if record.scored_step() != checkpoint.step and not self._score(slot, checkpoint):
            return self._give_up(slot)
        best = record.best_result()
        assert best is not None
        number = len(record.results)
        if number not in self._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(best.objective, number)
        said = f"trial {trial.number}, " if len(self.trials) > 1 else "  "
        self.bars.log(f"{said}step {checkpoint.step}: {record.results[-1].summary}")
        if record.should_stop_overcooked(self.definition.settings.patience) and not checkpoint.done:
            trial.set_user_attr("reason", f"overcooked after step {record.overcooked_step()}")
            self._finish(slot, TrialState.COMPLETE)
        elif checkpoint.done:
            step = record.overcooked_step()
            trial.set_user_attr("reason", f"overcooked after step {step}" if step else "trained to its end")
            self._finish(slot, TrialState.COMPLETE)
        elif not trial.user_attrs.get("baseline") and trial.should_prune():
            trial.set_user_attr("reason", f"pruned at step {checkpoint.step}: behind the other trials")
            self._finish(slot, TrialState.PRUNED)

    def _score(self, slot: TrainingSlot, checkpoint: Checkpoint) -> bool:
        """Measure a checkpoint and keep it; False where the trial was lost meanwhile, and nothing is kept."""
        began, (trial, record) = time.perf_counter(), self.trials[slot.name]
        seen = [p for points in self.seen.values() for p in points]
        with self.session.context.adapter.only(slot.index):
            new = self.session.measure(checkpoint, record.results, [*seen, *record.results], self.bars, record.samples)
        if not self.leases.holds(trial._trial_id):
            return False
        record.append(checkpoint, new)
        self.definition.trial_files.send(slot.name)
        self.failed.clear()
        scoring = trial.user_attrs.get("scoring_seconds", 0.0) + time.perf_counter() - began
        trial.set_user_attr("scoring_seconds", scoring)
        trial.set_user_attr(STEP, checkpoint.step)
        return True

    @property
    def _storage(self) -> BaseStorage:
        return self.leases.storage

    def _give_up(self, slot: TrainingSlot) -> None:
        trial, _ = self.trials.pop(slot.name)
        self.bars.log(f"trial {trial.number}: another worker has taken it over, it is given up here")
        slot.stop()

    def _finish(self, slot: TrainingSlot, state: TrialState) -> None:
        trial, record = self.trials.pop(slot.name)
        best = record.best_result()
        trial.set_user_attr("training_seconds", slot.seconds)
        publish_trial_note(trial, record, trial.user_attrs["reason"], self.definition.store)
        keep_constraints(self._storage, trial, best.constraints if best else {"diverged": 1.0})
        self._tell(trial, state, best.objective if best else DIVERGED)
        slot.stop()

    def _tell(self, trial: Trial, state: TrialState, value: float) -> None:
        """End a trial for good."""
        self.leases.end(trial._trial_id)
        told = value if state is TrialState.COMPLETE else None
        with suppress(UpdateFinishedTrialError):  # the database was lost right after it had kept this
            self.study.tell(trial, told, state=state, skip_if_finished=True)
        said = f"trial {trial.number}: " if self.trials else "  "
        self.bars.log(said + trial.user_attrs["reason"])
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
            fewer = self.session.context.adapter.slots // 2 if isinstance(error, torch.OutOfMemoryError) else 1
            self.bars.log(f"training failed ({type(error).__name__}: {error}): its trials go on {fewer} at a time")
            for trial_id in list(self.leases.held):
                self.leases.hand_back(trial_id)
            return fewer
        too_large = isinstance(error, MemoryFull | torch.OutOfMemoryError)
        for trial_id in [held for held in list(self.leases.held) if self.leases.holds(held)]:
            trial = Trial(self.study, trial_id)
            failures = trial.user_attrs.get("failures", 0) + 1
            trial.set_user_attr("failures", failures)
            what = "skipped: " if too_large else f"failed: {type(error).__name__}: "
            trial.set_user_attr("reason", f"{what}{memory_full(error) if too_large else error}")
            folder = self.definition.trial_files[trial.user_attrs.get("uid", f"number-{trial.number}")]
            write_atomic(folder / "failure.txt", "".join(traceback.format_exception(error)))
            self.bars.log(f"trial {trial.number} failed ({folder / 'failure.txt'})")
            if not too_large:
                self.failed.add(trial.number)
            if failures < TRIES and not too_large:
                self.leases.hand_back(trial_id)
            else:
                self._tell(trial, TrialState.FAIL, DIVERGED)
        if len(self.failed) >= TRIES:
            raise StudyError(f"{TRIES} trials in a row failed here, the last by {type(error).__name__}: {error}")
        return 0

    def close(self) -> None:
        """Take its bars away."""
        for bar in (self.study_bar, *self.trial_bars):
            self.bars.remove(bar)
