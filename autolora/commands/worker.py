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
    plan, own = define_study(config, study, arguments)
    load_started_study(plan, print)  # before anything is loaded
    with output.bars() as bars:
        runs = [plan.run(recipe, values) for recipe, values in own.items()]
        work = open_session(config, [*runs, *plan.widest_runs()], bars)
        run_study(plan, join_study(plan, identity(config, work.context.model.base_hash), bars.log), work, bars)
    words = f"study {plan.settings.name}: no trial is left; `{plan.command}` ends it with its finals"
    output.last(words, {"study": plan.settings.name})
    return 0
