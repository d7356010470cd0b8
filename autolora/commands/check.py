"""`autolora check`."""

from __future__ import annotations

import json

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.commands.output import Output
from autolora.data.concepts import load_dataset, with_buckets
from autolora.files import write_atomic
from autolora.models import load_model
from autolora.preflight.sections import (
    caption_sections,
    dataset_sections,
    measured_sections,
    recipe_section,
    schedule_section,
)
from autolora.report.tables import as_dict, print_sections, write_page
from autolora.study.definition import define_study


def check(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Show what would be trained and what it costs; `check.json` and a page go into the run's folder."""
    output, settings = Output.of(config), cfg.dataset_settings(config)
    dataset = load_dataset(settings)
    definition = None
    if study:
        definition, own = define_study(config, study, arguments)
        runs = [definition.run(recipe, values) for recipe, values in own.items()]
    else:
        runs = [cfg.build_run(config)]
    model = load_model(cfg.model_settings(config))
    dataset = with_buckets(dataset, settings, model.resolution)
    sections = [*dataset_sections(dataset), *caption_sections(dataset, model)]
    sections += [*(recipe_section(run, dataset) for run in runs), schedule_section(runs, dataset)]
    with output.bars() as bars:
        sections += measured_sections(config, runs, dataset, model, definition, bars)
    folder = definition.folder if definition else cfg.run_folder(config, runs[0].name)
    facts = [f"{model.name} ({model.architecture}, {model.resolution} px, weights {model.base_hash})"]
    write_atomic(folder / "check.json", json.dumps(as_dict(sections), indent=2))
    page = write_page(dataset.name, facts, sections, folder / "check.html")

    def show() -> None:
        if not output.quiet:
            print(f"{dataset.name} on {facts[0]}")
            print_sections(sections)
        print(f"\n{folder / 'check.json'}\n{page}")

    output.last(show, {"dataset": dataset.name, "sections": as_dict(sections), "page": page})
    return 0
