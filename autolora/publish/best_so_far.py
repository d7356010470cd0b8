"""Exports a checkpoint while a study still runs, without rendering and without a change to the adapter in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from autolora.data.concepts import Dataset
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.samples import read_samples
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.verify import verify_deltas
from autolora.export.write import DTYPES, export_lora
from autolora.files import atomic_files
from autolora.models.base import BaseModel
from autolora.publish.export import export_facts, export_names
from autolora.publish.roundtrip import remove_stale, writing_to


def export_best_so_far(
    trial_folder: TrialFolder,
    result: CheckpointResult,
    dataset: Dataset,
    model: BaseModel,
    folder: Path,
    study: str,
    dtype: str,
) -> Path:
    """Export a kept checkpoint, verified by its weight changes; it replaces an earlier export in one step.

    Args:
        trial_folder: the trial.
        result: its checkpoint, as the search scored it.
        dataset: the images that it was trained on.
        model: the base model; an adapter may be attached.
        folder: receives the LoRA file, its sidecar and its preview.
        study: the name of the study, kept in the metadata.
        dtype: the number format of the factors.

    Returns:
        The path of the LoRA file.

    Raises:
        ExportError: the file is not what was trained; the folder stays as it was.
        StorageError: the folder cannot be written.
    """
    state, facts = trial_folder.load(result), export_facts(trial_folder, result, dataset, model, study)
    facts = replace(facts, description=f"{facts.description}; the best of an unfinished study")
    with writing_to(folder):
        with atomic_files(folder) as hidden:
            exported = export_lora(
                state,
                trial_folder.run,
                dataset,
                model,
                hidden,
                export_names(state, dataset.trigger)[0],
                facts=facts,
                preview=_preview(trial_folder, result),
                dtype=DTYPES[dtype],
            )
            verify_deltas(state, exported.path, model)
        remove_stale(folder, dataset.trigger, [exported])
        (folder / "model_card.md").unlink(missing_ok=True)  # it describes an earlier export
    return folder / exported.path.name


def _preview(trial_folder: TrialFolder, result: CheckpointResult) -> Image.Image | None:
    """The first render with a trigger that the checkpoint was scored by; None if it was not rendered."""
    samples = read_samples(trial_folder.samples, f"{result.step}")
    return next((image for sample, image in samples if sample.group == "trigger"), None)
