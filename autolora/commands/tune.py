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
    plan, own = define_study(config, study, arguments)
    workers = count_workers(config.workers)
    with output.bars() as bars:
        runs = [plan.run(recipe, values) for recipe, values in own.items()]
        for note in adapter_notes([*runs, *plan.widest_runs()]):
            bars.log(note)
        priors = gather_priors(plan, bars.log) if plan.warm_start and not is_started(plan, bars.log) else []
        work = open_session(config, [*runs, *plan.widest_runs()], bars)
        opened = open_study(plan, own, identity(config, work.context.model.base_hash), bars.log, priors)
        bars.log(describe_plan(plan.settings, runs, work.context.dataset, workers))
        with local_workers(plan, workers, bars):
            run_study(plan, opened, work, bars, heard=_news(plan, opened, work, bars, output))
        text = finalize_study(plan, opened, work, bars)
    output.last(text, read_json(plan.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if work.unmeasured else 0


def _news(
    plan: StudyDefinition, study: optuna.Study, work: Session, bars: Bars, output: Output
) -> Callable[[bool], None]:
    """What follows every checkpoint: the terminal's table; after a trial's last one also the page and a line."""

    def heard(ended: bool) -> None:
        now = study_progress(plan, study)
        bars.show(now.table(), now.line() if ended else None)
        if ended:
            report_progress(plan, study, work)
            output.event("trial", now.as_dict())

    return heard
