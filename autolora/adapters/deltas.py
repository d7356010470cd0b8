"""The change of weight that each kind of adapter file means, as plain functions of a layer's parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from autolora.adapters.base import State
from autolora.errors import ExportError

FACTORS = ("lora_down.weight", "lora_up.weight", "alpha")  # of LoRA and LoCon, which every program reads
PARTS = (
    *(*FACTORS, "lora_mid.weight", "dora_scale"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("weight", "on_input"),
)
LOW_RANK = frozenset(FACTORS)
RANK_TOLERANCE = 1e-6  # singular values below this share of the largest are rounding


def split_key(key: str) -> tuple[str, str]:
    """A tensor's layer and part; a part may have a dot in it, as `lora_down.weight`.

    Raises:
        ExportError: it is no part of an adapter.
    """
    for part in PARTS:
        if key.endswith(f".{part}") and not (part == "weight" and ".lora_" in key):
            return key.removesuffix(f".{part}"), part
    raise ExportError(f"{key!r} is no part of an adapter; expected a key that ends with one of {', '.join(PARTS)}")


def parts_by_layer(state: Mapping[str, Tensor]) -> dict[str, State]:
    """Each layer's parts.

    Raises:
        ExportError: a key is no part of an adapter.
    """
    found: dict[str, State] = {}
    for key, tensor in state.items():
        layer, part = split_key(key)
        found.setdefault(layer, {})[part] = tensor
    return found


def delta_weight(parts: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
    """A layer's change of weight in float32, (out, in) or (out, in * k * k).

    LoRA (Hu et al. 2021): alpha / r * up @ down. DoRA (Liu et al. 2024): m (W + D) / |W + D| - W. LoHa (Hyeon-Woo et
    al. 2022, FedPara): (w1_a w1_b) * (w2_a w2_b) * alpha / r. LoKr (Yeh et al. 2024, LyCORIS): kron(w1, w2), scaled by
    alpha / r only where a factor is itself factored. IA3 (Liu et al. 2022): weight * W, by input or output.

    Args:
        parts: by the names of LyCORIS' files.
        weight: the base's, which DoRA and IA3 change in proportion.

    Raises:
        ExportError: the parts are incomplete, or `weight` is needed.
    """
    parts = {name: tensor.float() for name, tensor in parts.items()}
    try:
        if "on_input" in parts:
            return _ia3(parts, _needed(weight, parts["weight"]))
        if "hada_w1_b" in parts or "hada_w1_a" in parts:
            return _loha(parts)
        if any(name.startswith("lokr_") for name in parts):
            return _lokr(parts)
        found = _lora(parts)
        return _dora(found, parts["dora_scale"], _needed(weight, found)) if "dora_scale" in parts else found
    except (KeyError, RuntimeError) as error:
        raise ExportError(f"incomplete ({error}): export or download the file again") from error


def layer_scale(parts: Mapping[str, Tensor], rank: int | None) -> float:
    """alpha / rank; 1 without either."""
    return 1.0 if rank is None or "alpha" not in parts else float(parts["alpha"]) / rank


def _needed(weight: Tensor | None, like: Tensor) -> Tensor:
    if weight is None:
        raise ExportError("its change depends on the base model's weight, which is not given")
    return weight.detach().to(like).flatten(1)


def _lora(parts: Mapping[str, Tensor]) -> Tensor:
    down, up = merge_mid(parts)["lora_down.weight"], parts["lora_up.weight"]
    return layer_scale(parts, len(down)) * (up.flatten(1) @ down.flatten(1))


def merge_mid(parts: Mapping[str, Tensor]) -> State:
    """The same LoRA in two factors, where LyCORIS has a convolution (r, r, k, k) between two of one pixel."""
    found = dict(parts)
    if "lora_mid.weight" in found:
        mid, down = found.pop("lora_mid.weight"), found["lora_down.weight"]
        found["lora_down.weight"] = torch.einsum("rmhw,mi->rihw", mid, down.flatten(1))
    return found


def _dora(delta: Tensor, magnitude: Tensor, weight: Tensor) -> Tensor:
    whole = weight + delta
    if magnitude.shape[0] == len(whole) or magnitude.dim() == 1:
        by_output: Tensor = torch.linalg.vector_norm(whole, dim=1, keepdim=True)
        return magnitude.reshape(-1, 1) * whole / by_output - weight
    inputs = magnitude.numel()  # by input, as LyCORIS began
    by_input = whole.view(len(whole), inputs, -1)
    length: Tensor = torch.linalg.vector_norm(by_input, dim=(0, 2), keepdim=True)
    return (magnitude.view(1, inputs, 1) * by_input / length).view(whole.shape) - weight


def _loha(parts: Mapping[str, Tensor]) -> Tensor:
    def half(number: int) -> Tensor:
        a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        if f"hada_t{number}" in parts:
            return torch.einsum("ijkl,jr,ip->prkl", parts[f"hada_t{number}"], b, a).flatten(1)
        return a.flatten(1) @ b.flatten(1)

    return half(1) * half(2) * layer_scale(parts, len(parts["hada_w1_b"]))


def _lokr(parts: Mapping[str, Tensor]) -> Tensor:
    def factor(name: str) -> tuple[Tensor, int | None]:
        if name in parts:
            return parts[name], None
        a, b = parts[f"{name}_a"], parts[f"{name}_b"]
        if name == "lokr_w2" and "lokr_t2" in parts:
            return torch.einsum("ijkl,jr,ip->prkl", parts["lokr_t2"], b, a), len(b)
        return a @ b.flatten(1), len(b)

    (first, first_rank), (second, second_rank) = factor("lokr_w1"), factor("lokr_w2")
    scale = layer_scale(parts, second_rank or first_rank)
    rows, columns = first.shape[:2]
    # kron of the first with the second's outputs and inputs; a kernel stays behind the inputs.
    second = second.flatten(1).view(second.shape[0], -1)
    whole = torch.einsum("ab,cd->acbd", first.flatten(1), second)
    return scale * whole.reshape(rows * second.shape[0], columns * second.shape[1])


def _ia3(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    factors = parts["weight"].flatten()
    if not bool(parts["on_input"]):
        return factors[:, None] * weight
    return (weight.view(len(weight), len(factors), -1) * factors[None, :, None]).view(weight.shape)


def low_rank(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """(out, in) -> up (out, r) and down (r, in) whose product is the nearest of that rank; None: all but rounding."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = max(1, int((values > RANK_TOLERANCE * values[0]).sum()))
    kept = kept if rank is None else min(rank, kept)
    root = values[:kept].sqrt()
    return (left[:, :kept] * root).float().contiguous(), (root[:, None] * right[:kept]).float().contiguous()


