"""Read LoRA files of any common program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from autolora.adapters.base import State
from autolora.adapters.deltas import parts_by_layer
from autolora.adapters.file_keys import (
    describe_unread,
    in_diffusers_names,
    in_lycoris_parts,
    unread_keys,
    without_unread,
)
from autolora.adapters.formats import from_kohya, has_text_encoder, is_transformer, layer_shapes, layers_of
from autolora.adapters.import_formats import from_diffusers, from_names, has_fused_layers
from autolora.adapters.kinds import LoRA
from autolora.adapters.targets import TARGETS, in_text_encoder
from autolora.errors import ExportError
from autolora.files import expand_user, finished
from autolora.models.base import BaseModel


@dataclass(frozen=True, kw_only=True)
class ListedLayers(LoRA):
    """A LoRA of the listed layers, which a file of another program may have outside of every target."""

    paths: tuple[str, ...] = ()

    def adapts(self, path: str) -> bool:
        """Return whether the layer of this path is changed."""
        return path in self.paths


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
    architecture, layers = model.architecture, layers_of(model.modules)
    tensors = _in_numbers_of_torch(without_unread(tensors, has_text_encoder(architecture)))
    if (
        in_diffusers_names(tensors)
        and not in_lycoris_parts(tensors)
        and not has_fused_layers(tensors, layers, architecture)
    ):
        return from_diffusers(tensors, metadata, path, architecture, layers)
    if in_lycoris_parts(tensors) or in_diffusers_names(tensors) or is_transformer(architecture):
        return from_names(tensors, metadata, path, architecture, layers)
    return from_kohya(tensors, architecture, layer_shapes(model.modules))


def unread(path: Path, model: BaseModel) -> str:
    """Say what a file changes that autolora does not read and other programs do; empty if there is nothing.

    Raises:
        ExportError: the file is missing or broken.
    """
    tensors, _ = read_file(path)
    return describe_unread(unread_keys(tensors, has_text_encoder(model.architecture)))


def _in_numbers_of_torch(tensors: State) -> State:
    """Return a file's tensors with 8-bit numbers as 32-bit ones, which torch computes with, and alphas as scalars."""
    converted: State = {}
    for key, tensor in tensors.items():
        value = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
        converted[key] = value.reshape(()) if key.endswith(".alpha") else value
    return converted


def read_file(path: Path) -> tuple[State, dict[str, str]]:
    """Read the tensors and metadata of a .safetensors file without converting them.

    Raises:
        ExportError: the file is missing or broken.
    """
    path = expand_user(path)
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
    """Return the settings of a plain LoRA that a state can be loaded into: its largest rank and its targets.

    A file may change layers that no target has, such as the embeddings of the time: then they are listed by path.
    """
    layers = parts_by_layer(state)
    dim, alpha = max(_rank_and_alpha(parts) for parts in layers.values())
    targets, left = [], set(layers)
    for name, suffixes in TARGETS.items():  # a later target may be a part of an earlier one
        if own := {path for path in left if path.endswith(suffixes) and path.count(".") > 1}:
            targets.append(name)
            left -= own
    text_encoder = any(in_text_encoder(path) for path in layers)
    alpha = alpha if alpha > 0 else float(dim)  # a merged file may have other ones; each layer has its own
    if left:
        return ListedLayers(dim=dim, alpha=alpha, text_encoder=text_encoder, paths=tuple(layers))
    return LoRA(dim=dim, alpha=alpha, text_encoder=text_encoder, targets=tuple(targets))


def _rank_and_alpha(parts: State) -> tuple[int, float]:
    rank = len(parts["lora_down.weight"]) if "lora_down.weight" in parts else 1
    return rank, float(parts.get("alpha", rank))
