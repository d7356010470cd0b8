"""Files of other programs as adapter states: diffusers' and peft's key names, LyCORIS' kinds and DoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora.adapters.base import State, shape_of
from autolora.adapters.deltas import split_key
from autolora.adapters.file_keys import PEFT, layers_by_name, split_any
from autolora.adapters.file_layers import Layers, divided, layer_state
from autolora.adapters.file_names import LayerNames
from autolora.adapters.formats import explain_unknown, is_transformer, same_weights
from autolora.errors import ExportError


def from_diffusers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, architecture: str, layers: Layers
) -> State:
    """Rename a diffusers or peft file's tensors to the paths of a model's layers.

    Scales come from the file's `.alpha` tensors, else from diffusers' metadata, else from peft's `adapter_config.json`
    beside the file. Without any of them the scale is 1, as in diffusers.

    Args:
        tensors: the file's tensors.
        metadata: the file's metadata.
        path: the file's path.
        architecture: the model's.
        layers: the model's layers.

    Raises:
        ExportError: layers that the model does not have, an incomplete pair, or shapes that do not fit.
    """
    settings = _settings(tensors, metadata, path)
    state: State = {}
    for layer, parts in parts_by_path(tensors, layers, architecture).items():
        parts = {part: tensor.float() for part, tensor in parts.items()}
        lycoris_parts = _to_lycoris_parts(layer, parts, settings, layers[layer])
        if "lora_down.weight" in lycoris_parts or "lora_up.weight" in lycoris_parts:
            _check_pair(lycoris_parts, layer, tuple(layers[layer].weight.shape))
        state |= layer_state(layer, layer, lycoris_parts, layers[layer])
    return state


def parts_by_path(tensors: Mapping[str, Tensor], layers: Layers, architecture: str) -> dict[str, State]:
    """Group a diffusers or peft file's tensors by the path of the model's layer, then by the part's LyCORIS name.

    Raises:
        ExportError: a key names no part of an adapter, or a layer that the model does not have.
    """
    names = layer_names(layers, architecture)
    return {_one_path(name, names): parts for name, parts in layers_by_name(tensors).items()}


def layer_names(layers: Layers, architecture: str) -> LayerNames:
    """The names that files have for a model's layers."""
    return LayerNames({path: shape_of(layer) for path, layer in layers.items()}, architecture)


def has_fused_layers(tensors: Iterable[str], layers: Layers, architecture: str) -> bool:
    """Return whether a file changes layers of a transformer's original code that the model has under other names."""
    if not is_transformer(architecture):
        return False
    names = layer_names(layers, architecture)
    found = (names.find(split_any(key)[0]) for key in tensors)
    return any(rows is not None and len(rows) > 1 for rows in found)


def from_names(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, architecture: str, layers: Layers
) -> State:
    """Read a file in the names of any program, with layers of any kind.

    A layer keeps its kind where autolora can train that kind; otherwise it becomes the plain LoRA of the same change.
    A layer of the original code that holds several of the model's is divided.

    Args:
        tensors: the file's tensors.
        metadata: the file's metadata, which may hold alphas.
        path: the file's path; peft's settings may lie beside it.
        architecture: the model's.
        layers: the model's layers.

    Raises:
        ExportError: layers that the model does not have, incomplete parts, or shapes that do not fit.
    """
    names, settings = layer_names(layers, architecture), _settings(tensors, metadata, path, required=False)
    state: State = {}
    if not tensors:
        raise ExportError(explain_unknown(tensors, [], 0, architecture))
    for name, parts in layers_by_name(tensors).items():
        rows = names.find(name)
        if rows is None:
            raise ExportError(explain_unknown(tensors, [name], len(tensors), architecture))
        parts = {part: tensor.float() for part, tensor in parts.items()}
        if settings and "lora_down.weight" in parts:
            parts = {"alpha": torch.tensor(_alpha(settings, name, len(parts["lora_down.weight"]))), **parts}
        added = divided(name, parts, rows, layers)
        if twice := added.keys() & state.keys():
            layer = split_key(min(twice))[0]
            raise ExportError(f"{layer} is in the file under two names, and programs may read either: export it again")
        state |= added
    return state


