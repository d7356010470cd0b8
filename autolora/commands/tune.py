"""What each command of the command line does."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from omegaconf import DictConfig

from autolora.commands.output import Output, read_json
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.evaluation.session import Session, open_session
from autolora.progress import Bars
from autolora.study.budget import describe_plan
from autolora.study.definition import StudyDefinition, adapter_notes, define_study
from autolora.study.lifecycle import identity, is_started, open_study
from autolora.study.results.finalize import finalize_study
from autolora.study.results.progress import study_progress
from autolora.study.results.report_data import report_progress
from autolora.study.search.local_workers import count_workers, local_workers
from autolora.study.search.worker import run_study
from autolora.study.warm_start import gather_priors


def tune(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Run or continue a study, export its best LoRA and write its report."""
    assert study is not None
    output = Output.of(config)
    definition, own = define_study(config, study, arguments)
    workers = count_workers(config.workers)
    with output.bars() as bars:
        runs = [definition.run(recipe, values) for recipe, values in own.items()]
        for note in adapter_notes([*runs, *definition.widest_runs()]):
            bars.log(note)
        priors = (
            gather_priors(definition, bars.log)
            if definition.warm_start and not is_started(definition, bars.log)
            else []
        )
        session = open_session(config, [*runs, *definition.widest_runs()], bars)
        opened = open_study(definition, own, identity(config, session.context.model.base_hash), bars.log, priors)
        bars.log(describe_plan(definition.settings, runs, session.context.dataset, workers))
        with local_workers(definition, workers, bars):
            run_study(definition, opened, session, bars, heard=_news(definition, opened, session, bars, output))
        text = finalize_study(definition, opened, session, bars)
    output.last(text, read_json(definition.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0


def _news(
    definition: StudyDefinition, study: optuna.Study, session: Session, bars: Bars, output: Output
) -> Callable[[bool], None]:
    """What follows every checkpoint: the terminal's table; after a trial's last one also the page and a line."""

    def heard(ended: bool) -> None:
        now = study_progress(definition, study)
        bars.show(now.table(), now.line() if ended else None)
        if ended:
            report_progress(definition, study, session)
            output.event("trial", now.as_dict())

    return heard
