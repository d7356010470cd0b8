"""Writes a trial's best checkpoint as the file that people use."""

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
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.diffusers_copy import FOLDER, write_diffusers
from autolora.export.key_names import has_format
from autolora.export.metadata import ExportFacts
from autolora.export.settings import ExportSettings
from autolora.export.write import DTYPES, Exported, export_lora
from autolora.sampling import RenderRequest, render

TWIN_SUFFIX = "-lora"  # of its name
TWIN_DIMS = (8, 16, 32, 64, 128)
TWIN_DISTANCE = 0.02  # of the changes' norm


@dataclass(frozen=True)
class PlainLora:
    """A plain LoRA beside an export of another kind, for the programs that do not read that; `apart` is a share."""

    path: Path
    state: State
    dim: int
    apart: float


def export_best(
    record: TrialFolder, best: CheckpointResult, session: Session, folder: Path, study: str
) -> tuple[Exported, PlainLora | None]:
    """Export a record's best checkpoint with its words, figures and a picture; it is left loaded in the adapter.

    What is no plain LoRA gets one beside it, as near as its dim allows. The copy for diffusers, where one is asked for,
    is of the LoRA or DoRA itself, of another kind that plain LoRA.

    Args:
        record: the trial.
        best: its best checkpoint as it was judged last.
        work: what it was trained and scored on.
        folder: where the file, its sidecar and its picture go.
        study: the name of the study or run, kept in the metadata.

    Raises:
        ExportError: the weights cannot be written.
        StorageError: the folder cannot be written.
    """
    dataset, model, adapter = session.context.dataset, session.context.model, session.context.adapter
    state = record.load(best)
    adapter.load(state)
    triggers = ", ".join(dict.fromkeys([dataset.class_word, dataset.trigger, *(c.trigger for c in dataset.concepts)]))
    probe = session.of("trigger")[0]
    preview = render(
        model, [RenderRequest(probe.prompt, probe.seeds[0], best.weight)], session.render_settings, adapter
    )[0]
    card = ExportFacts(
        activation_text=triggers,
        preferred_weight=best.weight,
        description=f"LoRA of {dataset.trigger} by autolora, recipe {record.run.name}: {best.verdict}",
        step=best.step,
        facts={"study": study, "score": best.summary, "checkpoint": best.describe_place, "base_hash": model.base_hash},
    )
    picture, name, dtype = Image.fromarray(preview), dataset.trigger, DTYPES[session.export.dtype]
    exported = export_lora(state, record.run, dataset, model, folder, name, card=card, preview=picture, dtype=dtype)
    if is_plain(state):
        return _with_copy(exported, state, session.export), None
    kind = type(record.run.adapter).__name__
    twin, dim, apart = nearest_lora(state, layer_weights(model.modules))
    note = f"{card.description}; a plain LoRA of dim {dim} in the place of its {kind}"
    run = replace(record.run, adapter=lora_of(twin))
    plain = replace(card, description=note, facts={**card.facts, "twin_of": kind, "twin_distance": f"{apart:.4f}"})
    written = export_lora(
        twin, run, dataset, model, folder, f"{name}{TWIN_SUFFIX}", card=plain, preview=picture, dtype=dtype
    )
    readable = state if has_format(state) else twin
    return _with_copy(exported, readable, session.export), PlainLora(written.path, twin, dim, apart)


def _with_copy(exported: Exported, state: State, settings: ExportSettings) -> Exported:
    """With the copy in diffusers' format, where that is asked for."""
    if not settings.diffusers:
        return exported
    copy = write_diffusers(state, exported.path.parent / FOLDER, DTYPES[settings.dtype])
    return replace(exported, diffusers=copy)


def nearest_lora(state: State, weights: Mapping[str, Tensor]) -> tuple[State, int, float]:
    """The plain LoRA of the smallest rank that comes near enough to an adapter, its rank, and how far it still is."""
    for dim in TWIN_DIMS:
        twin = as_lora(state, weights, dim)
        apart = distance(twin, state, weights)
        if apart <= TWIN_DISTANCE:
            break
    return twin, dim, apart