def _to_lycoris_parts(path: str, parts: State, settings: dict[str, Any], layer: nn.Linear | nn.Conv2d) -> State:
    """Return the parts of a layer of diffusers or peft by their LyCORIS names and with an alpha.

    peft also scales a LoKr whose factors are not factored; that scale goes into its first factor.

    Raises:
        ExportError: an IA3 that scales the outputs of a layer with a bias, because peft's IA3 scales the bias too.
    """
    if "ia3_l" in parts:
        on_input = _matches(path, settings.get("feedforward_modules") or [])
        if layer.bias is not None and not on_input:
            raise ExportError(f"{path} has a bias, which peft's IA3 scales too and other programs do not")
        return {"weight": parts["ia3_l"].flatten() - 1, "on_input": torch.tensor(on_input)}
    if _setting(settings, path, "use_dora", False) and "dora_scale" not in parts:
        raise ExportError(f"the file's settings say DoRA, but {path} has no magnitude: export it again")
    factored = [name for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts]
    if factored:
        return {"alpha": torch.tensor(_alpha(settings, path, len(parts[factored[0]]))), **parts}
    if "lokr_w1" in parts:
        rank = int(_setting(settings, path, "r", 1, "rank_pattern"))
        return {**parts, "lokr_w1": parts["lokr_w1"] * (_alpha(settings, path, rank) / rank)}
    return parts


def _one_path(name: str, names: LayerNames) -> str:
    """Return the model's path of a layer of a file in diffusers' or peft's names."""
    rows = names.find(name)
    if rows is None or len(rows) > 1:
        raise ExportError(f"the base model has no layer {name}: the file was made for another model")
    return rows[0].path


def _check_pair(parts: State, layer: str, shape: tuple[int, ...]) -> None:
    down, up = parts.get("lora_down.weight"), parts.get("lora_up.weight")
    if down is None or up is None:
        raise ExportError(f"{layer} has only one of its two factors: export or download the file again")
    if up.shape[0] != shape[0] or up.shape[1] != down.shape[0] or not same_weights(down.shape[1:], shape[1:]):
        raise ExportError(
            f"{layer} does not fit the model: up {tuple(up.shape)} and down {tuple(down.shape)} for a layer of "
            f"{' x '.join(map(str, shape))}; the file was made for another base model"
        )


def _settings(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, required: bool = True
) -> dict[str, Any]:
    """Return the settings of a file's adapter, from its metadata or from the file beside it; empty without either."""
    settings = _parse_json(metadata.get("lora_adapter_metadata", "{}"), "its lora_adapter_metadata")
    if not settings and any(key.startswith(PEFT) for key in tensors):
        config = path.with_name("adapter_config.json")
        if not config.is_file() and not required:
            return {}
        if not config.is_file():
            raise ExportError(f"{path.name} is peft's; its adapter_config.json, which says its alpha, is missing")
        settings = _parse_json(config.read_bytes(), f"{config.name} beside it")
    return settings


def _parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ExportError(f"{where} is broken ({error}): export or download the file again") from error
    if not isinstance(content, dict):
        raise ExportError(f"{where} holds {type(content).__name__}, expected settings by name")
    return content


def _setting(settings: dict[str, Any], path: str, name: str, default: Any, pattern: str = "") -> Any:
    """Return a layer's value of a setting; diffusers' metadata put `unet.` or `text_encoder.` before peft's names.

    Args:
        settings: the file's settings.
        path: the layer's path.
        name: the setting's name.
        default: the value where the file has none.
        pattern: the name of the setting that holds other values for some layers.
    """
    root = path.partition(".")[0]

    def lookup(key: str, otherwise: Any) -> Any:
        return settings.get(f"{root}.{key}", settings.get(key, otherwise))

    value = lookup(name, default)
    for layer, layer_value in (lookup(pattern, {}) if pattern else {}).items():
        if _matches(path, [layer]):
            value = layer_value
    return value


def _alpha(settings: dict[str, Any], path: str, rank: int) -> float:
    """Return a layer's alpha: `lora_alpha` in LoRA's settings, `alpha` in LoHa's and LoKr's, else the rank."""
    alpha = _setting(
        settings, path, "lora_alpha", _setting(settings, path, "alpha", rank, "alpha_pattern"), "alpha_pattern"
    )
    return float(alpha) * (rank**0.5 if _setting(settings, path, "use_rslora", False) else 1.0)


def _matches(path: str, names: list[str] | str) -> bool:
    """Return whether peft's target names, or its one regular expression, match a layer."""
    rest = path.partition(".")[2]
    if isinstance(names, str):
        return re.fullmatch(names, rest) is not None
    return any(rest == name or rest.endswith(f".{name}") for name in names)
