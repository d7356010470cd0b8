"""Writes a trial's best checkpoint as a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import as_lora, distance, is_plain
from autolora.adapters.formats import layer_weights
from autolora.adapters.read import lora_of
from autolora.data.concepts import Dataset
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.diffusers_copy import FOLDER, write_diffusers
from autolora.export.key_names import has_diffusers_format
from autolora.export.metadata import ExportFacts
from autolora.export.settings import ExportSettings
from autolora.export.write import DTYPES, ExportedFiles, export_lora
from autolora.models.base import BaseModel
from autolora.sampling import RenderRequest, render

PLAIN_LORA_SUFFIX = "-lora"  # is appended to the exported file's name
PLAIN_LORA_DIMS = (8, 16, 32, 64, 128)
PLAIN_LORA_DISTANCE = 0.02  # of the weight change's norm: near enough


@dataclass(frozen=True)
class PlainLora:
    """A plain LoRA beside an export of another kind, for the programs that cannot read that kind."""

    path: Path
    state: State
    dim: int
    apart: float  # the distance to the exported adapter, as a share of the weight change's norm


def export_best(
    trial_folder: TrialFolder, result: CheckpointResult, session: Session, folder: Path, study: str
) -> tuple[ExportedFiles, PlainLora | None]:
    """Export a checkpoint with its metadata and a preview image; the checkpoint is left loaded in the adapter.

    An adapter that is no plain LoRA gets a plain LoRA beside it, as near as its dim allows. If a copy for diffusers is
    asked for, a LoRA or DoRA is copied itself; for another kind the plain LoRA is copied.

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
    state, name, dtype = trial_folder.load(result), dataset.trigger, DTYPES[session.export.dtype]
    session.context.adapter.load(state)
    facts, preview = export_facts(trial_folder, result, dataset, model, study), _preview(session, result.weight)
    exported = export_lora(state, run, dataset, model, folder, name, facts=facts, preview=preview, dtype=dtype)
    if is_plain(state):
        return _with_copy(exported, state, session.export), None
    kind = type(run.adapter).__name__
    plain_state, dim, apart = nearest_lora(state, layer_weights(model.modules))
    plain_run = replace(run, adapter=lora_of(plain_state))
    plain_facts = replace(
        facts,
        description=f"{facts.description}; a plain LoRA of dim {dim} in the place of its {kind}",
        metadata={**facts.metadata, "twin_of": kind, "twin_distance": f"{apart:.4f}"},
    )
    plain_name = f"{name}{PLAIN_LORA_SUFFIX}"
    plain = export_lora(
        plain_state, plain_run, dataset, model, folder, plain_name, facts=plain_facts, preview=preview, dtype=dtype
    )
    copied = state if has_diffusers_format(state) else plain_state
    return _with_copy(exported, copied, session.export), PlainLora(plain.path, plain_state, dim, apart)


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


def _with_copy(exported: ExportedFiles, state: State, settings: ExportSettings) -> ExportedFiles:
    """The exported files with a copy in diffusers' format, if the settings ask for one."""
    if not settings.diffusers:
        return exported
    copy = write_diffusers(state, exported.path.parent / FOLDER, DTYPES[settings.dtype])
    return replace(exported, diffusers=copy)


def nearest_lora(state: State, weights: Mapping[str, Tensor]) -> tuple[State, int, float]:
    """The plain LoRA of the smallest dim that comes near enough to an adapter, its dim, and its distance."""
    for dim in PLAIN_LORA_DIMS:
        plain = as_lora(state, weights, dim)
        apart = distance(plain, state, weights)
        if apart <= PLAIN_LORA_DISTANCE:
            break
    return plain, dim, apart
