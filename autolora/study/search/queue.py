"""The next trial of a worker: a started one, a waiting one, or a new one, within the study's number of trials."""

from __future__ import annotations

import time

from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.study.budget import may_begin
from autolora.study.optuna_internals import trial_id_of
from autolora.study.running import RunningStudy
from autolora.study.search.leases import TrialLeases


class Queue:
    """Gives a worker its trials.

    Trials are never duplicated: the study consists of the trial numbers below `budget.n_trials`, whichever worker runs
    them. A trial beyond that number, which two workers added at once, waits until the budget is raised.
    """

    def __init__(self, running: RunningStudy, leases: TrialLeases) -> None:
        self.study, self.settings = running.study, running.definition.settings
        self.leases, self.bars, self.clock = leases, running.bars, running.clock

    def next(self) -> Trial | None:
        """The next trial, with its lease; None where there is none, at least while this worker has other trials.

        While only other workers hold trials, it waits, as those workers may die. When the search's time is over, there
        is none.
        """
        while self.clock.search_left() > 0:
            trials = [t for t in self.study.get_trials(deepcopy=False) if t.number < self.settings.budget.n_trials]
            running = [t for t in trials if t.state is TrialState.RUNNING]
            for number in self.leases.reclaim(running):
                self.bars.log(f"trial {number}: its worker is gone, another worker continues it")
            more = may_begin(trials, self.settings)
            trial = self._waiting(more) or (
                self._new() if more and len(trials) < self.settings.budget.n_trials else None
            )
            if trial is not None:
                return trial
            if not running or self.leases.held:
                return None
            self._wait(running)
        return None

    def _waiting(self, more: bool) -> Trial | None:
        """A waiting trial; started ones come first, and are ended even if no `more` trials may start."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for frozen in sorted(waiting, key=lambda t: (not _begun(t), t.number)):
            is_due = frozen.number < self.settings.budget.n_trials and (more or _begun(frozen))
            if is_due and self.leases.take(trial_id_of(frozen)):
                return Trial(self.study, trial_id_of(frozen))
        return None

    def _new(self) -> Trial | None:
        """A new trial; None where another worker added one at the same moment, so that this one is too many."""
        trial = self.study.ask()
        if trial.number < self.settings.budget.n_trials:
            self.leases.acquire(self.leases.storage.get_trial(trial_id_of(trial)))
            return trial
        self.leases.storage.set_trial_state_values(trial_id_of(trial), TrialState.WAITING)
        return None

    def _wait(self, running: list[FrozenTrial]) -> None:
        numbers = ", ".join(str(t.number) for t in running)
        with self.bars.task(f"waiting for trials of other workers ({numbers})", None):
            time.sleep(min(5.0, self.settings.heartbeat_interval))


def _begun(trial: FrozenTrial) -> bool:
    return "uid" in trial.user_attrs
