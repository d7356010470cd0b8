"""A LoRA of smaller ranks: the nearest one by SVD, or of a DyLoRA the first ranks as they were trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from autolora.adapters.base import State
from autolora.adapters.deltas import is_plain, ordered_factors, parts_by_layer
from autolora.adapters.formats import Weights, is_transformer
from autolora.adapters.low_rank import cut
from autolora.export.key_names import file_tensors
from autolora.export.metadata import hashes
from autolora.export.write import in_dtype, with_sorted_metadata
from autolora.files import write_atomic
from autolora.models.base import BaseModel

# Metadata that no longer holds after a change of rank.
STALE_KEYS = ("autolora.score", "autolora.twin_of", "autolora.twin_distance", "lora_adapter_metadata", "format")
MAX_RANK = 128  # the highest rank tried for a plain LoRA that stands for another kind of adapter


def dylora_unit(metadata: Mapping[str, str]) -> int | None:
    """The unit of a DyLoRA that autolora exported; None for every other file."""
    try:
        unit = json.loads(metadata.get("autolora.settings", "{}"))["adapter"]["unit"]
    except (ValueError, KeyError, TypeError):
        return None
    return int(unit)


class Resizer:
    """Makes plain LoRAs of several ranks from one adapter; the decomposition is computed once.

    Attributes:
        max_rank: the adapter's own rank, or MAX_RANK for an adapter that is no LoRA.
        first_rank: the largest rank that is worth trying.
    """

    def __init__(self, state: State, weights: Weights, unit: int | None = None) -> None:
        """Decompose each layer's weight change, unless `unit` says that the adapter is a DyLoRA.

        Args:
            state: the adapter.
            weights: the base model's weights by layer.
            unit: the ranks that a DyLoRA trained together; None for another adapter.
        """
        self.state, self.weights, self.unit = state, weights, unit
        layers = parts_by_layer(state)
        plain = is_plain(state)
        self.max_rank = max(len(parts["lora_down.weight"]) for parts in layers.values()) if plain else MAX_RANK
        self.first_rank = self.max_rank // 2 if plain else MAX_RANK
        self.factors = {} if unit else {path: ordered_factors(parts, weights[path]) for path, parts in layers.items()}

    def to(self, dim: int) -> State:
        """Return the plain LoRA of rank `dim`.

        Every layer's alpha is `dim`, also of a layer with fewer ranks, whose factors are scaled accordingly: some
        programs take one alpha for all layers.

        Raises:
            ConfigError: a DyLoRA has fewer ranks.
        """
        if self.unit is not None:
            return cut(self.state, dim)
        smaller: State = {}
        for path, (up, down) in self.factors.items():
            shape, rank = self.weights[path].shape, min(dim, len(down))
            root = (rank / dim) ** 0.5
            smaller[f"{path}.lora_down.weight"] = (down[:rank] * root).view(rank, *shape[1:])
            smaller[f"{path}.lora_up.weight"] = (up[:, :rank] * root).reshape(-1, rank, *(1,) * (len(shape) - 2))
            smaller[f"{path}.alpha"] = torch.tensor(float(dim))
        return smaller


def write_resized(
    state: State,
    dim: int,
    source: Path,
    metadata: Mapping[str, str],
    model: BaseModel,
    folder: Path,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a LoRA made by a `Resizer` as `<name>-dim<N>.safetensors`, with copies of the original's sidecars.

    Args:
        state: the smaller LoRA.
        dim: its rank.
        source: the original file.
        metadata: the original file's; what no longer holds is replaced or left out.
        model: the base model.
        folder: where the file and its sidecars go.
        dtype: the number format of the factors.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / f"{source.stem}-dim{dim}.safetensors"
    tensors = in_dtype(file_tensors(state, model.architecture), dtype)
    alpha = f"{float(next(tensor for key, tensor in state.items() if key.endswith('.alpha'))):g}"
    has_conv = any(
        key.endswith("lora_down.weight") and max(tensor.shape[2:], default=1) > 1 for key, tensor in state.items()
    )
    updated = {key: value for key, value in metadata.items() if key not in STALE_KEYS} | {
        "ss_output_name": path.stem,
        **({} if is_transformer(model.architecture) else {"ss_network_module": "networks.lora"}),
        "ss_network_dim": str(dim),
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"conv_dim": str(dim), "conv_alpha": alpha} if has_conv else {}),
        "autolora.resized_from": source.name,
    }
    for suffix in (".json", ".png"):
        if source.with_suffix(suffix).is_file() and source.stem != path.stem:
            write_atomic(path.with_suffix(suffix), source.with_suffix(suffix).read_bytes())
    write_atomic(path, with_sorted_metadata(safetensors.torch.save(tensors, updated | hashes(tensors, updated))))
    return path
