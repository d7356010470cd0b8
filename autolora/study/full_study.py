"""A study from its first trial to its exported LoRA."""

from __future__ import annotations

import time
from collections.abc import Callable

from autolora.data.concepts import Dataset
from autolora.evaluation.session import open_session
from autolora.progress import Bars
from autolora.settings import Settings
from autolora.study.budget import StudyClock, describe_plan
from autolora.study.definition import adapter_notes, define_study
from autolora.study.lifecycle import is_started, open_study
from autolora.study.results.facts import save_facts
from autolora.study.results.finalize import finalize_study
from autolora.study.results.progress import StudyProgress, study_progress
from autolora.study.results.report_data import write_study_report
from autolora.study.running import RunningStudy
from autolora.study.search.local_workers import count_workers, local_workers
from autolora.study.search.worker import run_study
from autolora.study.warm_start import Priors, gather_priors


def run_full_study(
    settings: Settings, dataset: Dataset, bars: Bars, on_checkpoint: Callable[[StudyProgress, bool], None]
) -> tuple[str, bool]:
    """Run or continue a study, hold its finals, export its best LoRA and write its report.

    Args:
        settings: what was asked for.
        dataset: the images.
        bars: where progress is shown.
        on_checkpoint: is called after every checkpoint, with how the study stands and whether a trial ended.

    Returns:
        The result in words, and whether nothing could be scored.
    """
    started, definition = time.time(), define_study(settings, dataset)
    study_settings = definition.settings
    workers = count_workers(study_settings.workers)
    for note in adapter_notes(definition.session_runs):
        bars.log(note)
    priors: Priors = ()
    if not is_started(definition, bars.log) and study_settings.warm_start:  # a changed study is refused before it loads
        priors = gather_priors(definition, bars.log)
    session = open_session(settings, dataset, definition.session_runs, bars)
    study = open_study(definition, session.context.model.base_hash, bars.log, priors)
    bars.log(describe_plan(study_settings, definition.baseline_runs, session.context.dataset, workers))
    running = RunningStudy(definition, study, session, bars, StudyClock(study, study_settings, started))
    save_facts(running)

    def after_checkpoint(trial_ended: bool) -> None:
        progress = study_progress(definition, study)
        bars.show(progress.table(), progress.line() if trial_ended else None)
        if trial_ended:
            write_study_report(definition, study, running=True)
        on_checkpoint(progress, trial_ended)

    with local_workers(definition, workers, bars):
        run_study(running, on_checkpoint=after_checkpoint)
    return finalize_study(running), bool(session.unmeasured)
