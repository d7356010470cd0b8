"""Files of other programs as adapter states: diffusers' and peft's names, LyCORIS' kinds and DoRA."""

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

Layers = Mapping[str, nn.Linear | nn.Conv2d]  # of a model, by path

PEFT = "base_model.model."  # what the keys of peft's own files begin with
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
    """Whether a file's layers are called as diffusers or peft call them."""
    return any((_split(key) or ("", "alpha"))[1] != "alpha" for key in tensors)


def in_lycoris_parts(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file in kohya's names holds more than the two factors of LoRA and LoCon."""
    parts = {key.partition(".")[2] for key in tensors}
    return bool(parts & set(PARTS) - LOW_RANK)


def in_original_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a transformer's LoRA may have the names of its original code, as kohya's and ComfyUI's files do."""
    return any(key.startswith(("lora_unet_", "diffusion_model.")) for key in tensors)


def from_diffusers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, layers: Layers) -> State:
    """Rename a diffusers or peft file's tensors to the paths of a model's layers.

    Scales come from the file's own `.alpha` tensors, else from diffusers' metadata, else from peft's
    `adapter_config.json` beside the file; without any of them diffusers draws with scale 1, and so do we.

    Raises:
        ExportError: layers the model does not have, half a pair, or shapes that do not fit.
    """
    settings = _settings(tensors, metadata, path)
    state: State = {}
    for layer, parts in parts_by_path(tensors, layers).items():
        parts = {part: tensor.float() for part, tensor in parts.items()}
        named = _in_lycoris_parts(layer, parts, settings, layers[layer])
        if "lora_down.weight" in named or "lora_up.weight" in named:
            _check_pair(named, layer, tuple(layers[layer].weight.shape))
        state |= _as_held(layer, layer, named, layers[layer])
    return state


def parts_by_path(tensors: Mapping[str, Tensor], layers: Layers) -> dict[str, State]:
    """A diffusers or peft file's tensors by the paths of a model's layers, and LyCORIS' names of parts.

    Raises:
        ExportError: a key is no part of an adapter, or of a layer that the model does not have.
    """
    found: dict[str, State] = {}
    for key, tensor in tensors.items():
        name, part = _named(key)
        found.setdefault(_layer(name, layers), {})[part] = tensor
    return found


