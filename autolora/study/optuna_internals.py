"""Everything of Optuna that has no public name; `tests/study/test_optuna_internals.py` says what each is needed for."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState


def storage_of(study: Study) -> BaseStorage:
    """The storage of a study: system attributes and states of trials can be set only there."""
    return study._storage


def study_id_of(study: Study) -> int:
    """The number by which a storage knows a study."""
    return study._study_id


def trial_id_of(trial: Trial | FrozenTrial) -> int:
    """The number by which a storage knows a trial."""
    return trial._trial_id


def unlocked_study(preferential_study: Any) -> Study:
    """The Optuna study inside a preferential study of optuna-dashboard, which artifacts are attached to."""
    study: Study = preferential_study._study
    return study


def journal_path(backend: JournalFileBackend) -> str:
    """The file of a journal backend."""
    return backend._file_path


class StudyWithPriors(Study):
    """A study as its sampler sees it: trials of earlier studies come before its own."""

    def __init__(self, study: Study, priors: Sequence[FrozenTrial]) -> None:
        self.__dict__.update(vars(study))
        self._priors = priors

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        priors = [prior for prior in self._priors if states is None or prior.state in states]
        return [*priors, *super()._get_trials(deepcopy, states, use_cache)]
