"""The same LoRA as diffusers and peft themselves save one: `pytorch_lora_weights.safetensors` in a folder."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from autolora.adapters.base import State
from autolora.adapters.changes import layer_scale, parts_by_layer
from autolora.errors import ExportError
from autolora.export.write import in_dtype
from autolora.files import write_atomic

NAME = "pytorch_lora_weights.safetensors"  # what `load_lora_weights(FOLDER)` looks for
READ = frozenset({"lora_down.weight", "lora_up.weight", "dora_scale", "alpha"})  # the parts that the format has


def has_format(state: State) -> bool:
    """Whether diffusers has a format for an adapter: LoRA, LoCon or DoRA."""
    return all(parts.keys() <= READ for parts in parts_by_layer(state).values())


def write_diffusers(state: State, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write LoRA, LoCon or DoRA in diffusers' format, atomically, and return the file.

    Each layer's scale is put into its factors, so that alpha is its rank: what diffusers takes where a file says
    nothing, in every version.

    Raises:
        ExportError: another kind of adapter, or values too large for `dtype`.
        StorageError: the folder cannot be written.
    """
    if not has_format(state):
        raise ExportError("diffusers has a format for LoRA, LoCon and DoRA only")
    tensors: State = {}
    for path, parts in parts_by_layer(state).items():
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        root = layer_scale(parts, len(down)) ** 0.5
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = down * root, up * root
        if "dora_scale" in parts:
            outputs = parts["dora_scale"].flatten()
            shape = (-1,) if up.dim() == 2 else (1, -1, *(1,) * (up.dim() - 2))  # as peft keeps it
            tensors[f"{path}.lora_magnitude_vector"] = outputs.view(shape)
    file = folder / NAME
    write_atomic(file, safetensors.torch.save(in_dtype(tensors, dtype), {"format": "pt"}))
    return file
