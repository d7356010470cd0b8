"""Writes a LoRA for other programs: `.safetensors`, with the `.json` and `.png` sidecars that they show."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.formats import layer_paths
from autolora.adapters.read import as_state
from autolora.data.concepts import Dataset
from autolora.errors import ExportError
from autolora.export.families import family_of
from autolora.export.key_names import file_tensors
from autolora.export.metadata import ExportFacts, build_metadata, hashes, thumbnail
from autolora.export.settings import DTYPE_NAMES
from autolora.files import atomic_path, write_atomic
from autolora.models.base import BaseModel
from autolora.train.run import Run

# Characters that some file system forbids, or that have a meaning in `<lora:name:0.8>` prompts.
_UNSAFE = re.compile(r'[<>:"/\\|?*,\x00-\x1f]+')
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class ExportedFiles:
    """The files of one export."""

    path: Path
    sidecar: Path
    preview: Path | None  # None if the export was given no image
    layers: int
    size: int  # bytes of the .safetensors
    diffusers: Path | None = None  # the copy in diffusers' format; None if none was written

    def moved(self, old: Path, new: Path) -> ExportedFiles:
        """The same files with their paths after they were moved from the folder `old` to `new`."""
        paths = {name: getattr(self, name) for name in ("path", "sidecar", "preview", "diffusers")}
        return replace(self, **{name: new / path.relative_to(old) for name, path in paths.items() if path})


def export_lora(
    state: State,
    run: Run,
    dataset: Dataset,
    model: BaseModel,
    out_dir: Path,
    name: str,
    *,
    facts: ExportFacts,
    preview: Image.Image | None = None,
    dtype: torch.dtype = torch.float16,
    created_at: datetime | None = None,
) -> ExportedFiles:
    """Write an adapter in the file format of its family, with metadata and sidecars; the weights are written last.

    Each file is written atomically. The same adapter with the same `created_at` (by default now) gives the same bytes.

    Args:
        state: the adapter.
        run: the recipe that trained it.
        dataset: the images that it was trained on.
        model: the base model.
        out_dir: where the files go.
        name: the name of the LoRA; characters that a file name cannot have are replaced.
        facts: what the metadata and the sidecar say about it.
        preview: the image that programs show for it.
        dtype: the number format of the factors.
        created_at: the time in the metadata.

    Raises:
        ExportError: the adapter holds infinities or NaN, or values too large for `dtype`.
        StorageError: the folder cannot be written.
    """
    stem = file_stem(name)
    tensors = in_dtype(file_tensors(state, model.architecture), dtype)
    metadata = build_metadata(run, dataset, model, stem, facts, created_at or datetime.now(UTC))
    metadata |= hashes(tensors, metadata)
    path, sidecar, image = export_paths(out_dir, stem)
    if preview is not None:
        metadata["modelspec.thumbnail"] = thumbnail(preview)
        with atomic_path(image) as temporary:
            preview.convert("RGB").save(temporary, "PNG")
    else:
        image.unlink(missing_ok=True)  # an earlier export's image shows another LoRA
    write_atomic(sidecar, _sidecar(model, facts))
    write_atomic(path, with_sorted_metadata(safetensors.torch.save(tensors, metadata)))
    layers = len(layer_paths(state))
    return ExportedFiles(path, sidecar, image if preview is not None else None, layers, path.stat().st_size)


def export_paths(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    """The paths of an export's weights, sidecar and image."""
    return folder / f"{stem}.safetensors", folder / f"{stem}.json", folder / f"{stem}.png"


def file_stem(name: str) -> str:
    """Replace the characters of a name that a file system or a prompt syntax does not allow.

    Raises:
        ExportError: no character is left.
    """
    stem = _UNSAFE.sub("_", name).strip(" ._")
    if not stem:
        raise ExportError(f"{name!r} is no usable file name: give a name with letters or digits")
    return stem


def in_dtype(tensors: State, dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert an adapter's factors to `dtype`.

    Alphas stay in float32: rounding an alpha would change the scale of its whole layer.

    Raises:
        ExportError: the adapter holds infinities or NaN, or values too large for `dtype`.
    """
    converted = {}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{key} holds infinities or NaN: this checkpoint diverged; export an earlier one")
        if key.endswith(".on_input"):
            value = tensor.to(torch.int64)  # LyCORIS' type for it
        else:
            value = tensor.float() if key.endswith(".alpha") else tensor.to(dtype)
        if not torch.isfinite(value).all():
            raise ExportError(f"{key} is too large for {str(dtype).removeprefix('torch.')}; export as float32")
        converted[key] = value.contiguous()
    return converted


def as_in_file(state: State, model: BaseModel, dtype: torch.dtype) -> State:
    """Round an adapter to what a file of a `dtype` holds of it; the result is in float32.

    Raises:
        ExportError: the adapter holds infinities or NaN, or values too large for `dtype`.
    """
    return as_state(in_dtype(file_tensors(state, model.architecture), dtype), {}, Path(), model)


def with_sorted_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, whose order changes from process to process.

    Layout: 8 bytes of header length, the header as JSON padded with spaces to a multiple of 8 bytes, the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _sidecar(model: BaseModel, facts: ExportFacts) -> str:
    """The JSON that A1111, Forge and InvokeAI read beside the file."""
    content = {
        "description": facts.description,
        "sd version": family_of(model).webui,
        "activation text": facts.activation_text,
        "preferred weight": facts.preferred_weight,
        "notes": facts.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
