"""`autolora export`: a study's best LoRA, or its best recipe."""

from __future__ import annotations

from autolora.commands.output import Output, read_json
from autolora.commands.request import Request
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.evaluation.session import open_session
from autolora.study.definition import define_study
from autolora.study.lifecycle import join_study, load_started_study
from autolora.study.recipes import save_recipe
from autolora.study.results.finalize import finalize_study
from autolora.study.running import RunningStudy


def export(request: Request) -> int:
    """Export a study's best LoRA again; with `save_recipe=NAME` keep its recipe in conf/recipe instead."""
    output, definition = Output.of(request.settings), define_study(request.settings, request.dataset)
    study = load_started_study(definition, print)  # a study that was not started is told before anything loads
    if request.settings.save_recipe:
        path = save_recipe(definition, study, request.settings.save_recipe)
        output.last(f"{path}: use it by recipe={path.stem}, or name it in a study", {"recipe": path})
        return 0
    with output.bars() as bars:
        session = open_session(request.settings, request.dataset, definition.session_runs, bars)
        study = join_study(definition, session.context.model.base_hash, bars.log)
        text = finalize_study(RunningStudy(definition, study, session, bars))
    output.last(text, read_json(definition.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0
