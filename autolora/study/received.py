"""What a study's storage holds, checked once when the study is opened: everybody who may write there is trusted no more
than a file that somebody sent."""

from __future__ import annotations

import json
from typing import Annotated, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import Field, ValidationError
from typing_extensions import TypedDict  # of Python 3.12, which pydantic needs

from autolora.errors import StudyError
from autolora.evaluation.result import WholeResult
from autolora.received import Finite, first_fault, parser
from autolora.study.budget import PROCESS

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Seconds = Annotated[Finite, Field(ge=0)]
_Span = tuple[_Seconds, _Seconds]  # since, until
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]  # of a trial's folder


class _Command(TypedDict):
    study: str
    arguments: list[str]


class StudyAttributes(TypedDict, total=False):
    """The user attributes of a study."""

    space: dict[str, str]
    fixed: dict[str, str]
    warm_start: list[str]
    command: _Command
    facts: dict[str, Any]  # `results.facts` parses them
    token: _Name
    winner: _Count
    training_seconds: _Seconds
    scoring_seconds: _Seconds


class TrialAttributes(TypedDict, total=False):
    """The user attributes of a trial."""

    uid: _Name
    recipe: str
    baseline: str
    reason: str
    owner: str
    warm_start: str
    worked: list[_Span]
    training_seconds: _Seconds
    scoring_seconds: _Seconds
    step: _Count
    failures: _Count


class _Key(TypedDict):
    key: str


class CandidateAttributes(_Key, total=False):
    """The user attributes of a trial of `<study>/finals` and `<study>-preference`."""

    point: WholeResult
    seconds: _Seconds
    memory: str
    picture: str


class PriorAttributes(TypedDict):
    """The user attributes of a trial of `<study>/priors`."""

    warm_start: str
    recipe: str


def check_study(study: optuna.Study, kind: type[Any] = TrialAttributes, scored: bool = True) -> optuna.Study:
    """The same study, once all that is read of it is known to be of the right types.

    Args:
        study: as Optuna loaded it.
        kind: the attributes of its trials.
        scored: whether its trials have a score; a person's choice has none.

    Raises:
        StudyError: what is wrong where.
    """
    place = f"study {study.study_name}"
    try:
        attributes = study.user_attrs
        parser(StudyAttributes).validate_json(json.dumps(attributes), strict=True)
        spans = [value for key, value in attributes.items() if key.startswith(PROCESS)]
        parser(list[_Span]).validate_json(json.dumps(spans), strict=True)
        if scored and study.directions != [StudyDirection.MAXIMIZE]:
            raise StudyError(f"{place} minimized its objective; studies of `autolora tune` maximize a score")
        for trial in study.get_trials(deepcopy=False):
            place = f"trial {trial.number} of study {study.study_name}"
            parser(kind).validate_json(json.dumps(trial.user_attrs), strict=True)
            if not all(isinstance(name, str) for name in trial.params):
                raise StudyError(_refusal(place, "a parameter without a name"))
            if "uid" in trial.user_attrs and "recipe" not in trial.user_attrs:
                raise StudyError(_refusal(place, "it has a folder but no recipe"))
            if scored and trial.state is TrialState.COMPLETE and not isinstance(trial.value, float):
                raise StudyError(_refusal(place, "it is complete but has no score"))
    except ValidationError as error:
        raise StudyError(_refusal(place, first_fault(error))) from error
    return study


def _refusal(place: str, fault: str) -> str:
    return (
        f"{place} holds what no study writes ({fault}): restore its storage from a copy, and do not use it if somebody "
        "else made it"
    )
