"""The weight change of a layer by the formulas that A1111 and ComfyUI share.

`parts` are a layer's tensors as they stand in the file, by the part of their key behind the layer's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
LayerReader = Callable[[Parts, Tensor], Tensor]  # a layer's parts and the base weight to the layer's weight change


def change_with_input_norms(parts: Parts, weight: Tensor, refusal: str) -> Tensor:
    """The weight change of a layer, of the weight's shape; DoRA's norms are taken per input.

    Raises:
        NotImplementedError: with the text `refusal`, where DoRA's norms are per output.
    """
    delta = _change(parts, weight)
    if "dora_scale" not in parts:
        return delta
    magnitude, changed = parts["dora_scale"].float(), weight.float() + delta
    if len(magnitude) == len(weight):
        raise NotImplementedError(refusal)
    norms = changed.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *(1,) * (changed.dim() - 2))
    change: Tensor = changed * (magnitude / norms) - weight
    return change


def _change(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change before DoRA's magnitudes, scaled by alpha / dim where the file has both."""
    if "on_input" in parts:
        return _ia3(parts, weight)
    if "hada_w1_a" in parts:
        change, dim = _loha(parts)
    elif any(name.startswith("lokr_") for name in parts):
        change, dim = _lokr(parts, weight.shape)
    else:
        change, dim = _lora(parts)
    scale = parts["alpha"].item() / dim if "alpha" in parts and dim is not None else 1.0
    return change.reshape(weight.shape) * scale


def _ia3(parts: Parts, weight: Tensor) -> Tensor:
    """The weight times one factor per input or per output."""
    factors, kernel = parts["weight"].float(), (1,) * (weight.dim() - 2)
    if bool(parts["on_input"].item()):
        return weight * factors.reshape(1, -1, *kernel)
    return weight * factors.reshape(-1, 1, *kernel)


def _lora(parts: Parts) -> tuple[Tensor, int | None]:
    dim = parts["lora_down.weight"].shape[0]
    down, up = parts["lora_down.weight"].float().flatten(1), parts["lora_up.weight"].float().flatten(1)
    if "lora_mid.weight" in parts:
        return torch.einsum("nmkl,in,mj->ijkl", parts["lora_mid.weight"].float(), up, down), dim
    return up @ down, dim


def _loha(parts: Parts) -> tuple[Tensor, int | None]:
    first, second = (_factors(parts, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    return first * second, parts["hada_w1_b"].shape[0]


def _lokr(parts: Parts, shape: torch.Size) -> tuple[Tensor, int | None]:
    """The Kronecker product of two factors; the dim is None if both factors are stored whole."""
    dim: int | None = None
    factors = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts:
            factors.append(parts[name].float())
        else:
            dim = parts[f"{name}_b"].shape[0]
            factors.append(_factors(parts, f"{name}_a", f"{name}_b", f"lokr_t{name[-1]}"))
    first, second = factors
    if second.dim() == 4:
        first = first[:, :, None, None]
    elif len(shape) == 4:  # in a factored kernel the pixels follow the inputs
        second = second.reshape(second.shape[0], -1, *shape[2:])
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()), dim


def _factors(parts: Parts, a: str, b: str, core: str) -> Tensor:
    """The product of two factors, or of three where the kernel of a convolution has a core tensor of its own."""
    if core not in parts:
        return parts[a].float() @ parts[b].float().flatten(1)
    inner = torch.einsum("ijkl,jr->irkl", parts[core].float(), parts[b].float())
    return torch.einsum("ijkl,ir->rjkl", inner, parts[a].float())
