"""The outcome of a study's finals, `finals/outcome.json` in its folder: everything that shows it reads it there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from optuna import Study
from pydantic import Field

from autolora.data.step_table import StepTable
from autolora.errors import BrokenFile, StudyError
from autolora.evaluation.result import WholeResult
from autolora.files import write_atomic
from autolora.publish.gallery_files import ImageFiles
from autolora.received import Finite, Interval, read_json
from autolora.report.schema import Reproduction
from autolora.study.artifacts import TrialFiles
from autolora.study.definition import StudyDefinition
from autolora.study.trials import TOKEN

FOLDER, FILE = "finals", "outcome.json"


@dataclass(frozen=True)
class FinalistOutcome:
    """A checkpoint as the finals scored it."""

    trial: int
    recipe: str
    folder: str  # of its trial, or of an average or a copy beside it
    result: WholeResult


@dataclass(frozen=True)
class PlainLoraOutcome:
    """The plain LoRA beside an exported adapter of another kind."""

    path: str
    dim: int
    distance: Finite  # to the exported adapter, as a share of the weight change's norm
    score: Interval | None


@dataclass(frozen=True)
class ExportOutcome:
    """The exported files, by their paths in the study's folder, and the programs that read the LoRA correctly."""

    lora: str
    diffusers: str | None
    plain_lora: PlainLoraOutcome | None
    read_by: tuple[str, ...]


@dataclass(frozen=True)
class FinalsOutcome:
    """Everything that is known when the finals of a study have ended."""

    trial_states: dict[int, str]  # of every trial when the finals were held
    finalists: Annotated[
        tuple[FinalistOutcome, ...], Field(min_length=1)
    ]  # the best checkpoint of each trial, the winner first
    ties: tuple[int, ...]  # numbers of the trials whose score cannot be told from the winner's
    retrained: dict[int, tuple[WholeResult, ...]]  # by trial, its recipe at several training seeds
    weight: Finite  # recommended for the winner
    choice: str  # the effect of a person's choice by images, where that was asked for
    notes: tuple[str, ...]  # sentences about the finals
    export: ExportOutcome
    step_table: StepTable  # of the winner's recipe
    reproduction: Reproduction
    images: ImageFiles

    @property
    def winner(self) -> FinalistOutcome:
        """The checkpoint that was exported."""
        return self.finalists[0]


def trial_states(study: Study) -> dict[int, str]:
    """The state of every trial, by its number."""
    return {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}


def _files(definition: StudyDefinition, study: Study) -> TrialFiles:
    """The folder of the finals here, and in the study's bucket under the study's own name."""
    return TrialFiles(definition.folder, definition.bucket, f"{study.user_attrs.get(TOKEN, study.study_name)}-")


def write_outcome(definition: StudyDefinition, study: Study, outcome: FinalsOutcome) -> None:
    """Write the outcome of the finals, and send it to the study's bucket with the images beside it.

    Raises:
        StorageError: the folder cannot be written, or the bucket cannot be reached.
    """
    content = json.dumps(asdict(outcome), indent=1, ensure_ascii=False) + "\n"
    write_atomic(definition.folder / FOLDER / FILE, content)
    _files(definition, study).send(FOLDER)


def read_outcome(definition: StudyDefinition, study: Study) -> FinalsOutcome | None:
    """The outcome of the finals; None if none were held, or if the search has continued since.

    Raises:
        StudyError: the file is broken.
        StorageError: the study's bucket cannot be reached.
    """
    path = _files(definition, study).fetch(FOLDER) / FILE
    try:
        outcome = read_json(path, FinalsOutcome)
    except BrokenFile as error:
        raise StudyError(f"{error}, or run `autolora export` on the study to write it again") from error
    return outcome if outcome and outcome.trial_states == trial_states(study) else None


def finals_are_over(definition: StudyDefinition, study: Study) -> bool:
    """Whether the finals were held and no trial was added or has ended since; so they are if only their file broke."""
    try:
        return read_outcome(definition, study) is not None
    except StudyError:
        return True
