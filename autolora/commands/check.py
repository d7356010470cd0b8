"""`autolora check`: what would be trained and what it costs, before anything trains."""

from __future__ import annotations

import json

from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.data.concepts import with_buckets
from autolora.files import write_atomic
from autolora.models.load import load_model
from autolora.preflight.sections import (
    caption_sections,
    dataset_sections,
    measured_sections,
    recipe_section,
    schedule_section,
)
from autolora.report.tables import as_dict, print_sections, write_page
from autolora.study.definition import define_study


def check(request: Request) -> int:
    """Show what would be trained and what it costs; `check.json` and a page go into the run's folder."""
    settings, output = request.settings, Output.of(request.settings)
    definition = define_study(request.settings) if request.settings.source else None
    runs = definition.baseline_runs if definition else [settings.run]
    session_runs = definition.session_runs if definition else runs
    model = load_model(settings.model)
    dataset = with_buckets(request.dataset, settings.dataset, model.resolution)
    sections = [*dataset_sections(dataset), *caption_sections(dataset, model)]
    sections += [*(recipe_section(run, dataset) for run in runs), schedule_section(runs, dataset)]
    with output.bars() as bars:
        sections += measured_sections(settings, runs, session_runs, dataset, model, bars)
    facts = [f"{model.name} ({model.architecture}, {model.resolution} px, weights {model.base_hash})"]
    write_atomic(settings.folder / "check.json", json.dumps(as_dict(sections), indent=2))
    page = write_page(dataset.name, facts, sections, settings.folder / "check.html")

    def show() -> None:
        if not output.quiet:
            print(f"{dataset.name} on {facts[0]}")
            print_sections(sections)
        print(f"\n{settings.folder / 'check.json'}\n{page}")

    output.last(show, {"dataset": dataset.name, "sections": as_dict(sections), "page": page})
    return 0
