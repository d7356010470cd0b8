"""What breaks here when Optuna renames what it does not promise, and what autolora needs it for."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.samplers import RandomSampler
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from optuna_dashboard.preferential import create_study

from autolora.study import optuna_internals as internals


def test_system_attributes_and_states_of_trials_are_set_in_the_storage() -> None:
    study = optuna.create_study()
    trial = study.ask()
    storage = internals.storage_of(study)
    storage.set_trial_system_attr(internals.trial_id_of(trial), "constraints", [1.0])
    assert study.trials[0].system_attrs["constraints"] == [1.0]
    assert storage.set_trial_state_values(internals.trial_id_of(study.trials[0]), TrialState.WAITING)
    assert study.trials[0].state is TrialState.WAITING


def test_a_storage_finds_a_study_by_its_number() -> None:
    study = optuna.create_study(study_name="mona")
    assert internals.storage_of(study).get_study_name_from_id(internals.study_id_of(study)) == "mona"


def test_artifacts_are_attached_to_the_study_inside_a_preferential_one() -> None:
    study = create_study(n_generate=2, study_name="mona-preference", sampler=RandomSampler())
    assert internals.unlocked_study(study).study_name == "mona-preference"


def test_the_journal_knows_its_file(tmp_path: Path) -> None:
    assert internals.journal_path(JournalFileBackend(str(tmp_path / "study.log"))) == str(tmp_path / "study.log")


def test_the_sampler_sees_the_priors_before_the_studys_own_trials() -> None:
    earlier = optuna.trial.create_trial(value=0.5)
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=0.7))
    with_priors = internals.StudyWithPriors(study, [earlier])
    seen = with_priors._get_trials(deepcopy=False, states=(TrialState.COMPLETE,))  # as TPE asks for them
    assert [trial.value for trial in seen] == [0.5, 0.7]
    assert [trial.value for trial in study.trials] == [0.7]
