"""The trials of a study in its storage: their names, constraints and folders."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.evaluation.result import TrialResults, load_results
from autolora.study.definition import StudyDefinition
from autolora.study.optuna_internals import trial_id_of
from autolora.study.space import sampled_values

if TYPE_CHECKING:
    from autolora.evaluation.trial_folder import TrialFolder

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SHOWN = ("curve.json", "samples/")  # what a report shows of a trial's folder


def keep_constraints(storage: BaseStorage, trial: Trial, constraints: dict[str, float]) -> None:
    """Store a trial's constraints by name, and as the list that the dashboard reads.

    `Trial.set_constraint` keeps what an interrupted worker wrote; this is the last word.
    """
    for name, broken_by in constraints.items():
        storage.set_trial_system_attr(trial_id_of(trial), f"constraints:{name}", float(broken_by))
    storage.set_trial_system_attr(trial_id_of(trial), "constraints", [float(v) for v in constraints.values()])


def load_trials(definition: StudyDefinition, study: optuna.Study) -> list[tuple[FrozenTrial, TrialFolder]]:
    """Every trial that has a scored checkpoint, with its folder."""
    from autolora.evaluation.trial_folder import TrialFolder  # imports torch, which a report does without

    trials = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if not uid:
            continue
        files = definition.trial_files
        path = files.fetch(uid, ended=True) if trial.state.is_finished() else files[uid]
        if (path / "curve.json").is_file():
            trials.append((trial, TrialFolder.open(path, definition.run(*sampled_values(trial)))))
    return [(trial, trial_folder) for trial, trial_folder in trials if trial_folder.results]


def load_trial_results(definition: StudyDefinition, study: optuna.Study) -> list[tuple[FrozenTrial, TrialResults]]:
    """Every trial that has a scored checkpoint, with its results and its kept renders but without its weights."""
    trials = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if not uid:
            continue
        files = definition.trial_files
        path = files.fetch(uid, SHOWN, ended=True) if trial.state.is_finished() else files[uid]
        if results := load_results(path):
            trials.append((trial, TrialResults(path, results)))
    return trials


TOKEN = "token"  # user attribute of a study: random, so that the folders of two studies never share a name


def uid_of(study: optuna.Study, number: int) -> str:
    """The name of a trial's folder; every worker computes the same, as SQLite may give one trial to two of them."""
    token = study.user_attrs.get(TOKEN, study.study_name)
    return hashlib.blake2s(f"{token}/{number}".encode(), digest_size=6).hexdigest()


ORIGIN = "warm_start"  # user attribute of a trial: the earlier study and trial that it repeats
WINNER = "winner"  # user attribute of a finished study: the number of the exported trial
