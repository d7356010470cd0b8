"""The trials of a study in its storage: their names, constraints and folders."""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.errors import BrokenFile, StudyError
from autolora.evaluation.result import DIVERGED, CheckpointResult, TrialResults, load_results
from autolora.study.budget import STEP
from autolora.study.definition import StudyDefinition
from autolora.study.optuna_internals import trial_id_of
from autolora.study.space import sampled_values
from autolora.study.storage_retry import Log
from autolora.train.run import Run

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


def load_trials(definition: StudyDefinition, study: optuna.Study, log: Log) -> list[tuple[FrozenTrial, TrialFolder]]:
    """Every trial that has a scored checkpoint, with its folder.

    A trial whose scores are lost is left out only if it could not become a finalist; `log` is told.

    Raises:
        StudyError: the scores of a trial are lost that may be the best one.
    """
    from autolora.evaluation.trial_folder import TrialFolder  # imports torch, which a report does without

    trials, lost = [], list[tuple[FrozenTrial, str]]()
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if not uid:
            continue
        files = definition.trial_files
        path = files.fetch(uid, ended=True) if trial.state.is_finished() else files[uid]
        try:
            folder = TrialFolder.open(path, _run_of(trial, definition), trial.state.is_finished())
        except BrokenFile as error:
            lost.append((trial, str(error)))
            continue
        if folder.results:
            trials.append((trial, folder))
        elif trial.state.is_finished() and trial.user_attrs.get(STEP):
            lost.append((trial, f"{path / 'curve.json'} or the weights of its last checkpoint are missing"))
    ranked = sorted((folder.best_objective() for _, folder in trials), reverse=True)
    least = ranked[: definition.settings.n_finalists][-1] if ranked else DIVERGED
    for trial, why in lost:
        if trial.state.is_finished() and (_stored_objective(trial) >= least or not trials):
            raise StudyError(
                f"trial {trial.number} may be the best one, but {why}: restore its folder from a copy. Without it "
                "nothing is exported, and an exported LoRA stays as it is"
            )
        log(f"trial {trial.number} is left out: {why}")
    return trials


def _run_of(trial: FrozenTrial, definition: StudyDefinition) -> Run:
    """The run of a trial.

    Raises:
        StudyError: it has a recipe or a key that the study does not search.
    """
    recipe, values = sampled_values(trial)
    if recipe not in definition.space or not values.keys() <= definition.space[recipe].keys():
        raise StudyError(
            f"trial {trial.number} has a recipe or a key that {definition.source} does not have ({recipe}: "
            f"{', '.join(values) or 'no key'}); undo the change of the study, or restore its storage from a copy"
        )
    return definition.run(recipe, values)


def _stored_objective(trial: FrozenTrial) -> float:
    """The best objective of a trial, by the study's storage."""
    return max([*trial.intermediate_values.values(), DIVERGED if trial.value is None else trial.value])


def best_checkpoint(
    definition: StudyDefinition, study: optuna.Study, log: Log
) -> tuple[TrialFolder, CheckpointResult] | None:
    """The checkpoint of the highest objective, with its trial's folder; None before one is scored.

    Raises:
        StudyError: as `load_trials`.
    """
    scored = [(folder, folder.best_result()) for _, folder in load_trials(definition, study, log)]
    kept = [(folder, result) for folder, result in scored if result is not None]
    return max(kept, key=lambda pair: pair[1].objective, default=None)


def load_trial_results(definition: StudyDefinition, study: optuna.Study) -> list[tuple[FrozenTrial, TrialResults]]:
    """Every trial that has a scored checkpoint, with its results and its kept renders but without its weights."""
    trials = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if not uid:
            continue
        files = definition.trial_files
        path = files.fetch(uid, SHOWN, ended=True) if trial.state.is_finished() else files[uid]
        if results := readable_results(path, trial):
            trials.append((trial, TrialResults(path, results)))
    return trials


def readable_results(folder: Path, trial: FrozenTrial) -> list[CheckpointResult]:
    """The results of a trial that is only shown; none where its curve is broken, which is logged."""
    try:
        return load_results(folder)
    except BrokenFile as error:
        _warn_once(f"trial {trial.number} is shown without its curve: {error}")
        return []


@functools.cache
def _warn_once(line: str) -> None:
    logging.getLogger("autolora").warning(line)


TOKEN = "token"  # user attribute of a study: random, so that the folders of two studies never share a name


def uid_of(study: optuna.Study, number: int) -> str:
    """The name of a trial's folder; every worker computes the same, as SQLite may give one trial to two of them."""
    token = study.user_attrs.get(TOKEN, study.study_name)
    return hashlib.blake2s(f"{token}/{number}".encode(), digest_size=6).hexdigest()


ORIGIN = "warm_start"  # user attribute of a trial: the earlier study and trial that it repeats
WINNER = "winner"  # user attribute of a finished study: the number of the exported trial
