"""Writes the copy of a LoRA that diffusers and peft would save: `pytorch_lora_weights.safetensors` in a folder."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from autolora.adapters.base import State
from autolora.export.key_names import to_diffusers
from autolora.export.write import in_dtype
from autolora.files import write_atomic

FOLDER = "diffusers"  # beside the exported LoRA
NAME = "pytorch_lora_weights.safetensors"  # the name that `load_lora_weights(FOLDER)` looks for


def write_diffusers(state: State, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a LoRA, LoCon or DoRA in diffusers' format, atomically, and return the file.

    Raises:
        ExportError: another kind of adapter, or values too large for `dtype`.
        StorageError: the folder cannot be written.
    """
    file = folder / NAME
    write_atomic(file, safetensors.torch.save(in_dtype(to_diffusers(state), dtype), {"format": "pt"}))
    return file
