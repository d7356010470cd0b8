"""What a report says of a study beside its trials, kept in the study's storage: a report loads no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from optuna import Study
from pydantic import ValidationError

from autolora.errors import StudyError
from autolora.received import first_fault, parser

if TYPE_CHECKING:  # imports torch
    from autolora.study.running import RunningStudy

FACTS = "facts"  # user attribute of a study


@dataclass(frozen=True)
class StudyFacts:
    """The dataset, the base model and the settings that a report names."""

    dataset: str
    model: str = ""
    activation_text: str = ""
    class_word: str = "1girl"
    max_bleed: float | None = None
    n_trials: int | None = None
    command: str = ""  # continues the study
    baseline_images: dict[str, int] = field(default_factory=dict)  # by recipe, shown by its whole training


def save_facts(running: RunningStudy) -> None:
    """Keep the facts of a study that this process works on."""
    definition, dataset = running.definition, running.session.context.dataset
    facts = StudyFacts(
        dataset=dataset.name,
        model=running.session.context.model.name,
        activation_text=", ".join(dict.fromkeys([dataset.trigger, *(concept.trigger for concept in dataset.concepts)])),
        class_word=dataset.class_word,
        max_bleed=running.session.scoring.max_bleed,
        n_trials=definition.settings.budget.n_trials,
        command=definition.command,
        baseline_images={
            recipe: run.images_per_epoch(dataset) * run.train.epochs
            for recipe in definition.space
            for run in [definition.run(recipe, {})]
        },
    )
    running.study.set_user_attr(FACTS, asdict(facts))


def read_facts(study: Study) -> StudyFacts:
    """The facts of a study; only the dataset's name if none were kept."""
    stored = study.user_attrs.get(FACTS)
    if not stored:
        return StudyFacts(study.user_attrs["space"].get("dataset", "?"))
    try:
        facts: StudyFacts = parser(StudyFacts).validate_python(stored)
    except ValidationError as error:
        raise StudyError(
            f"the facts of study {study.study_name} are broken ({first_fault(error)}): run it again"
        ) from error
    return facts
