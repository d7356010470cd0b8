"""Gives trials to the training loop, scores their checkpoints and stops the trials that cannot win."""

from __future__ import annotations

import time
from contextlib import suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from autolora.evaluation.result import DIVERGED, CheckpointResult, from_losses, unmeasured_result
from autolora.evaluation.trial_folder import TrialFolder
from autolora.files import remove_leftovers
from autolora.publish.closing import closing_seconds, shortest_finals_seconds
from autolora.study.budget import STEP
from autolora.study.optuna_internals import trial_id_of
from autolora.study.running import RunningStudy
from autolora.study.search.best_so_far import keep_if_best
from autolora.study.search.failures import fail_trial, fewer_at_once, refuse_to_go_on
from autolora.study.search.leases import TrialLeases
from autolora.study.search.queue import Queue
from autolora.study.search.trial_note import publish_trial_note
from autolora.study.space import Value, suggest
from autolora.study.trials import ENDED, ORIGIN, keep_constraints, readable_results, uid_of
from autolora.train.checkpoint import Checkpoint
from autolora.train.slot import Job, TrainingSlot


class TrialRunner:
    """Gives trials to the training loop and decides about every checkpoint that the loop yields."""

    def __init__(self, running: RunningStudy, leases: TrialLeases, packed: int) -> None:
        self.running = running
        self.definition, self.study, self.session = running.definition, running.study, running.session
        self.bars, self.leases = running.bars, leases
        self.packed = packed  # trials at once, of adapters that share a set
        self.needs_other_set = False  # the next trial's adapter cannot train in this adapter set
        self.queue, self.clock = Queue(running, leases), running.clock
        self.trials: dict[str, tuple[Trial, TrialFolder]] = {}  # those that train here, by uid
        self.is_done = False  # no trial is left
        self.ended_results: dict[str, list[CheckpointResult]] = {}  # of trials that ended, by uid
        self.failed: set[int] = set()  # numbers of trials that failed here since a checkpoint was last scored
        settings = self.definition.settings
        self.study_bar = self.bars.add(f"study {settings.name}", settings.budget.n_trials, self._ended())
        self.trial_bars = [self.bars.add("trial", None) for _ in range(self.session.context.adapter.slots)]

    def _ended(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=ENDED))

    def next_job(self) -> Job | None:
        """The next trial's run with the checkpoint it continues from; None where no trial is left."""
        self.bars.set(self.study_bar, self._ended())
        trial = self.queue.next()
        self.is_done = trial is None and not self.trials
        return self._start(trial) if trial else None

    def _start(self, trial: Trial) -> Job | None:
        recipe, values = suggest(trial, self.definition.space)
        uid = trial.user_attrs.get("uid")
        if uid is None:
            uid = uid_of(self.study, trial.number)
            trial.set_user_attr("recipe", recipe)
            trial.set_user_attr("uid", uid)
        run = self.definition.run(recipe, values)
        if self.packed > 1 and run.adapter.packable != (self.session.context.adapter.slots > 1):
            self.leases.release(trial_id_of(trial))  # it is the first to be taken once those in training have ended
            self.needs_other_set = True
            return None
        remove_leftovers(self.definition.trial_files[uid])
        folder = TrialFolder.open_or_begin(self.definition.trial_files.fetch(uid), run, self.bars.log)
        self.trials[uid] = (trial, folder)
        self._read_ended_trials()
        resumed = ", continued" if folder.results else ""
        self.bars.log(f"trial {trial.number}: {recipe} ({_describe(trial, values)}){resumed}")
        return Job(run, folder.latest() if folder.results else None, uid)

    def _read_ended_trials(self) -> None:
        """Read the results of trials that ended since, here or on another worker."""
        for trial in self.study.get_trials(deepcopy=False, states=ENDED):
            uid = trial.user_attrs.get("uid")
            if uid and uid not in self.ended_results:
                path = self.definition.trial_files.fetch(uid, only="curve.json")
                self.ended_results[uid] = readable_results(path, trial)  # the finals say what follows from a broken one

    def on_step(self, slot: TrainingSlot) -> None:
        """Move the bars."""
        (trial, _), bar = self.trials[slot.name], self.trial_bars[slot.index]
        self.bars.total(bar, slot.total_images)
        self.bars.set(bar, slot.step, f"trial {trial.number} ({slot.run.name})")
        if slot.memory_note:
            self.bars.log(f"trial {trial.number}: {slot.memory_note}")
            slot.memory_note = ""
        if self.clock.search_left() <= 0:
            self._pause(slot)

    def on_checkpoint(self, slot: TrainingSlot) -> None:
        """Score a checkpoint, keep it, and end the trial where that is right.

        Only the trial's own worker keeps anything: a worker that lost the trial gives it up.
        """
        trial, folder = self.trials[slot.name]
        checkpoint = slot.checkpoint
        assert checkpoint is not None
        if not self.leases.holds(trial_id_of(trial)):
            return self._give_up(slot)
        if checkpoint.diverged:
            reason = f"diverged after {checkpoint.step} images: the loss is no longer a number"
            return self._finish(slot, TrialState.COMPLETE, reason)
        if folder.scored_step() != checkpoint.step:
            if not self._has_time_to_score():
                return self._pause(slot)
            if not self._score(slot, checkpoint):
                return self._give_up(slot)
        best = folder.best_result()
        assert best is not None
        number = len(folder.results)
        if number not in self._storage.get_trial(trial_id_of(trial)).intermediate_values:
            trial.report(best.objective, number)
        prefix = f"trial {trial.number}, " if len(self.trials) > 1 else "  "
        self.bars.log(f"{prefix}{checkpoint.step} images: {folder.results[-1].summary}")
        if folder.should_stop_overcooked(self.definition.settings.patience) and not checkpoint.done:
            self._finish(slot, TrialState.COMPLETE, f"overcooked after {folder.overcooked_step()} images")
        elif checkpoint.done:
            step = folder.overcooked_step()
            reason = f"overcooked after {step} images" if step else "trained to its end"
            self._finish(slot, TrialState.COMPLETE, reason)
        elif not trial.user_attrs.get("baseline") and trial.should_prune():
            reason = f"pruned after {checkpoint.step} images: behind the other trials"
            self._finish(slot, TrialState.PRUNED, reason)

    def _has_time_to_score(self) -> bool:
        """Whether the renders at one weight fit into the search's time."""
        scorer, model = self.session.scorer, self.session.context.model
        if scorer is None:
            return True
        renders = scorer.at_weights(max(scorer.settings.weights)).num_renders
        seconds = self.session.speed.estimate(renders, scorer.render_settings, model.resolution)
        return seconds < self.clock.search_left()

    def _pause(self, slot: TrainingSlot) -> None:
        """Put a trial back into the queue, as the search's time is over; with more time it goes on.

        The first trial of a study keeps the checkpoint of now, unscored: there is a LoRA however short the time is.
        """
        trial, folder = self.trials.pop(slot.name)
        if not self.ended_results and not folder.results:
            checkpoint = slot.checkpoint if slot.checkpoint and slot.checkpoint.step == slot.step else None
            checkpoint = checkpoint or slot.make_checkpoint()
            if not checkpoint.diverged:
                blank = from_losses(checkpoint, self.session.base_losses)
                folder.append(checkpoint, unmeasured_result(blank, "budget.minutes was too short to score it"))
                self.definition.trial_files.send(slot.name)
                keep_if_best(self.running, folder, folder.results[-1])
        trial.set_user_attr(STEP, folder.scored_step())
        self.leases.release(trial_id_of(trial))
        self.bars.log(f"trial {trial.number}: the search's time is over after {slot.step} images")
        slot.stop()

    def _score(self, slot: TrainingSlot, checkpoint: Checkpoint) -> bool:
        """Score a checkpoint and keep it; False where the trial was lost meanwhile, and nothing is kept."""
        began, (trial, folder) = time.perf_counter(), self.trials[slot.name]
        ended = [result for results in self.ended_results.values() for result in results]
        with self.session.context.adapter.only(slot.index):
            result = self.session.measure(
                checkpoint, folder.results, [*ended, *folder.results], self.bars, folder.samples
            )
        if not self.leases.holds(trial_id_of(trial)):
            return False
        folder.append(checkpoint, result)
        self.definition.trial_files.send(slot.name)
        self.failed.clear()
        keep_if_best(self.running, folder, result)
        self.clock.closing_seconds = closing_seconds(self.session, len(self.definition.baseline_runs))
        self.clock.finals_seconds = shortest_finals_seconds(self.session)
        self.clock.beat()
        seconds = trial.user_attrs.get("scoring_seconds", 0.0) + time.perf_counter() - began
        trial.set_user_attr("scoring_seconds", seconds)
        trial.set_user_attr(STEP, checkpoint.step)
        return True

    @property
    def _storage(self) -> BaseStorage:
        return self.leases.storage

    def _give_up(self, slot: TrainingSlot) -> None:
        trial, _ = self.trials.pop(slot.name)
        self.bars.log(f"trial {trial.number}: another worker runs it now, this worker gives it up")
        slot.stop()

    def _finish(self, slot: TrainingSlot, state: TrialState, reason: str) -> None:
        trial, folder = self.trials.pop(slot.name)
        best = folder.best_result()
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("training_seconds", slot.seconds)
        publish_trial_note(trial, folder, reason, self.definition.store)
        keep_constraints(self._storage, trial, best.constraints if best else {"diverged": 1.0})
        self._tell(trial, state, best.objective if best else DIVERGED)
        slot.stop()

    def _tell(self, trial: Trial, state: TrialState, value: float) -> None:
        """End a trial in the storage."""
        self.leases.end(trial_id_of(trial))
        objective = value if state is TrialState.COMPLETE else None
        with suppress(UpdateFinishedTrialError):  # the connection broke right after the storage had kept it
            self.study.tell(trial, objective, state=state, skip_if_finished=True)
        prefix = f"trial {trial.number}: " if self.trials else "  "
        self.bars.log(prefix + trial.user_attrs["reason"])
        self.bars.set(self.study_bar, self._ended())

    def on_failure(self, error: Exception) -> int:
        """Handle an error of training or scoring: the trial is tried again a few times, or skipped.

        Of several trials that trained at once none can be blamed: all go back into the queue, to be run half as many
        at a time where memory ran out, else one at a time.

        Returns:
            The number of trials to train at once from now on; 0: as many as before.

        Raises:
            StudyError: several trials in a row failed here, so that the worker is at fault rather than a trial.
        """
        together = len(self.trials)
        self.trials.clear()
        if together > 1:
            return fewer_at_once(error, self.session.context.adapter.slots, self.leases, self.bars)
        for trial_id in [held for held in list(self.leases.held) if self.leases.holds(held)]:
            trial = Trial(self.study, trial_id)
            if fail_trial(trial, error, self.definition.trial_files, self.failed, self.bars):
                self.leases.release(trial_id)
            else:
                self._tell(trial, TrialState.FAIL, DIVERGED)
        refuse_to_go_on(self.failed, error)
        return 0

    def close(self) -> None:
        """Remove the bars."""
        for bar in (self.study_bar, *self.trial_bars):
            self.bars.remove(bar)


def _describe(trial: Trial, values: dict[str, Value]) -> str:
    """A trial's sampled values in words, or that it is a baseline, and the earlier trial it repeats."""
    sampled = ", ".join(
        f"{key.split('.')[-1]} {value:.3g}" if isinstance(value, float) else f"{key.split('.')[-1]} {value}"
        for key, value in values.items()
    )
    words = "unchanged" if trial.user_attrs.get("baseline") else sampled
    origin = trial.user_attrs.get(ORIGIN)
    return f"{words}; as in {origin}" if origin else words
