"""The wall clock of a study, on a simulated clock: what counts, and when the search and the finals end."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest

from autolora.settings import Budget, StudySettings
from autolora.study.budget import WORKED, StudyClock, union_seconds, wall_seconds

HOUR = StudySettings("evening", {}, Budget(minutes=60))


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


def test_everything_since_the_command_began_counts(study: optuna.Study, now: Time) -> None:
    clock = StudyClock(study, HOUR, started=400.0, now=now)  # it prepared for ten minutes
    assert (clock.elapsed(), clock.left()) == (600, 3000)
    now.seconds += 900
    assert clock.elapsed() == 1500


def test_a_continued_study_goes_on_where_it_was_stopped(study: optuna.Study, now: Time) -> None:
    first = StudyClock(study, HOUR, started=1000.0, now=now)
    now.seconds = 1600.0
    first.beat()  # and is killed later
    now.seconds = 9000.0
    assert StudyClock(study, HOUR, started=8990.0, now=now).elapsed() == 610


def test_workers_at_the_same_time_count_once(study: optuna.Study, now: Time) -> None:
    first = StudyClock(study, HOUR, started=1000.0, now=now)
    now.seconds = 1300.0
    first.beat()
    second = StudyClock(study, HOUR, started=1200.0, now=now)
    now.seconds = 1400.0
    first.beat()
    second.beat()
    assert first.elapsed() == second.elapsed() == wall_seconds(study) == 400


def test_a_lease_counts_where_its_process_did_not_beat(study: optuna.Study, now: Time) -> None:
    study.ask().set_user_attr(WORKED, [[0.0, 300.0]])
    assert StudyClock(study, HOUR, started=1000.0, now=now).elapsed() == 300


def test_spans_that_overlap_count_once() -> None:
    assert union_seconds([(0, 10), (100, 110), (5, 20), (105, 106)]) == 30
    assert union_seconds([]) == 0


@pytest.mark.parametrize(
    ("seeds", "closing", "finals", "search", "finals_end"),
    [
        (2, 60, 300, 0.7 * 3600, 3540),  # the share of finals that train again
        (0, 60, 200, 0.9 * 3600, 3540),  # of finals that do not
        (0, 100, 900, 2600, 3500),  # the shortest finals take longer than their share
        (0, 600, 1500, 3000, 3000),  # and here too much of the hour: there are none
    ],
)
def test_when_the_search_ends(
    seeds: int, closing: float, finals: float, search: float, finals_end: float, study: optuna.Study, now: Time
) -> None:
    clock = StudyClock(study, replace(HOUR, final_seeds=seeds), started=1000.0, now=now)
    clock.closing_seconds, clock.finals_seconds = closing, finals
    assert clock.search_left() == pytest.approx(search)
    now.seconds += 60
    assert (clock.search_left(), clock.finals_left()) == (pytest.approx(search - 60), finals_end - 60)


def test_without_minutes_there_is_no_end(study: optuna.Study, now: Time) -> None:
    clock = StudyClock(study, replace(HOUR, budget=Budget()), started=0.0, now=now)
    assert clock.left() == clock.search_left() == clock.finals_left() == math.inf
