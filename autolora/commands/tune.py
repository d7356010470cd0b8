"""`autolora tune`: a study from its first trial to the exported LoRA and its report."""

from __future__ import annotations

from autolora import api
from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.study.results.progress import StudyProgress


def tune(request: Request) -> int:
    """Run or continue a study, export its best LoRA and write its report."""
    output = Output.of(request.settings)

    def on_checkpoint(progress: StudyProgress, trial_ended: bool) -> None:
        if trial_ended:
            output.event("trial", progress.as_dict())

    with output.bars() as bars:
        result = api.run_study(request.settings, dataset=request.dataset, on_checkpoint=on_checkpoint, bars=bars)
    output.last(result.text, result.facts)
    return UNMEASURED_EXIT_CODE if result.unmeasured else 0
