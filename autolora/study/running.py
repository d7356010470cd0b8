"""A study while it runs in this process."""

from __future__ import annotations

from dataclasses import dataclass

from optuna import Study

from autolora.evaluation.session import Session
from autolora.progress import Bars
from autolora.study.budget import StudyClock
from autolora.study.definition import StudyDefinition


@dataclass(frozen=True)
class RunningStudy:
    """A study together with what its trials are trained and scored with, and where progress is shown."""

    definition: StudyDefinition
    study: Study
    session: Session
    bars: Bars
    clock: StudyClock
