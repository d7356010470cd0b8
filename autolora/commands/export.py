"""`autolora export`."""

from __future__ import annotations

from omegaconf import DictConfig

from autolora.commands.output import Output, read_json
from autolora.commands.resize import resize_file
from autolora.commands.verify import verify_file
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.evaluation.session import open_session
from autolora.study.definition import define_study
from autolora.study.lifecycle import existing_study, load_started_study
from autolora.study.recipe_library import save_recipe
from autolora.study.results.finalize import finalize_study


def export(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Export a study's best LoRA again, or its recipe; or prove a file, or make one smaller."""
    if config.verify:
        return verify_file(config)
    if config.resize:
        return resize_file(config)
    output = Output.of(config)
    if config.save_recipe:
        assert study is not None
        definition, _ = define_study(config, study, arguments)
        path = save_recipe(definition, load_started_study(definition, print), str(config.save_recipe))
        output.last(f"{path}: take it by recipe={path.stem}, or name it in a study", {"recipe": path})
        return 0
    definition, opened = existing_study(config, study, arguments)
    with output.bars() as bars:
        own = [definition.run(recipe, {}) for recipe in definition.space]
        session = open_session(config, [*own, *definition.widest_runs()], bars)
        text = finalize_study(definition, opened, session, bars)
    output.last(text, read_json(definition.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0
