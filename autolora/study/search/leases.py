"""Leases: which worker runs which trial. A lease is acquired, kept by heartbeats, released, or reclaimed.

A trial whose worker leaves it, by a signal, a failure or its death, goes from RUNNING back to WAITING: it stays the
same trial with its number, uid, values and checkpoints, so that there is no copy to lose between two steps. (Optuna's
own heartbeats mark the trial failed and add a copy; journal files and gRPC proxies have no heartbeats.) No clocks are
compared: a worker on another machine is dead when its heartbeat has not changed for the grace period as measured here,
a worker on this machine when its process has ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from types import TracebackType

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from autolora.study.budget import WORKED
from autolora.study.optuna_internals import trial_id_of
from autolora.study.search.liveness import OWNER, is_gone, this_machine
from autolora.study.storage_retry import Log, is_unreachable


class TrialLeases:
    """The trials that a worker holds. As a context it sends heartbeats, and releases what is held at its end."""

    def __init__(
        self, storage: BaseStorage, study_id: int, heartbeat: float, grace: float, log: Log, machine: str | None = None
    ) -> None:
        self.storage, self.study_id, self.log = storage, study_id, log
        self.heartbeat_interval, self.grace_period = heartbeat, grace
        self.machine = machine or this_machine()
        self.worker = f"{self.machine}/{os.getpid()}/{psutil.Process().create_time():.2f}"
        self.held: dict[int, list[list[float]]] = {}  # by trial id: the spans in which it was worked on
        self._seen: dict[
            int, tuple[object, float]
        ] = {}  # by trial id: its last heartbeat, and when that was first seen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def __enter__(self) -> TrialLeases:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        direct: BaseStorage = getattr(self.storage, "behind", self.storage)  # without waiting: a stop must not hang
        for trial_id in list(self.held):
            try:
                self._release(direct, trial_id, self.worker)
            except Exception as reason:
                if not is_unreachable(reason) and error is None:
                    raise
                self.log("the storage is unreachable: another worker takes the trial over once it is reachable again")

    def acquire(self, trial: FrozenTrial) -> None:
        """Take the lease of a running trial."""
        now = round(time.time(), 1)
        worked = [*trial.user_attrs.get(WORKED, []), [now, now]]
        self.storage.set_trial_user_attr(trial_id_of(trial), OWNER, self.worker)
        self.storage.set_trial_user_attr(trial_id_of(trial), WORKED, worked)
        self.held[trial_id_of(trial)] = worked

    def take(self, trial_id: int) -> bool:
        """Take the lease of a waiting trial; False if another worker was faster."""
        try:
            won = self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False
        if won:
            self.acquire(self.storage.get_trial(trial_id))
        return won

    def holds(self, trial_id: int) -> bool:
        """Whether this worker still has a trial's lease; another worker reclaims it after a long silence."""
        if trial_id not in self.held:
            return False
        frozen = self.storage.get_trial(trial_id)
        if frozen.state is TrialState.RUNNING and frozen.user_attrs.get(OWNER) == self.worker:
            return True
        self.forget(trial_id)
        return False

    def forget(self, trial_id: int) -> None:
        """Forget a trial that ended or that another worker holds."""
        self.held.pop(trial_id, None)

    def end(self, trial_id: int) -> None:
        """Store until when a trial was worked on, and forget it."""
        self._note(self.storage, trial_id)
        self.forget(trial_id)

    def release(self, trial_id: int) -> None:
        """Put a trial of this worker back into the queue."""
        self._release(self.storage, trial_id, self.worker)

    def reclaim(self, running: Iterable[FrozenTrial]) -> list[int]:
        """Put the trials of dead workers back into the queue; returns their numbers."""
        found = []
        for trial in running:
            owner = str(trial.user_attrs.get(OWNER, ""))
            if trial_id_of(trial) not in self.held and (
                is_gone(owner, self.machine, self.worker) or self._is_silent(trial)
            ):
                self._release(self.storage, trial_id_of(trial), owner)
                self._seen.pop(trial_id_of(trial), None)
                found.append(trial.number)
        return found

    def _is_silent(self, trial: FrozenTrial) -> bool:
        """Whether a trial's heartbeat has not changed for the grace period."""
        beat = (trial.user_attrs.get(OWNER), trial.user_attrs.get(WORKED))
        before, since = self._seen.get(trial_id_of(trial), (None, 0.0))
        if before != beat:
            since = time.monotonic()
            self._seen[trial_id_of(trial)] = (beat, since)
        return time.monotonic() - since >= self.grace_period

    def _release(self, storage: BaseStorage, trial_id: int, owner: str) -> None:
        """Set a trial from RUNNING to WAITING if the owner still has it. The owner's name is removed first, as the next
        worker writes its own."""
        self.forget(trial_id)
        frozen = storage.get_trial(trial_id)
        if frozen.state is TrialState.RUNNING and frozen.user_attrs.get(OWNER, "") == owner:
            try:
                storage.set_trial_user_attr(trial_id, OWNER, "")
                storage.set_trial_state_values(trial_id, TrialState.WAITING)
            except UpdateFinishedTrialError:  # it ended at the same moment
                return

    def _note(self, storage: BaseStorage, trial_id: int) -> None:
        worked = self.held[trial_id]
        worked[-1][1] = round(time.time(), 1)
        storage.set_trial_user_attr(trial_id, WORKED, worked)

    def _beat(self) -> None:
        """Send heartbeats for all held trials until the end; an unreachable database is tried at the next beat."""
        direct: BaseStorage = getattr(self.storage, "behind", self.storage)
        while not self._over.wait(self.heartbeat_interval):
            for trial_id in list(self.held):
                try:
                    if direct.get_trial(trial_id).user_attrs.get(OWNER) == self.worker and trial_id in self.held:
                        self._note(direct, trial_id)
                except Exception as reason:
                    if not (is_unreachable(reason) or isinstance(reason, KeyError | UpdateFinishedTrialError)):
                        self.log(f"a heartbeat failed: {reason}")
