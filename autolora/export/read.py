"""Reads LoRA files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from autolora.adapters.base import TARGETS, State, in_text_encoder
from autolora.adapters.foreign import from_diffusers, from_lycoris, in_diffusers_names, in_lycoris_parts
from autolora.adapters.formats import from_kohya, layer_paths, layer_shapes, layer_weights
from autolora.adapters.lora import LoRA
from autolora.errors import ExportError
from autolora.models.base import BaseModel


def read_lora(path: Path, model: BaseModel) -> State:
    """Read a LoRA of kohya's, diffusers', peft's or LyCORIS' format as an adapter state for this model, in float32.

    Raises:
        ExportError: no file, a broken or cut one, another format, or made for another base model.
    """
    path = path.expanduser()
    if not path.exists():
        raise ExportError(f"{path} does not exist: give the path of a .safetensors LoRA file")
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        hint = f", for example {inside[0]}" if inside else ""
        raise ExportError(f"{path} is a folder: give the path of a .safetensors LoRA file{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        kind = "is cut short or broken" if path.suffix == ".safetensors" else "is no .safetensors file"
        raise ExportError(f"{path} {kind} ({error}): download or export it again") from error
    shapes = layer_shapes(model.modules)
    try:
        if in_lycoris_parts(tensors):
            return from_lycoris(tensors, model.architecture, layer_weights(model.modules))
        if in_diffusers_names(tensors):
            return from_diffusers(tensors, metadata, path, shapes)
        return from_kohya(tensors, model.architecture, shapes)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file.

    Raises:
        ExportError: the file is missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({error}): download or export it again") from error


def lora_of(state: State) -> LoRA:
    """The adapter settings that have room for a state: its largest rank and the kinds of layers it changes."""
    paths = layer_paths(state)
    dim = max(state[f"{path}.lora_down.weight"].shape[0] for path in paths)
    alphas = [
        float(state[f"{path}.alpha"]) * dim / state[f"{path}.lora_down.weight"].shape[0]
        for path in paths
        if f"{path}.alpha" in state
    ]
    targets = tuple(kind for kind, suffixes in TARGETS.items() if any(path.endswith(suffixes) for path in paths))
    return LoRA(
        dim=dim,
        alpha=alphas[0] if alphas else float(dim),
        targets=targets or tuple(TARGETS),
        text_encoder=any(in_text_encoder(path) for path in paths),
    )
