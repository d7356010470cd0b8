"""`autolora export`: a study's best LoRA, or its best recipe."""

from __future__ import annotations

import time
from typing import Any

from optuna import Study

from autolora.commands.output import Output, read_json
from autolora.commands.request import Request
from autolora.data.concepts import with_buckets
from autolora.errors import UNMEASURED_EXIT_CODE, StudyError
from autolora.evaluation.session import open_session
from autolora.models.load import load_model
from autolora.publish.best_so_far import export_best_so_far
from autolora.study.budget import StudyClock
from autolora.study.definition import StudyDefinition, define_study
from autolora.study.lifecycle import join_study, load_started_study
from autolora.study.recipes import save_recipe
from autolora.study.results.finalize import finalize_study
from autolora.study.results.outcome import finals_are_over
from autolora.study.running import RunningStudy
from autolora.study.trials import best_checkpoint


def export(request: Request) -> int:
    """Export a study's best LoRA: the winner of its finals, or the best one so far where they are not over.

    With `save_recipe=NAME` its recipe is kept in conf/recipe instead.
    """
    started, output = time.time(), Output.of(request.settings)
    definition = define_study(request.settings, request.dataset)
    study = load_started_study(definition, print)  # a study that was not started is told before anything loads
    if request.settings.save_recipe:
        path = save_recipe(definition, study, request.settings.save_recipe)
        output.last(f"{path}: use it by recipe={path.stem}, or name it in a study", {"recipe": path})
        return 0
    if not finals_are_over(definition, study):
        output.last(*_export_best_so_far(request, definition, study))
        return 0
    with output.bars() as bars:
        session = open_session(request.settings, request.dataset, definition.session_runs, bars)
        study = join_study(definition, session.context.model.base_hash, bars.log)
        clock = StudyClock(study, definition.settings, started)
        text = finalize_study(RunningStudy(definition, study, session, bars, clock))
    output.last(text, read_json(definition.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0


def _export_best_so_far(request: Request, definition: StudyDefinition, study: Study) -> tuple[str, dict[str, Any]]:
    """Export the best checkpoint of the search; nothing is trained, rendered or scored for it.

    Raises:
        StudyError: no trial has a scored checkpoint.
    """
    best = best_checkpoint(definition, study, print)
    if best is None:
        raise StudyError("no trial of this study has a scored checkpoint yet; run it longer")
    (trial_folder, result), settings = best, request.settings
    model = load_model(settings.model)
    dataset = with_buckets(request.dataset, settings.dataset, model.resolution)
    folder, name = definition.folder / "best", definition.settings.name
    path = export_best_so_far(trial_folder, result, dataset, model, folder, name, settings.export.dtype)
    text = f"LoRA: {path}\nthe best so far: {result.describe_place}, {result.summary}; `autolora tune` holds the finals"
    return text, {"export": path, "finals": False, "best": trial_folder.summary(result)}
