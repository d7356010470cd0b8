"""Which trial a worker takes next: one that was begun, one that waits, or a new one, within the study's size."""

from __future__ import annotations

import time

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.progress import Bars
from autolora.settings import StudySettings
from autolora.study.budget import may_begin
from autolora.study.optuna_internals import trial_id_of
from autolora.study.search.leases import TrialLeases


class Queue:
    """The study as a worker's source of trials.

    A trial's number is its place in the study: no trial is ever copied, so that those below `budget.n_trials` are the
    study's, whoever runs them and however often they are handed back. What two workers asked for at once beyond it
    waits there until the study is given more.
    """

    def __init__(self, study: optuna.Study, settings: StudySettings, leases: TrialLeases, bars: Bars) -> None:
        self.study, self.settings, self.leases, self.bars = study, settings, leases, bars

    def next(self) -> Trial | None:
        """The next trial, claimed; None where there is none, at least while this worker has others.

        While only other workers have some it waits, as they may die.
        """
        while True:
            trials = [t for t in self.study.get_trials(deepcopy=False) if t.number < self.settings.budget.n_trials]
            running = [t for t in trials if t.state is TrialState.RUNNING]
            for number in self.leases.reclaim(running):
                self.bars.log(f"trial {number}: its worker is gone, it goes on elsewhere")
            more = may_begin(trials, self.settings)
            trial = self._waiting(more) or (
                self._new() if more and len(trials) < self.settings.budget.n_trials else None
            )
            if trial is not None:
                return trial
            if not running or self.leases.held:
                return None
            self._wait(running)

    def _waiting(self, more: bool) -> Trial | None:
        """One that waits: first those that were begun, which are ended even if no `more` are to begin."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for frozen in sorted(waiting, key=lambda t: (not _begun(t), t.number)):
            if frozen.number < self.settings.budget.n_trials and (more or _begun(frozen)):
                try:
                    won = self.leases.storage.set_trial_state_values(trial_id_of(frozen), TrialState.RUNNING)
                except UpdateFinishedTrialError:
                    continue
                if won:
                    return self._claimed(trial_id_of(frozen))
        return None

    def _new(self) -> Trial | None:
        """A new one; None where another worker asked in the same moment and this one is one too many."""
        trial = self.study.ask()
        if trial.number < self.settings.budget.n_trials:
            self.leases.acquire(self.leases.storage.get_trial(trial_id_of(trial)))
            return trial
        self.leases.storage.set_trial_state_values(trial_id_of(trial), TrialState.WAITING)
        return None

    def _claimed(self, trial_id: int) -> Trial:
        self.leases.acquire(self.leases.storage.get_trial(trial_id))
        return Trial(self.study, trial_id)

    def _wait(self, running: list[FrozenTrial]) -> None:
        numbers = ", ".join(str(t.number) for t in running)
        with self.bars.task(f"waiting for trials of other workers ({numbers})", None):
            time.sleep(min(5.0, self.settings.heartbeat_interval))


def _begun(trial: FrozenTrial) -> bool:
    return "uid" in trial.user_attrs
