"""How the programs that load a file read each layer's change of weight from it, written from what they do.

Each takes a layer's tensors as they stand in the file, by their names behind the layer's, and the base's weight. They
share nothing with the trainer, so that a file that agrees with them all is right in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
Reader = Callable[[Parts, Tensor], Tensor]


def webui(parts: Parts, weight: Tensor) -> Tensor:
    """A1111: alpha / dim of whatever has a dim, kernels folded into the inputs, IA3 by row or column.

    Raises:
        NotImplementedError: DoRA by output, which it would draw otherwise.
    """
    return _with_norms(parts, weight, "it takes DoRA's norms by input, this file has them by output")


def comfy(parts: Parts, weight: Tensor) -> Tensor:
    """ComfyUI: the same changes.

    Raises:
        NotImplementedError: it does not read IA3; DoRA by output it draws otherwise (Comfy-Org/ComfyUI pull request
            15458, open in November 2026).
    """
    if "on_input" in parts:
        raise NotImplementedError("it reads no IA3")
    return _with_norms(parts, weight, "it divides DoRA by the norms of the base's weight, not of the changed one")


def _with_norms(parts: Parts, weight: Tensor, refusal: str) -> Tensor:
    """The product's change, or what DoRA's magnitudes by input make of it.

    Raises:
        NotImplementedError: with the refusal, where they are by output.
    """
    delta = _product(parts, weight)
    if "dora_scale" not in parts:
        return delta
    scale, whole = parts["dora_scale"].float(), weight.float() + delta
    if len(scale) == len(weight):
        raise NotImplementedError(refusal)
    norms = whole.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *(1,) * (whole.dim() - 2))
    found: Tensor = whole * (scale / norms) - weight
    return found


def _product(parts: Parts, weight: Tensor) -> Tensor:
    shape = weight.shape
    alpha = parts["alpha"].item() if "alpha" in parts else None
    dim: int | None = None
    if "on_input" in parts:
        factor = parts["weight"].float()
        columns = bool(parts["on_input"].item())
        return weight * (factor.reshape(1, -1) if columns else factor.reshape(-1, 1)).reshape(
            (1, -1) + (1,) * (len(shape) - 2) if columns else (-1, 1) + (1,) * (len(shape) - 2)
        )
    if "hada_w1_a" in parts:
        dim = parts["hada_w1_b"].shape[0]
        first, second = (_half(parts, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
        found = first * second
    elif any(name.startswith("lokr_") for name in parts):
        halves = []
        for name in ("lokr_w1", "lokr_w2"):
            if name in parts:
                halves.append(parts[name].float())
            else:
                dim = parts[f"{name}_b"].shape[0]
                halves.append(_half(parts, f"{name}_a", f"{name}_b", f"lokr_t{name[-1]}"))
        first, second = halves
        if second.dim() == 4:
            first = first[:, :, None, None]
        elif len(shape) == 4:  # a factored kernel stands behind the inputs
            second = second.reshape(second.shape[0], -1, *shape[2:])
            first = first[:, :, None, None]
        found = torch.kron(first, second.contiguous())
    else:
        dim = parts["lora_down.weight"].shape[0]
        down, up = parts["lora_down.weight"].float().flatten(1), parts["lora_up.weight"].float().flatten(1)
        if "lora_mid.weight" in parts:
            found = torch.einsum("nmkl,in,mj->ijkl", parts["lora_mid.weight"].float(), up, down)
        else:
            found = up @ down
    scale = alpha / dim if alpha is not None and dim is not None else 1.0
    return found.reshape(shape) * scale


def _half(parts: Parts, a: str, b: str, core: str) -> Tensor:
    """Two factors' product, or three's where a convolution's kernel has one of its own."""
    if core not in parts:
        return parts[a].float() @ parts[b].float().flatten(1)
    inner = torch.einsum("ijkl,jr->irkl", parts[core].float(), parts[b].float())
    return torch.einsum("ijkl,ir->rjkl", inner, parts[a].float())


def kohya(parts: Parts, weight: Tensor) -> Tensor:
    """sd-scripts' networks.lora: LoRA and LoCon, a convolution's two factors run one after the other.

    Raises:
        NotImplementedError: another kind.
    """
    if set(parts) - {"lora_down.weight", "lora_up.weight", "alpha"}:
        raise NotImplementedError("its networks.lora reads LoRA and LoCon only")
    down, up = parts["lora_down.weight"].float(), parts["lora_up.weight"].float()
    scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
    if weight.dim() == 2:
        return up.flatten(1) @ down.flatten(1) * scale
    if down.shape[2:] == (1, 1):
        return (up.flatten(1) @ down.flatten(1))[:, :, None, None] * scale
    return torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) * scale


CONSUMERS: dict[str, Reader] = {"A1111": webui, "ComfyUI": comfy, "kohya sd-scripts": kohya}
# Of those, what also draws SD3, Flux and Z-Image with LoRA in diffusers' names, or other kinds in LyCORIS'.
TRANSFORMER_CONSUMERS: dict[str, Reader] = {"ComfyUI": comfy}
