"""LoRA files of other programs as adapter states: diffusers' and peft's names, LyCORIS' LoHa and LoKr.

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
from autolora.adapters.formats import Shapes, kohya_name
from autolora.errors import ExportError

_FACTOR = re.compile(r"(.+?)\.lora(?:\.(down|up)|_(A|B)(?:\.\w+)?)\.weight")
_HALVES = {"down": "lora_down", "A": "lora_down", "up": "lora_up", "B": "lora_up"}
RANK_TOLERANCE = 1e-6  # singular values below this share of the largest are rounding


def in_diffusers_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's layers are called as diffusers or peft call them."""
    return any(_FACTOR.fullmatch(_modern(key)) for key in tensors)


def in_lycoris_factors(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds LoHa or LoKr factors."""
    return any(key.rpartition(".")[2].startswith(("hada_w", "lokr_w")) for key in tensors)


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


def from_lycoris(tensors: Mapping[str, Tensor], architecture: str, shapes: Shapes) -> State:
    """LoHa and LoKr layers as the plain LoRA of the same change of weights (and of as high a rank as that takes).

    LoHa (Hyeon-Woo et al. 2022, FedPara): (w1_a w1_b) * (w2_a w2_b) * alpha / rank. LoKr (Yeh et al. 2024, LyCORIS):
    kron(w1, w2), scaled by alpha / rank only where a factor is itself factored.

    Raises:
        ExportError: layers the model does not have, incomplete factors, convolutions, shapes that do not fit.
    """
    names = {kohya_name(path, architecture): path for path in shapes if path.startswith(("unet.", "text_encoder."))}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        pointwise = tensor.dim() == 4 and tensor.shape[2:] == (1, 1)
        layers.setdefault(name, {})[part] = tensor.float().flatten(1) if pointwise else tensor.float()
    state: State = {}
    for name, parts in layers.items():
        if name not in names:
            raise ExportError(f"the base model has no layer {name}: the file was made for another model")
        path = names[name]
        outside, inside, *kernel = shapes[path]
        if any(side != 1 for side in kernel) or any(t.dim() > 2 for t in parts.values()):
            raise ExportError(f"{name} is a convolution of LyCORIS, which is not supported yet")
        try:
            change = _loha(parts) if "hada_w1_a" in parts else _lokr(parts)
        except (KeyError, RuntimeError) as error:
            raise ExportError(f"{name} is incomplete ({error}): export or download the file again") from error
        if change.shape != (outside, inside):
            raise ExportError(f"{name} changes {tuple(change.shape)} weights, the model has {outside} x {inside}")
        up, down = _factored(change)
        state[f"{path}.lora_down.weight"] = down.reshape(*down.shape, *kernel)
        state[f"{path}.lora_up.weight"] = up.reshape(*up.shape, *kernel)
        state[f"{path}.alpha"] = torch.tensor(float(len(down)))
    return state


def _loha(parts: Mapping[str, Tensor]) -> Tensor:
    rank = len(parts["hada_w1_b"])
    scale = float(parts.get("alpha", torch.tensor(float(rank)))) / rank
    return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) * scale


def _lokr(parts: Mapping[str, Tensor]) -> Tensor:
    def factor(name: str) -> tuple[Tensor, int | None]:
        if name in parts:
            return parts[name], None
        return parts[f"{name}_a"] @ parts[f"{name}_b"], len(parts[f"{name}_b"])

    (first, first_rank), (second, second_rank) = factor("lokr_w1"), factor("lokr_w2")
    rank = second_rank or first_rank
    scale = 1.0 if rank is None or "alpha" not in parts else float(parts["alpha"]) / rank
    return torch.kron(first, second) * scale


def _factored(change: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> up (out, r) and down (r, in) whose product it is, of the least rank that rounding allows."""
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    rank = max(1, int((values > RANK_TOLERANCE * values[0]).sum()))
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float().contiguous(), (root[:, None] * right[:rank]).float().contiguous()


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
    if any(side != 1 for side in (*down.shape[2:], *shape[2:])):
        raise ExportError(f"{layer} is a convolution of more than one pixel (LoCon), which is not supported yet")
    if (up.shape[0], down.shape[1]) != shape[:2] or up.shape[1] != down.shape[0]:
        raise ExportError(
            f"{layer} does not fit the model: up {tuple(up.shape)} and down {tuple(down.shape)} for a layer of "
            f"{shape[0]} x {shape[1]}; the file was made for another base model"
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
