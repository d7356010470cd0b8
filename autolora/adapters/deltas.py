"""The change of weight that a layer's tensors mean, for each kind of adapter file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from autolora.adapters.base import State
from autolora.adapters.other_kinds import GLORA, OTHER_PARTS, ROTATIONS, glora_change, rotation_change
from autolora.errors import ExportError

FACTORS = ("lora_down.weight", "lora_up.weight", "alpha")  # of LoRA and LoCon, which every program can load
PARTS = (
    *(*FACTORS, "lora_mid.weight", "dora_scale"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("weight", "on_input"),
    *OTHER_PARTS,
)
_WEIGHTS = tuple(f".{p}" for p in PARTS if p.endswith(".weight"))
LOW_RANK = frozenset(FACTORS)
LARGE = 512  # the smaller side of a layer whose exact change is not decomposed
RANK_TOLERANCE = 1e-6  # singular values below this share of the largest are rounding errors


def split_key(key: str) -> tuple[str, str]:
    """Split a tensor's key into its layer and its part; a part may contain a dot: `lora_down.weight`.

    Raises:
        ExportError: the key names no part of an adapter.
    """
    for part in PARTS:
        if key.endswith(f".{part}") and not (part == "weight" and (".lora_" in key or key.endswith(_WEIGHTS))):
            return key.removesuffix(f".{part}"), part
    raise ExportError(f"{key!r} is not part of an adapter; expected a key that ends with one of {', '.join(PARTS)}")


def parts_by_layer(
    state: Mapping[str, Tensor], split: Callable[[str], tuple[str, str]] = split_key
) -> dict[str, State]:
    """Group an adapter's tensors by layer, then by part, which `split` reads from a key.

    Raises:
        ExportError: a key names no part of an adapter.
    """
    layers: dict[str, State] = {}
    for key, tensor in state.items():
        layer, part = split(key)
        layers.setdefault(layer, {})[part] = tensor
    return layers


def delta_weight(parts: Mapping[str, Tensor], weight: Tensor | None = None) -> Tensor:
    """Return a layer's change of weight in float32, (out, in) or (out, in * k * k).

    LoRA (Hu et al. 2021): alpha / r * up @ down. DoRA (Liu et al. 2024): m (W + D) / |W + D| - W. LoHa (Hyeon-Woo et
    al. 2022, FedPara): (w1_a w1_b) * (w2_a w2_b) * alpha / r. LoKr (Yeh et al. 2024, LyCORIS): kron(w1, w2), scaled by
    alpha / r only where a factor is itself factored. IA3 (Liu et al. 2022): weight * W, by input or output.

    `dora_scale` normalizes the changed weight of any kind; `scalar` multiplies the change (LyCORIS). `diff` is the
    change itself. GLoRA and OFT: see `other_kinds`.

    Args:
        parts: the layer's tensors by their LyCORIS names.
        weight: the base model's weight, which the change of DoRA, IA3, GLoRA and OFT depends on.

    Raises:
        ExportError: the parts are incomplete, or `weight` is needed.
    """
    parts = {name: tensor.float() for name, tensor in parts.items()}
    try:
        if "on_input" in parts:
            return _ia3(parts, _as_matrix(weight, parts["weight"]))
        change = _change(parts, weight)
        if "scalar" in parts:
            change = change * parts["scalar"]
        return _dora(change, parts["dora_scale"], _as_matrix(weight, change)) if "dora_scale" in parts else change
    except (KeyError, RuntimeError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ExportError(f"incomplete or broken ({error}): export or download the file again") from error


def _change(parts: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    """Return a layer's change before DoRA's magnitudes."""
    if "hada_w1_b" in parts or "hada_w1_a" in parts:
        return _loha(parts)
    if any(name.startswith("lokr_") for name in parts):
        return _lokr(parts)
    if "diff" in parts:
        return parts["diff"].flatten(1)
    if parts.keys() & {*GLORA, *ROTATIONS}:
        kind = rotation_change if parts.keys() & {*ROTATIONS} else glora_change
        return kind(parts, _given(weight).detach().cpu())
    return _lora(parts)


def layer_scale(parts: Mapping[str, Tensor], rank: int | None) -> float:
    """Return alpha / rank, or 1 where there is no alpha or no rank."""
    return 1.0 if rank is None or "alpha" not in parts else float(parts["alpha"]) / rank


def _given(weight: Tensor | None) -> Tensor:
    if weight is None:
        raise ExportError("an adapter whose change depends on the base model's weight, which is missing here")
    return weight


def _as_matrix(weight: Tensor | None, like: Tensor) -> Tensor:
    return _given(weight).detach().to(like).flatten(1)


def _lora(parts: Mapping[str, Tensor]) -> Tensor:
    down, up = merge_mid(parts)["lora_down.weight"], parts["lora_up.weight"]
    return layer_scale(parts, len(down)) * (up.flatten(1) @ down.flatten(1))


def merge_mid(parts: Mapping[str, Tensor]) -> State:
    """Return a LoRA in two factors where LyCORIS has three: a convolution (r, r, k, k) between two 1x1 ones."""
    merged = dict(parts)
    if "lora_mid.weight" in merged:
        mid, down = merged.pop("lora_mid.weight"), merged["lora_down.weight"]
        merged["lora_down.weight"] = torch.einsum("rmhw,mi->rihw", mid, down.flatten(1))
    return merged


def _dora(delta: Tensor, magnitude: Tensor, weight: Tensor) -> Tensor:
    changed = weight + delta
    if magnitude.shape[0] == len(changed) or magnitude.dim() == 1:
        output_norms: Tensor = torch.linalg.vector_norm(changed, dim=1, keepdim=True)
        return magnitude.reshape(-1, 1) * changed / output_norms - weight
    inputs = magnitude.numel()  # a magnitude for each input, as in LyCORIS' first versions
    by_input = changed.view(len(changed), inputs, -1)
    input_norms: Tensor = torch.linalg.vector_norm(by_input, dim=(0, 2), keepdim=True)
    return (magnitude.view(1, inputs, 1) * by_input / input_norms).view(changed.shape) - weight


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
    # kron over outputs and inputs; the kernel of a convolution stays the last dimension.
    second = second.flatten(1).view(second.shape[0], -1)
    product = torch.einsum("ab,cd->acbd", first.flatten(1), second)
    return scale * product.reshape(rows * second.shape[0], columns * second.shape[1])


def _ia3(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    factors = parts["weight"].flatten()
    if not bool(parts["on_input"]):
        return factors[:, None] * weight
    return (weight.view(len(weight), len(factors), -1) * factors[None, :, None]).view(weight.shape)


def low_rank(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Factor a matrix (out, in) into up (out, r) and down (r, in) whose product is the nearest of that rank.

    Args:
        matrix: the matrix.
        rank: r at most; None: every rank but those of rounding errors.
    """
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    full_rank = max(1, int((values > RANK_TOLERANCE * values[0]).sum()))
    r = full_rank if rank is None else min(rank, full_rank)
    root = values[:r].sqrt()
    return (left[:, :r] * root).float().contiguous(), (root[:, None] * right[:r]).float().contiguous()


