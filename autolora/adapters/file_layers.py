"""One layer of a LoRA file as an adapter state: of the kind that the file has, or as a plain LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autolora.adapters.base import State
from autolora.adapters.deltas import LOW_RANK, delta_weight, lora_of_change, merge_mid
from autolora.adapters.formats import fit_to_layer
from autolora.adapters.original_names import Rows
from autolora.adapters.peft_layers import as_peft_parts
from autolora.errors import ConfigError, ExportError

Layers = Mapping[str, nn.Linear | nn.Conv2d]  # a model's layers by path


def divided(name: str, parts: State, rows: Sequence[Rows], layers: Layers) -> State:
    """Return a file's layer as tensors by the paths of the model's layers, whose rows it holds.

    Raises:
        ExportError: incomplete parts, or shapes that do not fit.
    """
    if len(rows) == 1:
        return layer_state(name, rows[0].path, parts, layers[rows[0].path])
    total = sum(row.count for row in rows)
    by_row = parts.keys() - {"lora_down.weight", "alpha", "hada_w1_b", "hada_w2_b"}
    by_input = "dora_scale" in parts and len(parts["dora_scale"]) != total
    if by_row <= {"lora_up.weight", "dora_scale", "hada_w1_a", "hada_w2_a"} and not by_input:
        if wrong := next((p for p in by_row if len(parts[p]) != total), None):
            raise ExportError(f"{name} does not fit the model: its {wrong} has {len(parts[wrong])} rows, not {total}")
        state: State = {}
        for path in dict.fromkeys(row.path for row in rows):
            cut = {part: rows_of(parts[part], path, rows) for part in by_row}
            state |= layer_state(name, path, {**parts, **cut}, layers[path])
        return state
    weight = fused_weight(rows, {row.path: layers[row.path].weight.detach() for row in rows})
    change = _checked_change(name, parts, weight)
    return {
        key: tensor
        for path in dict.fromkeys(row.path for row in rows)
        for key, tensor in lora_of_change(path, rows_of(change, path, rows), layers[path].weight.shape).items()
    }


def fused_weight(rows: Sequence[Rows], weights: Mapping[str, Tensor]) -> Tensor:
    """Return the weight of a file's layer that holds rows of several layers of the model."""
    return torch.cat([weights[row.path][row.target : row.target + row.count] for row in rows])


def rows_of(tensor: Tensor, path: str, rows: Sequence[Rows]) -> Tensor:
    """Return the rows of one of the model's layers, in their order there."""
    own = sorted((row for row in rows if row.path == path), key=lambda row: row.target)
    return torch.cat([tensor[row.first : row.first + row.count] for row in own])


def _checked_change(name: str, parts: State, weight: Tensor) -> Tensor:
    try:
        change = delta_weight(parts, weight)
    except ExportError as error:
        raise ExportError(f"{name} is {error}") from error
    if change.shape != weight.flatten(1).shape:
        raise ExportError(f"{name} changes {tuple(change.shape)} weights, the model has {tuple(weight.shape)}")
    return change


def layer_state(name: str, path: str, parts: State, layer: nn.Linear | nn.Conv2d) -> State:
    """Return one layer's tensors by path; `name` is the layer's name in the file."""
    weight = layer.weight.detach()
    change = _checked_change(name, parts, weight)
    if parts.keys() <= LOW_RANK | {"lora_mid.weight"}:
        parts = merge_mid(parts)
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        return fit_to_layer(name, path, down, up, parts.get("alpha"), tuple(weight.shape))
    try:
        return {f"{path}.{part}": tensor for part, tensor in as_peft_parts(layer, parts).items()}
    except ConfigError:
        return lora_of_change(path, change, weight.shape)
