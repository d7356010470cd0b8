"""A LoRA of a smaller rank: by SVD the nearest one, of a DyLoRA the cut that was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from autolora.adapters.base import State
from autolora.adapters.deltas import is_plain, ordered_factors, parts_by_layer
from autolora.adapters.formats import Weights, is_transformer
from autolora.adapters.lora import cut
from autolora.export.key_names import file_tensors
from autolora.export.metadata import hashes
from autolora.export.write import in_dtype, in_order
from autolora.files import write_atomic
from autolora.models.base import BaseModel

STALE = ("autolora.score", "autolora.twin_of", "autolora.twin_distance", "lora_adapter_metadata", "format")
MOST = 128  # the rank that is as much as a LoRA in the place of another kind needs


def unit_of(metadata: Mapping[str, str]) -> int | None:
    """The unit of a DyLoRA that autolora exported, None for every other file."""
    try:
        unit = json.loads(metadata.get("autolora.settings", "{}"))["adapter"]["unit"]
    except (ValueError, KeyError, TypeError):
        return None
    return int(unit)


class Resizer:
    """Cuts one adapter to several ranks; what all of them need is worked out once."""

    def __init__(self, state: State, weights: Weights, unit: int | None = None) -> None:
        """Order each layer's change by what matters most, unless the adapter is a DyLoRA of a `unit`."""
        self.state, self.weights, self.unit = state, weights, unit
        layers = parts_by_layer(state)
        plain = is_plain(state)
        self.most = max(len(parts["lora_down.weight"]) for parts in layers.values()) if plain else MOST
        self.largest = self.most // 2 if plain else MOST  # the first rank worth trying
        self.ordered = {} if unit else {path: ordered_factors(own, weights[path]) for path, own in layers.items()}

    def to(self, dim: int) -> State:
        """The plain LoRA of a rank.

        Every layer's alpha is `dim`, also of those that have fewer ranks, whose factors make up for it: some programs
        take one alpha for all.

        Raises:
            ConfigError: a DyLoRA has fewer ranks.
        """
        if self.unit is not None:
            return cut(self.state, dim)
        found: State = {}
        for path, (up, down) in self.ordered.items():
            shape, rank = self.weights[path].shape, min(dim, len(down))
            root = (rank / dim) ** 0.5
            found[f"{path}.lora_down.weight"] = (down[:rank] * root).view(rank, *shape[1:])
            found[f"{path}.lora_up.weight"] = (up[:, :rank] * root).reshape(-1, rank, *(1,) * (len(shape) - 2))
            found[f"{path}.alpha"] = torch.tensor(float(dim))
        return found


def write_resized(
    state: State,
    dim: int,
    source: Path,
    metadata: Mapping[str, str],
    model: BaseModel,
    folder: Path,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write what a `Resizer` made of a file as `<name>-dim<N>.safetensors`, with its metadata and sidecars.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / f"{source.stem}-dim{dim}.safetensors"
    tensors = in_dtype(file_tensors(state, model.architecture), dtype)
    alpha = f"{float(next(tensor for key, tensor in state.items() if key.endswith('.alpha'))):g}"
    conv = any(
        key.endswith("lora_down.weight") and max(tensor.shape[2:], default=1) > 1 for key, tensor in state.items()
    )
    said = {key: value for key, value in metadata.items() if key not in STALE} | {
        "ss_output_name": path.stem,
        **({} if is_transformer(model.architecture) else {"ss_network_module": "networks.lora"}),
        "ss_network_dim": str(dim),
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"conv_dim": str(dim), "conv_alpha": alpha} if conv else {}),
        "autolora.resized_from": source.name,
    }
    for suffix in (".json", ".png"):
        if source.with_suffix(suffix).is_file() and source.stem != path.stem:
            write_atomic(path.with_suffix(suffix), source.with_suffix(suffix).read_bytes())
    write_atomic(path, in_order(safetensors.torch.save(tensors, said | hashes(tensors, said))))
    return path
