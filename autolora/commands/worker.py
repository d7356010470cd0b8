"""`autolora worker`: runs trials of a study that `autolora tune` started."""

from __future__ import annotations

import time

from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.evaluation.session import open_session
from autolora.study.budget import StudyClock
from autolora.study.definition import define_study
from autolora.study.lifecycle import join_study, load_started_study
from autolora.study.running import RunningStudy
from autolora.study.search.worker import run_study


def worker(request: Request) -> int:
    """Join a study: run its trials until none is left."""
    started, output = time.time(), Output.of(request.settings)
    definition = define_study(request.settings, request.dataset)
    load_started_study(definition, print)  # a study that was not started is told before anything loads
    with output.bars() as bars:
        session = open_session(request.settings, request.dataset, definition.session_runs, bars)
        study = join_study(definition, session.context.model.base_hash, bars.log)
        clock = StudyClock(study, definition.settings, started)
        run_study(RunningStudy(definition, study, session, bars, clock))
    name = definition.settings.name
    output.last(f"study {name}: no trial is left; `{definition.command}` ends it with its finals", {"study": name})
    return 0
