"""Read LoRA files of any common program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from autolora.adapters.base import State
from autolora.adapters.deltas import parts_by_layer
from autolora.adapters.formats import from_kohya, is_transformer, layer_shapes, layers_of
from autolora.adapters.import_formats import (
    from_diffusers,
    from_lycoris,
    in_diffusers_names,
    in_lycoris_parts,
    in_original_names,
)
from autolora.adapters.kinds import LoRA
from autolora.adapters.targets import TARGETS, in_text_encoder
from autolora.errors import ExportError
from autolora.files import finished
from autolora.models.base import BaseModel
from autolora.models.pipelines import convert_lora


def read_lora(path: Path, model: BaseModel) -> State:
    """Read a LoRA of kohya's, diffusers', peft's or LyCORIS' format as an adapter state for this model, in float32.

    A layer keeps its kind where autolora can train that kind; otherwise it becomes the plain LoRA of the same change,
    with the rank that this needs.

    Raises:
        ExportError: the file is missing or broken, has another format, or was made for another base model.
    """
    tensors, metadata = read_file(path)
    try:
        return as_state(tensors, metadata, path, model)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def as_state(tensors: State, metadata: Mapping[str, str], path: Path, model: BaseModel) -> State:
    """Convert a file's tensors to an adapter state, as `read_lora` does.

    Args:
        tensors: the file's tensors.
        metadata: the file's metadata.
        path: the file's path; peft's settings lie beside it.
        model: the base model.

    Raises:
        ExportError: the file has another format, or was made for another base model.
    """
    if is_transformer(model.architecture) and in_original_names(tensors):
        tensors = convert_lora(tensors, model.architecture)
    if in_lycoris_parts(tensors):
        return from_lycoris(tensors, model.architecture, layers_of(model.modules))
    if in_diffusers_names(tensors):
        return from_diffusers(tensors, metadata, path, layers_of(model.modules))
    return from_kohya(tensors, model.architecture, layer_shapes(model.modules))


def read_file(path: Path) -> tuple[State, dict[str, str]]:
    """Read the tensors and metadata of a .safetensors file without converting them.

    Raises:
        ExportError: the file is missing or broken.
    """
    path = path.expanduser()
    if not path.exists():
        raise ExportError(f"{path} does not exist: give the path of a .safetensors LoRA file")
    if path.is_dir():
        candidates = finished(path.glob("*.safetensors"))
        hint = f", for example {candidates[0]}" if candidates else ""
        raise ExportError(f"{path} is a folder: give the path of a .safetensors LoRA file{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - `file` is not a mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        kind = "is cut short or broken" if path.suffix == ".safetensors" else "is not a .safetensors file"
        raise ExportError(f"{path} {kind} ({error}): download or export it again") from error
    _refuse_broken_numbers(path, tensors)
    return tensors, metadata


def _refuse_broken_numbers(path: Path, tensors: State) -> None:
    """Refuse weights that a training which diverged left, and an alpha of several numbers.

    Raises:
        ExportError: names the first such tensor.
    """
    for key, tensor in tensors.items():
        if key.endswith(".alpha") and tensor.numel() != 1:
            raise ExportError(f"{path}: {key} has {tensor.numel()} numbers instead of one: export or download it again")
        if not tensor.to(torch.float32).isfinite().all():
            raise ExportError(
                f"{path}: {key} holds NaN or infinite weights, as a training that diverged leaves: use an earlier "
                "checkpoint"
            )


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a .safetensors file.

    Raises:
        ExportError: the file is missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({error}): download or export it again") from error


def lora_of(state: State) -> LoRA:
    """Return the settings of a plain LoRA that a state can be loaded into: its largest rank and its targets."""
    layers = parts_by_layer(state)
    dim, alpha = max(_rank_and_alpha(parts) for parts in layers.values())
    targets, left = [], set(layers)
    for name, suffixes in TARGETS.items():  # a later target may be a part of an earlier one
        if own := {path for path in left if path.endswith(suffixes)}:
            targets.append(name)
            left -= own
    return LoRA(
        dim=dim,
        alpha=alpha,
        targets=tuple(targets or TARGETS),
        text_encoder=any(in_text_encoder(path) for path in layers),
    )


def _rank_and_alpha(parts: State) -> tuple[int, float]:
    rank = len(parts["lora_down.weight"]) if "lora_down.weight" in parts else 1
    return rank, float(parts.get("alpha", rank))
