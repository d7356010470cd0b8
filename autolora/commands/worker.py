"""`autolora worker`."""

from __future__ import annotations

from omegaconf import DictConfig

from autolora.commands.output import Output
from autolora.evaluation.session import open_session
from autolora.study.definition import define_study
from autolora.study.lifecycle import identity, join_study, load_started_study
from autolora.study.search.worker import run_study


def worker(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Join a study that `tune` started: run its trials until it is done."""
    assert study is not None
    output = Output.of(config)
    definition, own = define_study(config, study, arguments)
    load_started_study(definition, print)  # before anything is loaded
    with output.bars() as bars:
        runs = [definition.run(recipe, values) for recipe, values in own.items()]
        session = open_session(config, [*runs, *definition.widest_runs()], bars)
        run_study(
            definition,
            join_study(definition, identity(config, session.context.model.base_hash), bars.log),
            session,
            bars,
        )
    words = f"study {definition.settings.name}: no trial is left; `{definition.command}` ends it with its finals"
    output.last(words, {"study": definition.settings.name})
    return 0
