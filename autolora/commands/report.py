"""`autolora report`: the report of a study, finished or not."""

from __future__ import annotations

from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.results.report_data import write_study_report


def report(request: Request) -> int:
    """Write a study's report from what its storage and folder hold; no model is loaded and no trial is added."""
    output, definition = Output.of(request.settings), define_study(request.settings)
    path = write_study_report(definition, load_started_study(definition, print))
    output.last(f"report: {path}", {"report": path})
    return 0
