"""Writes a LoRA for other programs: `.safetensors`, and beside it the `.json` and `.png` that they show."""

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
from autolora.export.key_names import file_tensors
from autolora.export.metadata import ExportFacts, build_metadata, family_of, hashes, thumbnail
from autolora.export.settings import DTYPE_NAMES
from autolora.files import atomic_path, write_atomic
from autolora.models.base import BaseModel
from autolora.train.run import Run

# Forbidden in file names on some system, or of a meaning of their own in `<lora:name:0.8>` prompts.
_UNSAFE = re.compile(r'[<>:"/\\|?*,\x00-\x1f]+')
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class Exported:
    """The files of one export; `preview` is None if there was no picture."""

    path: Path
    sidecar: Path
    preview: Path | None
    layers: int
    size: int  # bytes of the .safetensors
    diffusers: Path | None = None  # the copy in diffusers' format, where one was asked for

    def moved(self, old: Path, new: Path) -> Exported:
        """The same files where they lie after they were moved from one folder to another."""
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
    card: ExportFacts,
    preview: Image.Image | None = None,
    dtype: torch.dtype = torch.float16,
    made: datetime | None = None,
) -> Exported:
    """Write an adapter in the format of its family, with metadata and sidecars, each atomically, the weights last.

    The same adapter and `made` (now, by default) give the same bytes.

    Raises:
        ExportError: the adapter holds infinities or NaN, or values too large for `dtype`.
        StorageError: the folder cannot be written.
    """
    stem = file_stem(name)
    tensors = in_dtype(file_tensors(state, model.architecture), dtype)
    metadata = build_metadata(run, dataset, model, stem, card, made or datetime.now(UTC))
    metadata |= hashes(tensors, metadata)
    path, sidecar, picture = files_of(out_dir, stem)
    if preview is not None:
        metadata["modelspec.thumbnail"] = thumbnail(preview)
        with atomic_path(picture) as temporary:
            preview.convert("RGB").save(temporary, "PNG")
    else:
        picture.unlink(missing_ok=True)  # of an earlier export: it would show another LoRA
    write_atomic(sidecar, _sidecar(model, card))
    write_atomic(path, in_order(safetensors.torch.save(tensors, metadata)))
    layers = len(layer_paths(state))
    return Exported(path, sidecar, picture if preview is not None else None, layers, path.stat().st_size)


def files_of(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    """Where an export's weights, sidecar and picture lie."""
    return folder / f"{stem}.safetensors", folder / f"{stem}.json", folder / f"{stem}.png"


def file_stem(name: str) -> str:
    """A name that every file system and every prompt syntax takes.

    Raises:
        ExportError: nothing is left of it.
    """
    stem = _UNSAFE.sub("_", name).strip(" ._")
    if not stem:
        raise ExportError(f"{name!r} is no usable file name: give one with letters or digits")
    return stem


def in_dtype(tensors: State, dtype: torch.dtype) -> dict[str, Tensor]:
    """Factors in `dtype`; alphas stay float32, since half precision would round them for every layer alike."""
    found = {}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{key} holds infinities or NaN: this checkpoint diverged; export an earlier one")
        if key.endswith(".on_input"):
            kept = tensor.to(torch.int64)  # as LyCORIS keeps it
        else:
            kept = tensor.float() if key.endswith(".alpha") else tensor.to(dtype)
        if not torch.isfinite(kept).all():
            raise ExportError(f"{key} is too large for {str(dtype).removeprefix('torch.')}; export as float32")
        found[key] = kept.contiguous()
    return found


def as_in_file(state: State, model: BaseModel, dtype: torch.dtype) -> State:
    """An adapter as it is read back from its file of a `dtype`, in float32.

    Raises:
        ExportError: it holds infinities or NaN, or values too large for `dtype`.
    """
    return as_state(in_dtype(file_tensors(state, model.architecture), dtype), {}, Path(), model)


def in_order(content: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes it in an order that changes from run to run.

    Layout: 8 bytes of header length, the header as JSON padded with spaces to a multiple of 8, the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _sidecar(model: BaseModel, card: ExportFacts) -> str:
    """What A1111, Forge and InvokeAI read beside the file."""
    content = {
        "description": card.description,
        "sd version": family_of(model).webui,
        "activation text": card.activation_text,
        "preferred weight": card.preferred_weight,
        "notes": card.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
