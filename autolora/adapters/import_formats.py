"""Files of other programs as adapter states: diffusers' and peft's key names, LyCORIS' kinds and DoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora.adapters.base import State
from autolora.adapters.deltas import LOW_RANK, PARTS, as_lora, delta_weight, merge_mid, parts_by_layer
from autolora.adapters.formats import fit_to_layer, paths_by_name, same_weights
from autolora.adapters.peft_layers import as_peft_parts
from autolora.errors import ConfigError, ExportError

Layers = Mapping[str, nn.Linear | nn.Conv2d]  # a model's layers by path

PEFT = "base_model.model."  # the prefix of the keys in peft's own files
_FACTOR = re.compile(r"(.+?)\.lora(?:\.(down|up)|_(A|B)(?:\.\w+)?)\.weight")
_MAGNITUDE = re.compile(r"(.+?)\.(?:lora_magnitude_vector(?:\.\w+)*|lora\.dora_scale|dora_scale)")
_OTHER = re.compile(r"(.+?\..+)\.(hada_\w+|lokr_\w+|ia3_l|alpha)")
_HALVES = {
    "down": "lora_down.weight",
    "A": "lora_down.weight",
    "up": "lora_up.weight",
    "B": "lora_up.weight",
}


def in_diffusers_names(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file uses diffusers' or peft's key names."""
    return any((_split(key) or ("", "alpha"))[1] != "alpha" for key in tensors)