def keys_by_path(tensors: Mapping[str, Tensor], layers: Layers) -> dict[str, tuple[str, list[str]]]:
    """What a diffusers or peft file calls each of a model's layers, and its keys of that layer, by the layers' paths.

    Raises:
        ExportError: as `parts_by_path`.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for key in tensors:
        name, _ = _named(key)
        found.setdefault(_layer(name, layers), (name, []))[1].append(key)
    return found


def from_lycoris(tensors: Mapping[str, Tensor], architecture: str, layers: Layers) -> State:
    """Layers of any kind, each as an adapter of ours holds it, else as the plain LoRA of the same change of weights.

    Raises:
        ExportError: layers the model does not have, incomplete parts, shapes that do not fit.
    """
    names = paths_by_name(layers, architecture)
    state: State = {}
    for name, parts in parts_by_layer(tensors).items():
        if name not in names:
            raise ExportError(f"the base model has no layer {name}: the file was made for another model")
        state |= _as_held(name, names[name], {part: t.float() for part, t in parts.items()}, layers[names[name]])
    return state


def _as_held(name: str, path: str, parts: State, layer: nn.Linear | nn.Conv2d) -> State:
    """One layer's part of a state; `name` is the file's own."""
    weight = layer.weight.detach()
    try:
        found = delta_weight(parts, weight)
    except ExportError as error:
        raise ExportError(f"{name} is {error}") from error
    if found.shape != weight.flatten(1).shape:
        raise ExportError(f"{name} changes {tuple(found.shape)} weights, the model has {tuple(weight.shape)}")
    if parts.keys() <= LOW_RANK | {"lora_mid.weight"}:
        parts = merge_mid(parts)
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        return fit_to_layer(name, path, down, up, parts.get("alpha"), tuple(weight.shape))
    try:
        return {f"{path}.{part}": tensor for part, tensor in as_peft_parts(layer, parts).items()}
    except ConfigError:
        return as_lora({f"{path}.{part}": tensor for part, tensor in parts.items()}, {path: weight})


def _in_lycoris_parts(path: str, parts: State, settings: dict[str, Any], layer: nn.Linear | nn.Conv2d) -> State:
    """A layer's parts, as diffusers or peft call them, by LyCORIS' names and with an alpha.

    peft scales LoKr of two whole factors too, so that is put into the first; its IA3 scales a layer's bias as well.

    Raises:
        ExportError: IA3 of the outputs of a layer with a bias, which no change of weight is.
    """
    if "ia3_l" in parts:
        on_input = _is_named(path, settings.get("feedforward_modules") or [])
        if layer.bias is not None and not on_input:
            raise ExportError(f"{path} has a bias, which peft's IA3 scales too and other programs do not")
        return {"weight": parts["ia3_l"].flatten() - 1, "on_input": torch.tensor(on_input)}
    if _setting(settings, path, "use_dora", False) and "dora_scale" not in parts:
        raise ExportError(f"the file says that it is DoRA, but {path} has no magnitude: export it again")
    if "dora_scale" in parts:  # peft's is (out,), or (1, out, 1, 1)
        parts = {**parts, "dora_scale": parts["dora_scale"].reshape(-1, *(1,) * (layer.weight.dim() - 1))}
    factored = [name for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts]
    if factored:
        return {"alpha": torch.tensor(_alpha(settings, path, len(parts[factored[0]]))), **parts}
    if "lokr_w1" in parts:
        rank = int(_setting(settings, path, "r", 1, "rank_pattern"))
        return {**parts, "lokr_w1": parts["lokr_w1"] * (_alpha(settings, path, rank) / rank)}
    return parts


def _named(key: str) -> tuple[str, str]:
    """A key's layer and part.

    Raises:
        ExportError: it is no part of an adapter.
    """
    split = _split(key)
    if split is None:
        raise ExportError(f"{key} is no part of an adapter that can be read in diffusers' or peft's format")
    return split


def _split(key: str) -> tuple[str, str] | None:
    """A key's layer and part by LyCORIS' name (`ia3_l` stays peft's); None where it is no part of an adapter."""
    name = _modern(key)
    if (factor := _FACTOR.fullmatch(name)) is not None:
        return factor[1], _HALVES[factor[2] or factor[3]]
    if (magnitude := _MAGNITUDE.fullmatch(name)) is not None and "." in magnitude[1]:
        return magnitude[1], "dora_scale"
    other = _OTHER.fullmatch(name)
    return (other[1], other[2]) if other else None


def _modern(key: str) -> str:
    """A key of any diffusers version, or of peft, as today's `<layer>.lora.down.weight` or `<layer>.lora_A.weight`."""
    key = key.removeprefix(PEFT)
    key = re.sub(r"\.processor\.to_out_lora\.", ".to_out.0.lora.", key)
    key = re.sub(r"\.processor\.(to_[qkv])_lora\.", r".\1.lora.", key)
    key = key.replace(".to_out_lora.", ".out_proj.lora.").replace(".lora_linear_layer.", ".lora.")
    return re.sub(r"(\.self_attn)\.to_([qkv])_lora\.", r"\1.\2_proj.lora.", key)


def _layer(name: str, layers: Layers) -> str:
    """The model's path of a layer; peft files do not say of which part of the model they speak."""
    short = name.replace("text_model.", "", 1)  # newer transformers versions leave that level out
    bare = name.removeprefix("diffusion_model.")  # as some trainers call a transformer
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
    """What a file says of how strong its updates are; empty where it says nothing."""
    own = _parsed(metadata.get("lora_adapter_metadata", "{}"), "its lora_adapter_metadata")
    if not own and any(key.startswith(PEFT) for key in tensors):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise ExportError(f"{path.name} is peft's; its adapter_config.json, which says its alpha, is missing")
        own = _parsed(beside.read_bytes(), f"{beside.name} beside it")
    return own


def _parsed(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ExportError(f"{where} is broken ({error}): export or download the file again") from error
    if not isinstance(found, dict):
        raise ExportError(f"{where} holds {type(found).__name__} where settings by name were expected")
    return found


def _setting(settings: dict[str, Any], path: str, name: str, otherwise: Any, pattern: str = "") -> Any:
    """A layer's own value of a setting; diffusers' metadata put `unet.` or `text_encoder.` before peft's names."""
    root = path.partition(".")[0]

    def given(key: str, default: Any) -> Any:
        return settings.get(f"{root}.{key}", settings.get(key, default))

    found = given(name, otherwise)
    for layer, other in (given(pattern, {}) if pattern else {}).items():
        if _is_named(path, [layer]):
            found = other
    return found


def _alpha(settings: dict[str, Any], path: str, rank: int) -> float:
    """A layer's alpha by its settings; LoHa and LoKr call it so, LoRA `lora_alpha`; its rank where there are none."""
    alpha = _setting(
        settings, path, "lora_alpha", _setting(settings, path, "alpha", rank, "alpha_pattern"), "alpha_pattern"
    )
    return float(alpha) * (rank**0.5 if _setting(settings, path, "use_rslora", False) else 1.0)


def _is_named(path: str, names: list[str] | str) -> bool:
    """Whether peft's target names, or its one expression, mean a layer."""
    rest = path.partition(".")[2]
    if isinstance(names, str):
        return re.fullmatch(names, rest) is not None
    return any(rest == name or rest.endswith(f".{name}") for name in names)
