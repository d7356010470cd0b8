"""Claims and the queue: who has a trial, who takes it over, which comes next."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from autolora.progress import Bars
from autolora.settings import Budget, StudySettings
from autolora.study.budget import STEP, WORKED, StudyClock
from autolora.study.running import RunningStudy
from autolora.study.search.leases import TrialLeases
from autolora.study.search.liveness import this_machine
from autolora.study.search.queue import Queue
from autolora.study.storage import open_storage, storage_url
from autolora.study.trials import TOKEN, uid_of

pytestmark = pytest.mark.slow  # trains, renders or loads many models

SETTINGS = StudySettings(
    "mona", {"doll-adamw": {}}, budget=Budget(n_trials=3), heartbeat_interval=0.05, grace_period=0.4
)


def nothing(_: str) -> None: ...


@pytest.fixture(params=[None, "journal"], ids=["sqlite", "journal"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> optuna.Study:
    return optuna.create_study(storage=open_storage(storage_url(request.param, tmp_path), nothing), study_name="mona")


def leases(study: optuna.Study, machine: str | None = None, heartbeat: float = 0.05) -> TrialLeases:
    return TrialLeases(study._storage, study._study_id, heartbeat, 0.4, nothing, machine)


def queue_of(study: optuna.Study, settings: StudySettings, mine: TrialLeases) -> Queue:
    definition: Any = SimpleNamespace(settings=settings)
    session: Any = None
    clock = StudyClock(study, settings, time.time())
    return Queue(RunningStudy(definition, study, session, Bars(), clock), mine)


def claimed(study: optuna.Study, by: TrialLeases) -> optuna.Trial:
    """A trial that a worker has begun."""
    trial = study.ask()
    by.acquire(study._storage.get_trial(trial._trial_id))
    trial.suggest_float("lr", 0, 1)
    trial.set_user_attr("uid", "abc")
    trial.report(0.5, 1)
    return trial


def test_a_dead_process_loses_its_trial_and_the_trial_nothing(study: optuna.Study) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        dead, me = leases(study), leases(study)
        dead.worker = f"{this_machine()}/{process.pid}/{psutil.Process(process.pid).create_time():.2f}"
        claimed(study, dead)
        (before,) = study.trials
        assert me.reclaim(study.trials) == []  # it lives
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert me.reclaim(study.trials) == [0]  # even while nobody has asked how it ended
    (after,) = study.trials
    assert after.state is TrialState.WAITING
    kept = ("number", "params", "intermediate_values")
    assert all(getattr(after, name) == getattr(before, name) for name in kept) and after.user_attrs["uid"] == "abc"


def test_one_on_another_machine_is_dead_when_its_heartbeat_stands_still(study: optuna.Study) -> None:
    me, other = leases(study), leases(study, "elsewhere")
    with other:
        claimed(study, other)
        for _ in range(8):
            assert me.reclaim(study.trials) == []
            time.sleep(0.1)
    assert study.trials[0].state is TrialState.WAITING  # it left, and handed back
    silent = leases(study, "elsewhere")
    claimed(study, silent)
    assert me.reclaim(study.trials) == []  # seen for the first time: no clock of its own is believed
    time.sleep(0.5)
    assert me.reclaim(study.trials) == [0]


def test_a_worker_that_was_silent_for_too_long_is_told(study: optuna.Study) -> None:
    zombie, heir = leases(study, "elsewhere"), leases(study)
    trial = claimed(study, zombie)
    assert zombie.holds(trial._trial_id)
    heir.reclaim(study.trials)
    time.sleep(0.5)
    assert heir.reclaim(study.trials) == [0]
    assert not zombie.holds(trial._trial_id)  # nobody has it
    next_one = queue_of(study, SETTINGS, heir).next()
    assert next_one is not None and next_one.number == 0 and heir.holds(next_one._trial_id)
    assert not zombie.holds(trial._trial_id)
    zombie.held[trial._trial_id] = [[0, 0]]
    zombie._release(study._storage, trial._trial_id, zombie.worker)  # nor can it give away what it lost
    assert heir.holds(trial._trial_id)


def test_a_trial_without_an_owner_is_found(study: optuna.Study) -> None:
    """Its worker died between taking it from the queue and writing its name."""
    study.ask()
    me = leases(study)
    assert me.reclaim(study.trials) == []
    time.sleep(0.5)
    assert me.reclaim(study.trials) == [0]


def test_what_is_left_when_a_worker_stops_goes_back(study: optuna.Study) -> None:
    def interrupted() -> None:
        with leases(study) as me:
            claimed(study, me)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert study.trials[0].state is TrialState.WAITING and study.trials[0].user_attrs["owner"] == ""


def test_trials_beyond_the_size_wait_until_there_is_more(study: optuna.Study) -> None:
    me = leases(study)
    queue = queue_of(study, SETTINGS, me)
    taken = [queue.next() for _ in range(2)]
    study.ask()  # another worker's, in the same moment
    assert queue._new() is None
    assert [t.state.name for t in study.trials] == ["RUNNING", "RUNNING", "RUNNING", "WAITING"]
    for trial in (*taken, study.trials[2]):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.0])
    assert queue.next() is None
    more = replace(SETTINGS, budget=Budget(n_trials=5))
    numbers = [trial.number for trial in (queue_of(study, more, me).next() for _ in range(2)) if trial]
    assert numbers == [3, 4]


def test_a_trial_is_called_the_same_by_whoever_takes_it_and_otherwise_in_another_study(study: optuna.Study) -> None:
    other = optuna.load_study(study_name="mona", storage=study._storage)
    assert uid_of(study, 0) == uid_of(other, 0) != uid_of(study, 1)
    study.set_user_attr(TOKEN, "begun again in the same folder")
    assert (
        uid_of(other, 0)
        == uid_of(study, 0)
        not in (uid_of(study, 1), uid_of(optuna.create_study(study_name="mona"), 0))
    )


def test_begun_trials_come_first_and_are_ended_when_the_images_are_used_up(study: optuna.Study) -> None:
    me = leases(study)
    study.enqueue_trial({})
    trial = claimed(study, me)
    study.enqueue_trial({})
    assert trial.number == 0
    study._storage.set_trial_user_attr(trial._trial_id, STEP, 500)
    me.release(trial._trial_id)
    queue = queue_of(study, replace(SETTINGS, budget=Budget(max_images=400)), me)
    again = queue.next()
    assert again is not None and again.number == 0
    study._storage.set_trial_state_values(again._trial_id, TrialState.COMPLETE, [0.0])
    assert queue.next() is None and study.trials[1].state is TrialState.WAITING


def test_no_trial_goes_on_when_the_time_is_over(study: optuna.Study) -> None:
    me = leases(study)
    trial = claimed(study, me)
    study._storage.set_trial_user_attr(trial._trial_id, WORKED, [[0.0, 3600.0]])
    me.release(trial._trial_id)
    assert queue_of(study, replace(SETTINGS, budget=Budget(minutes=10)), me).next() is None
    assert study.trials[0].state is TrialState.WAITING
    again = queue_of(study, replace(SETTINGS, budget=Budget(minutes=100)), me).next()
    assert again is not None and again.number == 0
