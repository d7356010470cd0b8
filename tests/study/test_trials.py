"""The trials of a study whose files are broken or lost: no finished trial is lost without a word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from autolora.adapters.kinds import LoRA
from autolora.errors import StudyError
from autolora.evaluation.trial_folder import TrialFolder
from autolora.optim.optimizers import AdamW
from autolora.study.artifacts import TrialFiles
from autolora.study.received import check_study
from autolora.study.trials import load_trial_results, load_trials
from autolora.train.run import Run
from tests.evaluation.test_trial_folder import checkpoint, scored

RUN = Run("doll-adamw", LoRA(), AdamW())
LR = "doll-adamw/optimizer.lr"


@pytest.fixture
def definition(tmp_path: Path) -> Any:
    """A study of which two trials can be finalists."""
    return SimpleNamespace(
        source="mine.yaml",
        settings=SimpleNamespace(n_finalists=2),
        space={"doll-adamw": {"optimizer.lr": None}},
        trial_files=TrialFiles(tmp_path),
        run=lambda recipe, values: RUN,
    )


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Four finished trials; the higher the number, the better."""
    study = optuna.create_study(direction="maximize")
    for number in range(4):
        score, uid = 0.2 + 0.2 * number, f"{number}" * 12
        TrialFolder(tmp_path / uid, RUN).append(checkpoint(RUN, 100), scored(100, score))
        distribution = {LR: FloatDistribution(1e-4, 1e-2, log=True)}
        attributes = {"uid": uid, "recipe": RUN.name, "step": 100}
        study.add_trial(create_trial(value=score, params={LR: 1e-3}, distributions=distribution, user_attrs=attributes))
    return study


def break_trial(folder: Path, how: str) -> None:
    if how == "folder is gone":
        folder.rename(folder.with_name("elsewhere"))
    elif how == "curve is gone":
        (folder / "curve.json").unlink()
    else:
        (folder / "curve.json").write_text('[{"step": 1')


@pytest.mark.parametrize("how", ["folder is gone", "curve is gone", "curve is cut short"])
@pytest.mark.parametrize("number", [0, 3])
def test_a_trial_whose_scores_are_lost_is_named_and_keeps_the_best_one(
    how: str, number: int, definition: Any, study: optuna.Study, tmp_path: Path
) -> None:
    break_trial(tmp_path / (f"{number}" * 12), how)
    lines: list[str] = []
    if number == 3:  # the best one: exporting another in its place would be wrong
        with pytest.raises(StudyError, match=r"trial 3 may be the best one.*curve\.json.*restore"):
            load_trials(definition, study, lines.append)
    else:
        assert [trial.number for trial, _ in load_trials(definition, study, lines.append)] == [1, 2, 3]
        assert len(lines) == 1 and "trial 0 is left out" in lines[0] and "curve.json" in lines[0]
    others = [trial.number for trial, _ in load_trial_results(definition, study)]
    assert others == [other for other in range(4) if other != number]


def test_a_trial_with_a_recipe_or_key_of_another_study_is_refused(definition: Any, study: optuna.Study) -> None:
    for space in ({}, {"doll-adamw": {}}):
        definition.space = space
        with pytest.raises(StudyError, match=r"trial 0 has a recipe or a key that mine\.yaml does not have"):
            load_trials(definition, study, print)


TRIAL_FAULTS: list[dict[str, Any]] = [
    {"uid": "../../etc", "recipe": "x"},
    {"uid": "0" * 12},
    {"uid": 3, "recipe": "x"},
    {"reason": ["x"]},
    {"worked": [[1.0]]},
    {"worked": 1},
    {"step": -1},
    {"training_seconds": float("nan")},
]
STUDY_FAULTS: list[dict[str, Any]] = [
    {"space": "x"},
    {"command": {"study": "x"}},
    {"command": {"study": "x", "arguments": "out=/etc"}},
    {"winner": "0"},
    {"token": "../x"},
]


@pytest.mark.parametrize("attributes", [*TRIAL_FAULTS, *STUDY_FAULTS], ids=str)
def test_a_storage_with_values_of_other_types_is_refused(attributes: dict[str, Any]) -> None:
    study = optuna.create_study(direction="maximize", study_name="mona")
    if attributes in TRIAL_FAULTS:
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
    for key, value in attributes.items() if attributes in STUDY_FAULTS else ():
        study.set_user_attr(key, value)
    with pytest.raises(StudyError, match="study mona holds what no study writes"):
        check_study(study)
