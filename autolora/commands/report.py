"""`autolora report`."""

from __future__ import annotations

from omegaconf import DictConfig

from autolora.commands.output import Output
from autolora.evaluation.session import open_session
from autolora.study.lifecycle import existing_study
from autolora.study.results.finalize import study_report


def report(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Write a study's report again, from what its folder holds."""
    output = Output.of(config)
    definition, opened = existing_study(config, study, arguments)
    with output.bars() as bars:
        own = [definition.run(recipe, {}) for recipe in definition.space]
        session = open_session(config, [*own, *definition.widest_runs()], bars)
        path = study_report(definition, opened, session, bars)
    output.last(f"report: {path}", {"report": path})
    return 0