def in_lycoris_parts(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file in kohya's names holds other parts than those of LoRA and LoCon."""
    parts = {key.partition(".")[2] for key in tensors}
    return bool(parts & set(PARTS) - LOW_RANK)


def in_original_names(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a transformer's LoRA may use the names of the original code, as kohya's and ComfyUI's files do."""
    return any(key.startswith(("lora_unet_", "diffusion_model.")) for key in tensors)


def from_diffusers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, layers: Layers) -> State:
    """Rename a diffusers or peft file's tensors to the paths of a model's layers.

    Scales come from the file's `.alpha` tensors, else from diffusers' metadata, else from peft's `adapter_config.json`
    beside the file. Without any of them the scale is 1, as in diffusers.

    Args:
        tensors: the file's tensors.
        metadata: the file's metadata.
        path: the file's path.
        layers: the model's layers.

    Raises:
        ExportError: layers that the model does not have, an incomplete pair, or shapes that do not fit.
    """
    settings = _settings(tensors, metadata, path)
    state: State = {}
    for layer, parts in parts_by_path(tensors, layers).items():
        parts = {part: tensor.float() for part, tensor in parts.items()}
        lycoris_parts = _to_lycoris_parts(layer, parts, settings, layers[layer])
        if "lora_down.weight" in lycoris_parts or "lora_up.weight" in lycoris_parts:
            _check_pair(lycoris_parts, layer, tuple(layers[layer].weight.shape))
        state |= _layer_state(layer, layer, lycoris_parts, layers[layer])
    return state


def parts_by_path(tensors: Mapping[str, Tensor], layers: Layers) -> dict[str, State]:
    """Group a diffusers or peft file's tensors by the path of the model's layer, then by the part's LyCORIS name.

    Raises:
        ExportError: a key names no part of an adapter, or a layer that the model does not have.
    """
    parts: dict[str, State] = {}
    for key, tensor in tensors.items():
        name, part = _layer_and_part(key)
        parts.setdefault(_layer_path(name, layers), {})[part] = tensor
    return parts


def keys_by_path(tensors: Mapping[str, Tensor], layers: Layers) -> dict[str, tuple[str, list[str]]]:
    """Return, for each adapted layer's path, its name in a diffusers or peft file and the keys of its tensors there.

    Raises:
        ExportError: as `parts_by_path`.
    """
    keys: dict[str, tuple[str, list[str]]] = {}
    for key in tensors:
        name, _ = _layer_and_part(key)
        keys.setdefault(_layer_path(name, layers), (name, []))[1].append(key)
    return keys


def from_lycoris(tensors: Mapping[str, Tensor], architecture: str, layers: Layers) -> State:
    """Read a file in kohya's names with layers of any kind.

    A layer keeps its kind where autolora can train that kind; otherwise it becomes the plain LoRA of the same change.

    Raises:
        ExportError: layers that the model does not have, incomplete parts, or shapes that do not fit.
    """
    names = paths_by_name(layers, architecture)
    state: State = {}
    for name, parts in parts_by_layer(tensors).items():
        if name not in names:
            raise ExportError(f"the base model has no layer {name}: the file was made for another model")
        state |= _layer_state(name, names[name], {part: t.float() for part, t in parts.items()}, layers[names[name]])
    return state


def _layer_state(name: str, path: str, parts: State, layer: nn.Linear | nn.Conv2d) -> State:
    """Return one layer's tensors by path; `name` is the layer's name in the file."""
    weight = layer.weight.detach()
    try:
        delta = delta_weight(parts, weight)
    except ExportError as error:
        raise ExportError(f"{name} is {error}") from error
    if delta.shape != weight.flatten(1).shape:
        raise ExportError(f"{name} changes {tuple(delta.shape)} weights, the model has {tuple(weight.shape)}")
    if parts.keys() <= LOW_RANK | {"lora_mid.weight"}:
        parts = merge_mid(parts)
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        return fit_to_layer(name, path, down, up, parts.get("alpha"), tuple(weight.shape))
    try:
        return {f"{path}.{part}": tensor for part, tensor in as_peft_parts(layer, parts).items()}
    except ConfigError:
        return as_lora({f"{path}.{part}": tensor for part, tensor in parts.items()}, {path: weight})


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
    if "dora_scale" in parts:  # peft's is (out,), or (1, out, 1, 1)
        parts = {**parts, "dora_scale": parts["dora_scale"].reshape(-1, *(1,) * (layer.weight.dim() - 1))}
    factored = [name for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts]
    if factored:
        return {"alpha": torch.tensor(_alpha(settings, path, len(parts[factored[0]]))), **parts}
    if "lokr_w1" in parts:
        rank = int(_setting(settings, path, "r", 1, "rank_pattern"))
        return {**parts, "lokr_w1": parts["lokr_w1"] * (_alpha(settings, path, rank) / rank)}
    return parts


def _layer_and_part(key: str) -> tuple[str, str]:
    """Return the layer of a key and the LyCORIS name of its part.

    Raises:
        ExportError: the key names no part of an adapter.
    """
    split = _split(key)
    if split is None:
        raise ExportError(f"{key} is not part of an adapter in diffusers' or peft's format")
    return split


def _split(key: str) -> tuple[str, str] | None:
    """Return the layer of a key and the LyCORIS name of its part (`ia3_l` stays); None: not an adapter's key."""
    name = _modern(key)
    if (factor := _FACTOR.fullmatch(name)) is not None:
        return factor[1], _HALVES[factor[2] or factor[3]]
    if (magnitude := _MAGNITUDE.fullmatch(name)) is not None and "." in magnitude[1]:
        return magnitude[1], "dora_scale"
    other = _OTHER.fullmatch(name)
    return (other[1], other[2]) if other else None


def _modern(key: str) -> str:
    """Return the key of any version of diffusers or peft as `<layer>.lora.down.weight` or `<layer>.lora_A.weight`."""
    key = key.removeprefix(PEFT)
    key = re.sub(r"\.processor\.to_out_lora\.", ".to_out.0.lora.", key)
    key = re.sub(r"\.processor\.(to_[qkv])_lora\.", r".\1.lora.", key)
    key = key.replace(".to_out_lora.", ".out_proj.lora.").replace(".lora_linear_layer.", ".lora.")
    return re.sub(r"(\.self_attn)\.to_([qkv])_lora\.", r"\1.\2_proj.lora.", key)


def _layer_path(name: str, layers: Layers) -> str:
    """Return the model's path of a layer; peft's files do not say which part of the model they are for."""
    short = name.replace("text_model.", "", 1)  # newer versions of transformers leave that level out
    bare = name.removeprefix("diffusion_model.")  # some trainers' name of a transformer
    roots = (f"unet.{name}", f"transformer.{bare}", f"text_encoder.{name}", f"text_encoder.{short}")
    for path in (name, short, *roots):
        if path in layers:
            return path
    raise ExportError(f"the base model has no layer {name}: the file was made for another model")


def _check_pair(parts: State, layer: str, shape: tuple[int, ...]) -> None:
    down, up = parts.get("lora_down.weight"), parts.get("lora_up.weight")
    if down is None or up is None:
        raise ExportError(f"{layer} has only one of its two factors: export or download the file again")
    if up.shape[0] != shape[0] or up.shape[1] != down.shape[0] or not same_weights(down.shape[1:], shape[1:]):
        raise ExportError(
            f"{layer} does not fit the model: up {tuple(up.shape)} and down {tuple(down.shape)} for a layer of "
            f"{' x '.join(map(str, shape))}; the file was made for another base model"
        )


def _settings(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return the settings of a file's adapter, from its metadata or from the file beside it; empty without either."""
    settings = _parse_json(metadata.get("lora_adapter_metadata", "{}"), "its lora_adapter_metadata")
    if not settings and any(key.startswith(PEFT) for key in tensors):
        config = path.with_name("adapter_config.json")
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