def ordered_factors(parts: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's change as up (out, r) and down (r, in) at scale 1, what matters most in the first ranks, on the CPU.

    A LoRA keeps its rank, as the SVD is only of what QR leaves of its factors; another kind takes what it needs.
    """
    if not parts.keys() <= LOW_RANK:
        return low_rank(delta_weight(parts, weight).cpu())
    down, up = parts["lora_down.weight"].flatten(1).double(), parts["lora_up.weight"].flatten(1).double()
    outer, left = torch.linalg.qr(up)
    inner, right = torch.linalg.qr(down.T)
    a, values, b = torch.linalg.svd(left @ right.T * layer_scale(parts, len(down)), full_matrices=False)
    root = values.sqrt()
    return (outer @ a * root).float().contiguous(), (root[:, None] * (b @ inner.T)).float().contiguous()


def as_lora(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], rank: int | None = None) -> State:
    """The plain LoRA that comes nearest to an adapter of any kind, layer by layer, with alpha = rank.

    Args:
        state: the adapter.
        weights: the base model's by layer.
        rank: of every layer, filled up with zeros where that takes less, as diffusers 0.42 gives layers whose alpha is
            not the most frequent one a wrong scale; None: as much as each layer takes.
    """
    found: State = {}
    for path, parts in parts_by_layer(state).items():
        weight = weights[path]
        up, down = low_rank(delta_weight(parts, weight), rank)
        missing = 0 if rank is None else rank - len(down)
        up, down = F.pad(up, (0, missing)), F.pad(down, (0, 0, 0, missing))
        found[f"{path}.lora_down.weight"] = down.view(len(down), *weight.shape[1:])
        found[f"{path}.lora_up.weight"] = up.view(*up.shape, *(1,) * (weight.dim() - 2))
        found[f"{path}.alpha"] = torch.tensor(float(len(down)))
    return found


def is_plain(state: Mapping[str, Tensor]) -> bool:
    """Whether an adapter is LoRA or LoCon, which every program reads."""
    return all(parts.keys() <= LOW_RANK for parts in parts_by_layer(state).values())


def distance(state: Mapping[str, Tensor], other: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> float:
    """How far one adapter's changes are from another's, as a share of the other's (Frobenius norm over all layers)."""
    theirs = parts_by_layer(state)
    apart = whole = 0.0
    for path, parts in parts_by_layer(other).items():
        wanted = delta_weight(parts, weights[path])
        apart += float((delta_weight(theirs[path], weights[path]) - wanted).square().sum())
        whole += float(wanted.square().sum())
    return (apart / whole) ** 0.5 if whole else 0.0
