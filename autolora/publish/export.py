"""Writes a trial's best checkpoint as a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import as_lora, distance, has_output_norms
from autolora.adapters.formats import layer_weights
from autolora.adapters.read import lora_of
from autolora.data.concepts import Dataset
from autolora.errors import ExportError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.metadata import ExportFacts
from autolora.export.write import DTYPES, ExportedFiles, export_lora
from autolora.models.base import BaseModel
from autolora.sampling import RenderRequest, render

PLAIN_LORA_SUFFIX = "-lora"  # is appended to the exported file's name
DORA_SUFFIX = "-dora"  # is appended to the name of a DoRA, whose plain LoRA is the main file
PLAIN_LORA_DIMS = (8, 16, 32, 64, 128)
PLAIN_LORA_DISTANCE = 0.02  # of the weight change's norm: near enough


@dataclass(frozen=True)
class PlainLora:
    """A plain LoRA beside an export of another kind, for the programs that cannot read that kind."""

    files: ExportedFiles
    state: State
    dim: int
    apart: float  # the distance to the exported adapter, as a share of the weight change's norm

    @property
    def path(self) -> Path:
        """The file."""
        return self.files.path


def export_names(state: State, trigger: str) -> tuple[str, str]:
    """The names of an adapter's file and of the plain LoRA beside it.

    The main file has the trigger's name. It is the plain LoRA where no common program reads the adapter's kind.
    """
    if has_output_norms(state):
        return f"{trigger}{DORA_SUFFIX}", trigger
    return trigger, f"{trigger}{PLAIN_LORA_SUFFIX}"


def export_best(
    trial_folder: TrialFolder, result: CheckpointResult, session: Session, folder: Path, study: str
) -> ExportedFiles:
    """Export a checkpoint with its metadata and a preview image; the checkpoint is left loaded in the adapter.

    Args:
        trial_folder: the trial.
        result: its checkpoint, as it was scored last.
        session: what it was trained and scored on.
        folder: receives the file, its sidecar and its preview.
        study: the name of the study or run, kept in the metadata.

    Raises:
        ExportError: the weights cannot be written.
        StorageError: the folder cannot be written.
    """
    dataset, model, run = session.context.dataset, session.context.model, trial_folder.run
    state, dtype = trial_folder.load(result), DTYPES[session.export.dtype]
    name, _ = export_names(state, dataset.trigger)
    session.context.adapter.load(state)
    facts, preview = export_facts(trial_folder, result, dataset, model, study), _preview(session, result.weight)
    return export_lora(state, run, dataset, model, folder, name, facts=facts, preview=preview, dtype=dtype)


def export_plain_lora(
    trial_folder: TrialFolder, result: CheckpointResult, session: Session, folder: Path, study: str
) -> PlainLora:
    """Export the plain LoRA that comes as near to a checkpoint of another kind as its dim allows.

    Raises:
        ExportError: it cannot be computed or written.
        StorageError: the folder cannot be written.
    """
    dataset, model, run = session.context.dataset, session.context.model, trial_folder.run
    state, kind = trial_folder.load(result), type(run.adapter).__name__
    try:
        plain_state, dim, apart = nearest_lora(state, layer_weights(model.modules))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ExportError(f"no plain LoRA can be computed of this {kind} ({error})") from error
    facts = export_facts(trial_folder, result, dataset, model, study)
    plain_facts = replace(
        facts,
        description=f"{facts.description}; a plain LoRA of dim {dim} in the place of its {kind}",
        metadata={**facts.metadata, "twin_of": kind, "twin_distance": f"{apart:.4f}"},
    )
    session.context.adapter.load(plain_state)
    files = export_lora(
        plain_state,
        replace(run, adapter=lora_of(plain_state)),
        dataset,
        model,
        folder,
        export_names(state, dataset.trigger)[1],
        facts=plain_facts,
        preview=_preview(session, result.weight),
        dtype=DTYPES[session.export.dtype],
    )
    return PlainLora(files, plain_state, dim, apart)


def export_facts(
    trial_folder: TrialFolder, result: CheckpointResult, dataset: Dataset, model: BaseModel, study: str
) -> ExportFacts:
    """What the file's metadata says of a checkpoint."""
    triggers = [dataset.class_word, dataset.trigger, *(concept.trigger for concept in dataset.concepts)]
    return ExportFacts(
        activation_text=", ".join(dict.fromkeys(triggers)),
        preferred_weight=result.weight,
        description=f"LoRA of {dataset.trigger} by autolora, recipe {trial_folder.run.name}: {result.verdict}",
        step=result.step,
        metadata={
            "study": study,
            "score": result.summary,
            "checkpoint": result.describe_place,
            "base_hash": model.base_hash,
        },
    )


def _preview(session: Session, weight: float) -> Image.Image:
    """A render of the first prompt with a trigger by the loaded adapter."""
    prompt = session.select("trigger")[0]
    request = RenderRequest(prompt.prompt, prompt.seeds[0], weight)
    return Image.fromarray(
        render(session.context.model, [request], session.render_settings, session.context.adapter)[0]
    )


def nearest_lora(state: State, weights: Mapping[str, Tensor]) -> tuple[State, int, float]:
    """The plain LoRA of the smallest dim that comes near enough to an adapter, its dim, and its distance."""
    for dim in PLAIN_LORA_DIMS:
        plain = as_lora(state, weights, dim)
        apart = distance(plain, state, weights)
        if apart <= PLAIN_LORA_DISTANCE:
            break
    return plain, dim, apart
