"""`autolora tune`: a study from its first trial to the exported LoRA and its report."""

from __future__ import annotations

from collections.abc import Callable

import optuna

from autolora.commands.output import Output, read_json
from autolora.commands.request import Request
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.evaluation.session import Session, open_session
from autolora.progress import Bars
from autolora.study.budget import describe_plan
from autolora.study.definition import StudyDefinition, adapter_notes, define_study
from autolora.study.lifecycle import is_started, open_study
from autolora.study.results.finalize import finalize_study
from autolora.study.results.progress import study_progress
from autolora.study.results.report_data import report_progress
from autolora.study.running import RunningStudy
from autolora.study.search.local_workers import count_workers, local_workers
from autolora.study.search.worker import run_study
from autolora.study.warm_start import gather_priors


def tune(request: Request) -> int:
    """Run or continue a study, export its best LoRA and write its report."""
    output, definition = Output.of(request.settings), define_study(request.settings)
    workers = count_workers(definition.settings.workers)
    with output.bars() as bars:
        for note in adapter_notes(definition.session_runs):
            bars.log(note)
        priors = []
        if definition.settings.warm_start and not is_started(definition, bars.log):
            priors = gather_priors(definition, bars.log)
        session = open_session(request.settings, request.dataset, definition.session_runs, bars)
        study = open_study(definition, session.context.model.base_hash, bars.log, priors)
        bars.log(describe_plan(definition.settings, definition.baseline_runs, session.context.dataset, workers))
        with local_workers(definition, workers, bars):
            on_checkpoint = _on_checkpoint(definition, study, session, bars, output)
            run_study(RunningStudy(definition, study, session, bars), on_checkpoint=on_checkpoint)
        text = finalize_study(definition, study, session, bars)
    output.last(text, read_json(definition.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0


def _on_checkpoint(
    definition: StudyDefinition, study: optuna.Study, session: Session, bars: Bars, output: Output
) -> Callable[[bool], None]:
    """What follows every checkpoint: the terminal's table; after a trial's last checkpoint also the page and a line."""

    def on_checkpoint(trial_ended: bool) -> None:
        progress = study_progress(definition, study)
        bars.show(progress.table(), progress.line() if trial_ended else None)
        if trial_ended:
            report_progress(definition, study, session)
            output.event("trial", progress.as_dict())

    return on_checkpoint
