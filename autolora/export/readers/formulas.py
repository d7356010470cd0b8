"""The weight change of a layer by the formulas that A1111 and ComfyUI share.

`parts` are a layer's tensors as they stand in the file, by the part of their key behind the layer's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class ReadsDifferently(NotImplementedError):
    """A program that reads a layer, and makes another change of weight of it than the file means."""


Parts = Mapping[str, Tensor]
LayerReader = Callable[[Parts, Tensor], Tensor]  # a layer's parts and the base weight to the layer's weight change


def change_with_input_norms(parts: Parts, weight: Tensor, refusal: str) -> Tensor:
    """The weight change of a layer, of the weight's shape; DoRA's norms are taken per input.

    Raises:
        ReadsDifferently: with the text `refusal`, where DoRA's norms are per output.
    """
    delta = _change(parts, weight)
    if "dora_scale" not in parts:
        return delta
    magnitude, changed = parts["dora_scale"].float(), weight.float() + delta
    if len(magnitude) == len(weight):
        raise ReadsDifferently(refusal)
    norms = changed.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *(1,) * (changed.dim() - 2))
    change: Tensor = changed * (magnitude / norms) - weight
    return change


def _change(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change before DoRA's magnitudes, scaled by alpha / dim where the file has both."""
    if "on_input" in parts:
        return _ia3(parts, weight)
    if "diff" in parts:
        return parts["diff"].float().reshape(weight.shape)
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


def has_new_glora(parts: Parts, weight: Tensor) -> bool:
    """Whether a GLoRA is stored as LyCORIS 2 and newer do: b1 has the outputs, and b2 the inputs."""
    return len(parts["b1.weight"]) == len(weight) and parts["b1.weight"].shape[1] == len(parts["b2.weight"])


def glora(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a GLoRA: the weight times one low-rank matrix, plus another one."""
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    inner, outer, up, down = (parts[name].float().flatten(1) for name in names)
    if not has_new_glora(parts, weight):
        inner, outer, up, down = outer, inner, down, up
    by_input = weight.float().movedim(1, -1)  # the kernel of a convolution stays as it is
    change = (by_input @ (inner @ outer)).movedim(-1, 1) + (up @ down).reshape(weight.shape)
    return change * (parts["alpha"].item() / inner.shape[1] if "alpha" in parts else 1.0)


def rotation(parts: Parts, weight: Tensor, limit: float, rescale: Tensor | None) -> Tensor:
    """The weight change of an OFT or BOFT; its skew-symmetric part has a norm of at most `limit`, unless that is 0."""
    matrix, rotated = weight.float().flatten(1), weight.float().flatten(1)
    if "oft_diag" in parts:
        blocks = parts["oft_diag"].float()
    else:
        skew = parts["oft_blocks"].float() - parts["oft_blocks"].float().transpose(-2, -1)
        size = float(skew.norm())
        skew = skew * min(1.0, limit / size) if limit and size else skew
        one = torch.eye(skew.shape[-1])
        blocks = torch.linalg.solve(one - skew, one + skew)  # the two factors commute
    if blocks.dim() == 3:
        rotated = _diagonal(blocks).T @ matrix
    for level, of_level in enumerate(blocks if blocks.dim() == 4 else ()):
        order = _butterfly_order(len(matrix), 2**level * of_level.shape[-1] // 2)
        mixed = _diagonal(of_level) @ rotated[order]
        rotated = torch.empty_like(mixed)
        rotated[order] = mixed
    if rescale is not None:
        rotated = rescale.float().reshape(-1, 1) * rotated
    return (rotated - matrix).reshape(weight.shape)


def _diagonal(blocks: Tensor) -> Tensor:
    """The matrix with these blocks on its diagonal."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _butterfly_order(outputs: int, distance: int) -> Tensor:
    """The order of a level of BOFT in which outputs that lie `distance` apart are neighbours."""
    return torch.arange(outputs).view(-1, 2, distance).transpose(1, 2).flatten()


def _factors(parts: Parts, a: str, b: str, core: str) -> Tensor:
    """The product of two factors, or of three where the kernel of a convolution has a core tensor of its own."""
    if core not in parts:
        return parts[a].float() @ parts[b].float().flatten(1)
    inner = torch.einsum("ijkl,jr->irkl", parts[core].float(), parts[b].float())
    return torch.einsum("ijkl,ir->rjkl", inner, parts[a].float())
