"""The best LoRA so far of a study that still runs: there is a verified file from the first scored checkpoint on."""

from __future__ import annotations

from pathlib import Path

from optuna import Study

from autolora.errors import ExportError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.publish.best_so_far import export_best_so_far
from autolora.publish.roundtrip import writing_to
from autolora.study.running import RunningStudy
from autolora.study.trials import best_checkpoint


def ensure_best_so_far(running: RunningStudy) -> None:
    """Export the best checkpoint of a continued study that has no LoRA yet."""
    if not [*_folder(running).glob("*.safetensors")]:
        best = best_checkpoint(running.definition, running.study, running.bars.log)
        if best is not None:
            _export(running, *best)


def remove_unfinished(running: RunningStudy) -> None:
    """Remove what a worker that was killed while it exported left."""
    if _folder(running).is_dir():
        with writing_to(_folder(running)):
            pass


def keep_if_best(running: RunningStudy, trial_folder: TrialFolder, result: CheckpointResult) -> None:
    """Export a checkpoint that is better than every other one of the study."""
    if not result.diverged and is_best_so_far(running.study, result.objective):
        _export(running, trial_folder, result)


def is_best_so_far(study: Study, objective: float) -> bool:
    """Whether an objective is above those of all checkpoints that the storage knows, those of other workers too."""
    trials = study.get_trials(deepcopy=False)
    ended = [trial.value for trial in trials if trial.value is not None]
    return all(objective > other for other in [*ended, *(v for t in trials for v in t.intermediate_values.values())])


def _folder(running: RunningStudy) -> Path:
    return running.definition.folder / "best"


def _export(running: RunningStudy, trial_folder: TrialFolder, result: CheckpointResult) -> None:
    """Export a checkpoint; a failure is logged, as the finals may choose another one."""
    context, settings = running.session.context, running.definition.settings
    try:
        path = export_best_so_far(
            trial_folder,
            result,
            context.dataset,
            context.model,
            _folder(running),
            settings.name,
            running.session.export.dtype,
        )
    except ExportError as error:
        running.bars.log(f"the best LoRA so far is not exported: {error}")
        return
    limits = f"; it breaks a limit: {', '.join(result.broken)}" if result.broken else ""
    running.bars.log(f"  the best LoRA so far: {path}{limits}")
