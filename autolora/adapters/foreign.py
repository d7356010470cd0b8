"""Files of other programs as adapter states: diffusers' and peft's names, LyCORIS' kinds and DoRA.

Whatever a file factors its updates into, its change of each weight is written as up @ down with alpha = rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.changes import LOW_RANK, PARTS, as_lora, change, parts_by_layer
from autolora.adapters.formats import Shapes, paths_by_name, same_weights
from autolora.errors import ExportError

_FACTOR = re.compile(r"(.+?)\.lora(?:\.(down|up)|_(A|B)(?:\.\w+)?)\.weight")
_HALVES = {"down": "lora_down", "A": "lora_down", "up": "lora_up", "B": "lora_up"}


def in_diffusers_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's layers are called as diffusers or peft call them."""
    return any(_FACTOR.fullmatch(_modern(key)) for key in tensors)


def in_lycoris_parts(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file in kohya's names holds more than the two factors of LoRA and LoCon."""
    parts = {key.partition(".")[2] for key in tensors}
    return bool(parts & set(PARTS) - LOW_RANK)


def from_diffusers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, shapes: Shapes) -> State:
    """Rename a diffusers or peft file's tensors to the paths of a model's layers.

    Scales come from the file's own `.alpha` tensors, else from diffusers' metadata, else from peft's
    `adapter_config.json` beside the file; without any of them diffusers draws with scale 1, and so do we.

    Raises:
        ExportError: layers the model does not have, half a pair, or shapes that do not fit.
    """
    settings = _settings(tensors, metadata, path)
    state: State = {}
    for key, tensor in tensors.items():
        name = _modern(key)
        if name.endswith(".alpha"):
            state[f"{_layer(name.removesuffix('.alpha'), shapes)}.alpha"] = tensor.float()
            continue
        found = _FACTOR.fullmatch(name)
        if found is None:
            raise ExportError(f"{key} is no part of a plain LoRA, which is all that can be read in diffusers' format")
        layer = _layer(found[1], shapes)
        half = _HALVES[found[2] or found[3]]
        state[f"{layer}.{half}.weight"] = tensor.float()
    for layer in sorted({key.rpartition(".lora_")[0] for key in state if ".lora_" in key}):
        _check_pair(state, layer, shapes[layer])
        rank = state[f"{layer}.lora_down.weight"].shape[0]
        state.setdefault(f"{layer}.alpha", torch.tensor(_alpha(settings, layer, rank)))
    return state


def from_lycoris(tensors: Mapping[str, Tensor], architecture: str, weights: Mapping[str, Tensor]) -> State:
    """Layers of any kind as the plain LoRA of the same change of weights (and of as high a rank as that takes).

    Raises:
        ExportError: layers the model does not have, incomplete parts, shapes that do not fit.
    """
    names = paths_by_name(weights, architecture)
    state: State = {}
    for name, parts in parts_by_layer(tensors).items():
        if name not in names:
            raise ExportError(f"the base model has no layer {name}: the file was made for another model")
        weight = weights[names[name]]
        try:
            found = change(parts, weight)
        except ExportError as error:
            raise ExportError(f"{name} is {error}") from error
        if found.shape != weight.flatten(1).shape:
            raise ExportError(f"{name} changes {tuple(found.shape)} weights, the model has {tuple(weight.shape)}")
        state |= as_lora({f"{names[name]}.{part}": tensor for part, tensor in parts.items()}, weights)
    return state


def _modern(key: str) -> str:
    """A key of any diffusers version, or of peft, as today's `<layer>.lora.down.weight` or `<layer>.lora_A.weight`."""
    key = key.removeprefix("base_model.model.")
    key = re.sub(r"\.processor\.to_out_lora\.", ".to_out.0.lora.", key)
    key = re.sub(r"\.processor\.(to_[qkv])_lora\.", r".\1.lora.", key)
    key = key.replace(".to_out_lora.", ".out_proj.lora.").replace(".lora_linear_layer.", ".lora.")
    return re.sub(r"(\.self_attn)\.to_([qkv])_lora\.", r"\1.\2_proj.lora.", key)


def _layer(name: str, shapes: Shapes) -> str:
    """The model's path of a layer; peft files do not say of which part of the model they speak."""
    short = name.replace("text_model.", "", 1)  # newer transformers versions leave that level out
    for path in (name, short, f"unet.{name}", f"text_encoder.{name}", f"text_encoder.{short}"):
        if path in shapes:
            return path
    raise ExportError(f"the base model has no layer {name}: the file was made for another model")


def _check_pair(state: State, layer: str, shape: tuple[int, ...]) -> None:
    down, up = state.get(f"{layer}.lora_down.weight"), state.get(f"{layer}.lora_up.weight")
    if down is None or up is None:
        raise ExportError(f"{layer} has only one of its two factors: export or download the file again")
    if up.shape[0] != shape[0] or up.shape[1] != down.shape[0] or not same_weights(down.shape[1:], shape[1:]):
        raise ExportError(
            f"{layer} does not fit the model: up {tuple(up.shape)} and down {tuple(down.shape)} for a layer of "
            f"{' x '.join(map(str, shape))}; the file was made for another base model"
        )


def _settings(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What a file says of how strong its updates are; empty where it says nothing."""
    own: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    if not own and any(key.startswith("base_model.model.") for key in tensors):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise ExportError(f"{path.name} is peft's; its adapter_config.json, which says its alpha, is missing")
        own = json.loads(beside.read_text("utf-8"))
    if any(value for name, value in own.items() if name.endswith("use_dora")):
        raise ExportError("this is a DoRA file, which is not supported yet")
    return own


def _alpha(settings: dict[str, Any], layer: str, rank: int) -> float:
    """A layer's alpha; diffusers' metadata put `unet.` or `text_encoder.` before peft's names."""
    root, _, rest = layer.partition(".")

    def value(name: str, otherwise: Any) -> Any:
        return settings.get(f"{root}.{name}", settings.get(name, otherwise))

    alpha = value("lora_alpha", rank)
    for pattern, other in value("alpha_pattern", {}).items():
        if rest == pattern or rest.endswith(f".{pattern}"):
            alpha = other
    return float(alpha) * (rank**0.5 if value("use_rslora", False) else 1.0)