def ordered_factors(parts: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's change as up (out, r) and down (r, in) at scale 1, on the CPU, largest singular values first.

    A LoRA keeps its rank: the SVD is of the small product of its factors' triangles (QR). Other kinds get the rank that
    they need.
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
    """Return the plain LoRA nearest to an adapter of any kind, layer by layer, with alpha = rank.

    Args:
        state: the adapter.
        weights: the base model's weights by layer.
        rank: the rank of every layer, padded with zeros where a layer needs less, because diffusers 0.42 gives a wrong
            scale to layers whose alpha is not the most frequent one; None: as much as each layer needs.
    """
    lora: State = {}
    for path, parts in parts_by_layer(state).items():
        lora |= lora_of_change(path, delta_weight(parts, weights[path]), weights[path].shape, rank)
    return lora


def lora_of_change(path: str, change: Tensor, shape: Sequence[int], rank: int | None = None) -> State:
    """Return the plain LoRA of a layer's change of weight (out, in); see `as_lora`.

    Without a given rank, a change of a large layer is one factor and the identity is the other: an SVD takes seconds.
    """
    if rank is None and min(change.shape) > LARGE:
        identity = torch.eye(min(change.shape))
        up, down = (identity, change.cpu()) if len(identity) == len(change) else (change.cpu(), identity)
    else:
        up, down = low_rank(change, rank)
    missing = 0 if rank is None else rank - len(down)
    up, down = F.pad(up, (0, missing)), F.pad(down, (0, 0, 0, missing))
    return {
        f"{path}.lora_down.weight": down.view(len(down), *shape[1:]),
        f"{path}.lora_up.weight": up.view(*up.shape, *(1,) * (len(shape) - 2)),
        f"{path}.alpha": torch.tensor(float(len(down))),
    }


def is_plain(state: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter is a LoRA or LoCon, which every program can load."""
    return all(parts.keys() <= LOW_RANK for parts in parts_by_layer(state).values())


def has_output_norms(state: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter has DoRA magnitudes with one norm for each output of a layer, as peft trains them.

    A magnitude for each input has the shape (1, in, ...).
    """
    return any(key.endswith(".dora_scale") and (t.dim() == 1 or len(t) > 1) for key, t in state.items())


def distance(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> float:
    """Return how much an adapter's changes differ from a reference's, relative to the reference's.

    Both are Frobenius norms over all layers of the reference.
    """
    layers = parts_by_layer(state)
    squared_difference = squared_reference = 0.0
    for path, parts in parts_by_layer(reference).items():
        expected = delta_weight(parts, weights[path])
        squared_difference += float((delta_weight(layers[path], weights[path]) - expected).square().sum())
        squared_reference += float(expected.square().sum())
    return (squared_difference / squared_reference) ** 0.5 if squared_reference else 0.0
