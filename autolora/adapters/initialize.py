"""A fresh adapter that changes the model as a file does, so that training goes on from there."""

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


def start_from(fresh: State, given: State, weights: Weights, ordered: bool = False) -> State:
    """The fresh adapter with the changes of a given one, exactly, at the fresh one's own scale (alpha / dim).

    LoRA and DoRA of a smaller rank are filled up with the fresh one's ranks, which change nothing yet; DoRA also starts
    from a LoRA, by the magnitudes that this gives the weights. Layers that the given one lacks stay fresh.

    Args:
        fresh: what training would start from, by the layers it changes.
        given: what was read from a file.
        weights: the base model's by layer.
        ordered: put what matters most into the first ranks, as DyLoRA has it.

    Raises:
        ConfigError: a layer that the adapter leaves alone, another kind, or too high a rank.
    """
    ours, theirs = parts_by_layer(fresh), parts_by_layer(given)
    alone = sorted(set(theirs) - set(ours))
    if alone:
        raise ConfigError(
            f"it changes {len(alone)} layers that this adapter leaves alone, such as {alone[0]}: set adapter.targets "
            "and adapter.text_encoder so that they are among its own"
        )
    state = dict(fresh)
    for path, parts in theirs.items():
        for part, tensor in _fitted(path, parts, ours[path], weights[path], ordered).items():
            state[f"{path}.{part}"] = tensor
    return state


def kind_of(parts: State) -> str:
    """A layer's kind as `adapter=` calls it."""
    return next((kind for part, kind in _KINDS if part in parts), "lokr")


def _fitted(path: str, given: State, fresh: State, weight: Tensor, ordered: bool) -> State:
    kind, wanted = kind_of(given), kind_of(fresh)
    if wanted in (kind, "dora") and kind in ("lora", "dora"):
        return _filled_up(path, given, fresh, weight, ordered)
    if kind != wanted:
        raise ConfigError(
            f"it holds {kind} at {path}, which no {wanted} is exactly: set adapter={kind}, or start from a plain LoRA "
            "of it, which autolora export resize=FILE writes"
        )
    shapes = [{name: tuple(tensor.shape) for name, tensor in parts.items() if tensor.dim()} for parts in (given, fresh)]
    if shapes[0] != shapes[1]:
        rank = _rank(given)
        advice = f"set adapter.dim={rank}" if rank else "set its dim (and adapter.factor) as they were"
        raise ConfigError(
            f"its {kind} at {path} has other factors ({shapes[0]}) than this adapter ({shapes[1]}): {advice}"
        )
    names = [name for name, tensor in given.items() if name not in _NO_FACTOR and tensor.is_floating_point()]
    factor = _relative_scale(given, fresh) ** (1 / len(names))
    return {
        **fresh,
        **{name: given[name] * factor for name in names},
        **{k: given[k] for k in given if k == "on_input"},
    }


def _filled_up(path: str, given: State, fresh: State, weight: Tensor, ordered: bool) -> State:
    """LoRA's or DoRA's factors at the fresh rank and scale."""
    rank, room = len(given["lora_down.weight"]), len(fresh["lora_down.weight"])
    if rank > room:
        name = "adapter.conv_dim" if given["lora_down.weight"].dim() == 4 and weight.shape[-1] > 1 else "adapter.dim"
        raise ConfigError(
            f"it has rank {rank} at {path}, this adapter {room}: set {name}={rank}, or make it smaller first with "
            "autolora export resize=FILE"
        )
    down, up = given["lora_down.weight"].flatten(1), given["lora_up.weight"].flatten(1)
    factor = _relative_scale(given, fresh) ** 0.5
    if ordered:
        up, down = ordered_factors({**given, "alpha": torch.tensor(float(rank))}, weight)
        rank = len(down)
    filled = torch.cat([down * factor, fresh["lora_down.weight"].flatten(1)[rank:]])
    widened = F.pad(up * factor, (0, room - rank))
    found = {
        **fresh,
        "lora_down.weight": filled.view_as(fresh["lora_down.weight"]),
        "lora_up.weight": widened.view_as(fresh["lora_up.weight"]),
    }
    if "dora_scale" in fresh:
        whole = weight.detach().float().flatten(1).cpu() + delta_weight(given, weight)
        magnitude = given.get("dora_scale", torch.linalg.vector_norm(whole, dim=1))
        found["dora_scale"] = magnitude.view_as(fresh["dora_scale"])
    return found


def _relative_scale(given: State, fresh: State) -> float:
    """By how much the given factors' product is multiplied beyond what the fresh scale does."""
    return layer_scale(given, _rank(given)) / layer_scale(fresh, _rank(fresh))


def _rank(parts: State) -> int | None:
    return next((len(parts[name]) for name in _RANKED if name in parts), None)
