"""Initialize a new adapter with the changes of a LoRA file, so that training continues from it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autolora.adapters.base import State
from autolora.adapters.deltas import delta_weight, layer_scale, ordered_factors, parts_by_layer
from autolora.adapters.formats import Weights
from autolora.errors import ConfigError

_KINDS = (("on_input", "ia3"), ("dora_scale", "dora"), ("hada_w1_b", "loha"), ("lora_down.weight", "lora"))
_RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
_NO_FACTOR = ("alpha", "dora_scale")


def start_from(fresh: State, source: State, weights: Weights, ordered: bool = False) -> State:
    """Return a new adapter with exactly the changes of another one, at the new one's scale (alpha / dim).

    A LoRA or DoRA of a smaller rank is filled up with ranks of the new adapter, which change nothing yet. A DoRA can
    also start from a LoRA: its magnitudes are then the norms of the changed weights. Layers that the source does not
    change start as usual.

    Args:
        fresh: the new adapter.
        source: the adapter that was read from a file.
        weights: the base model's weights by layer.
        ordered: put the largest singular values into the first ranks, as a DyLoRA needs it.

    Raises:
        ConfigError: the source changes other layers, is of another kind, or has too large a rank.
    """
    fresh_layers, source_layers = parts_by_layer(fresh), parts_by_layer(source)
    missing = sorted(set(source_layers) - set(fresh_layers))
    if missing:
        raise ConfigError(
            f"it changes {len(missing)} layers that this adapter does not change, such as {missing[0]}: set "
            "adapter.targets and adapter.text_encoder so that this adapter changes them too"
        )
    state = dict(fresh)
    for path, parts in source_layers.items():
        for part, tensor in _converted(path, parts, fresh_layers[path], weights[path], ordered).items():
            state[f"{path}.{part}"] = tensor
    return state


def kind_of(parts: State) -> str:
    """Return the kind of a layer's parts by its name in `adapter=`."""
    return next((kind for part, kind in _KINDS if part in parts), "lokr")


def _converted(path: str, source: State, fresh: State, weight: Tensor, ordered: bool) -> State:
    """Return one layer's parts of `source` in the kind, rank and scale of `fresh`."""
    kind, fresh_kind = kind_of(source), kind_of(fresh)
    if fresh_kind in (kind, "dora") and kind in ("lora", "dora"):
        return _filled_up(path, source, fresh, weight, ordered)
    if kind != fresh_kind:
        raise ConfigError(
            f"it holds {kind} at {path}, which {fresh_kind} cannot represent exactly: set adapter={kind}, or convert "
            "the file to a plain LoRA with autolora resize FILE"
        )
    source_shapes, fresh_shapes = _shapes(source), _shapes(fresh)
    if source_shapes != fresh_shapes:
        rank = _rank(source)
        advice = f"set adapter.dim={rank}" if rank else "set its dim (and adapter.factor) as they were"
        raise ConfigError(
            f"its {kind} at {path} has other factors ({source_shapes}) than this adapter ({fresh_shapes}): {advice}"
        )
    names = [name for name, tensor in source.items() if name not in _NO_FACTOR and tensor.is_floating_point()]
    factor = _relative_scale(source, fresh) ** (1 / len(names))
    flags = {name: tensor for name, tensor in source.items() if name == "on_input"}
    return {**fresh, **{name: source[name] * factor for name in names}, **flags}


def _shapes(parts: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in parts.items() if tensor.dim()}


def _filled_up(path: str, source: State, fresh: State, weight: Tensor, ordered: bool) -> State:
    """Return LoRA's or DoRA's parts at the rank and scale of `fresh`."""
    rank, fresh_rank = len(source["lora_down.weight"]), len(fresh["lora_down.weight"])
    if rank > fresh_rank:
        name = "adapter.conv_dim" if source["lora_down.weight"].dim() == 4 and weight.shape[-1] > 1 else "adapter.dim"
        raise ConfigError(
            f"it has rank {rank} at {path}, this adapter {fresh_rank}: set {name}={rank}, or make the file smaller "
            "first with autolora resize FILE"
        )
    down, up = source["lora_down.weight"].flatten(1), source["lora_up.weight"].flatten(1)
    factor = _relative_scale(source, fresh) ** 0.5
    if ordered:
        up, down = ordered_factors({**source, "alpha": torch.tensor(float(rank))}, weight)
        rank = len(down)
    filled = torch.cat([down * factor, fresh["lora_down.weight"].flatten(1)[rank:]])
    widened = F.pad(up * factor, (0, fresh_rank - rank))
    parts = {
        **fresh,
        "lora_down.weight": filled.view_as(fresh["lora_down.weight"]),
        "lora_up.weight": widened.view_as(fresh["lora_up.weight"]),
    }
    if "dora_scale" in fresh:
        changed = weight.detach().float().flatten(1).cpu() + delta_weight(source, weight)
        magnitude = source.get("dora_scale", torch.linalg.vector_norm(changed, dim=1))
        parts["dora_scale"] = magnitude.view_as(fresh["dora_scale"])
    return parts


def _relative_scale(source: State, fresh: State) -> float:
    """Return the scale of `source` divided by that of `fresh`."""
    return layer_scale(source, _rank(source)) / layer_scale(fresh, _rank(fresh))


def _rank(parts: State) -> int | None:
    return next((len(parts[name]) for name in _RANKED if name in parts), None)
