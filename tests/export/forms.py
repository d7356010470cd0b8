"""LoRA files in the forms of other programs, one layer each, with the change of weight that the form's rules give.

Changes of LyCORIS' kinds are computed by LyCORIS itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from autolora.adapters.formats import layer_weights, layers_of

Changes = dict[str, Tensor]  # the changes of weight (out, in) by path
File = tuple[dict[str, Tensor], Changes]
Form = Callable[[Any], File]  # of the base model

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
LINEAR, CONV = f"unet.{BLOCK}.attn1.to_q", "unet.mid_block.resnets.0.conv1"
CLIP = "text_encoder.encoder.layers.0.mlp.fc1"
KOHYA = {LINEAR: f"lora_unet_{BLOCK}_attn1_to_q".replace(".", "_"), CONV: "lora_unet_mid_block_resnets_0_conv1"}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers about as large as weights."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.1


def factors(weight: Tensor, rank: int = 4) -> tuple[Tensor, Tensor]:
    """Down and up of a LoRA for a weight."""
    return numbers(rank, *weight.shape[1:]), numbers(len(weight), rank, *(1,) * (weight.dim() - 2), seed=1)


def product(down: Tensor, up: Tensor) -> Tensor:
    return up.flatten(1) @ down.flatten(1)


def norms(weight: Tensor, by_output: bool) -> Tensor:
    """DoRA's magnitudes of a weight, a third larger."""
    matrix = weight.flatten(1) if by_output else weight.transpose(0, 1).flatten(1)
    shape = (-1, *(1,) * (weight.dim() - 1)) if by_output else (1, -1, *(1,) * (weight.dim() - 2))
    return 1.3 * matrix.norm(dim=1).view(shape)


def normalized(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's change: m (W + D) / |W + D| - W."""
    changed = weight + change.view_as(weight)
    dims = [0, *range(2, weight.dim())] if len(magnitude) == 1 else list(range(1, weight.dim()))
    return (magnitude * changed / changed.norm(dim=dims, keepdim=True) - weight).flatten(1)


def kohya_lora(path: str, name: str, alpha: float | None = 2.0) -> Form:
    """A LoRA in kohya's parts under any name."""

    def make(model: Any) -> File:
        down, up = factors(layer_weights(model.modules)[path])
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        return tensors, {path: product(down, up) * (1.0 if alpha is None else alpha / len(down))}

    return make


def named(path: str, down_key: str, up_key: str) -> Form:
    """A LoRA without an alpha under any two keys."""

    def make(model: Any) -> File:
        down, up = factors(layer_weights(model.modules)[path])
        return {down_key: down, up_key: up}, {path: product(down, up)}

    return make


def by_lycoris(module: type[Any], path: str, alpha: float = 2, **settings: Any) -> Form:
    """A file of one of LyCORIS' kinds, with random parts.

    LyCORIS applies alpha / dim twice when it merges LoHa or LoKr, so these need alpha = dim = 4 here.
    """

    def make(model: Any) -> File:
        layer = layers_of(model.modules)[path]
        made = module("lora", layer, lora_dim=4, alpha=alpha, **settings)
        for number, parameter in enumerate(made.parameters()):
            size = 1.0 if parameter is getattr(made, "rescale", None) else 0.0
            parameter.data = size + numbers(*parameter.shape, seed=number)
        if settings.get("weight_decompose"):
            made.dora_scale.data = norms(layer.weight.detach(), by_output=settings["wd_on_out"])
        with torch.no_grad():
            merged = made.get_merged_weight()[0]
        state = made.custom_state_dict() or made.state_dict()
        tensors = {f"{KOHYA[path]}.{part}": tensor.detach().clone() for part, tensor in state.items()}
        return tensors, {path: (merged - layer.weight).detach().flatten(1)}

    return make


def with_extra(form: Form, extra: Mapping[str, Tensor]) -> Form:
    """A file with further tensors, which do not change what is compared."""

    def make(model: Any) -> File:
        tensors, changes = form(model)
        return {**tensors, **extra}, changes

    return make


def scaled_by(form: Form, path: str, scalar: float) -> Form:
    """A file of LyCORIS' first versions, which have a scalar beside the factors."""

    def make(model: Any) -> File:
        tensors, changes = form(model)
        return {**tensors, f"{KOHYA[path]}.scalar": torch.tensor(scalar)}, {path: changes[path] * scalar}

    return make


def in_8_bits(form: Form) -> Form:
    """A LoRA whose numbers have 8 bits, and the change that the rounded numbers give."""

    def make(model: Any) -> File:
        tensors, changes = form(model)
        rounded = {key: tensor.to(torch.float8_e4m3fn) if tensor.dim() else tensor for key, tensor in tensors.items()}
        down, up = (tensor.float() for tensor in rounded.values() if tensor.dim())
        scale = next(float(tensor) for tensor in tensors.values() if not tensor.dim()) / len(down)
        return rounded, dict.fromkeys(changes, product(down, up) * scale)

    return make


def loha_in_bfloat16(model: Any) -> File:
    """A LoHa in 16 bits with a short mantissa."""
    weight, name = layer_weights(model.modules)[LINEAR], KOHYA[LINEAR]
    halves = [factors(weight), (numbers(4, weight.shape[1], seed=5), numbers(len(weight), 4, seed=6))]
    halves = [(down.bfloat16(), up.bfloat16()) for down, up in halves]
    tensors = {f"{name}.hada_w{n}_b": down for n, (down, _) in enumerate(halves, 1)}
    tensors |= {f"{name}.hada_w{n}_a": up for n, (_, up) in enumerate(halves, 1)}
    return tensors, {
        LINEAR: product(*map(torch.Tensor.float, halves[0])) * product(*map(torch.Tensor.float, halves[1]))
    }


def ia3(by_input: bool) -> Form:
    """A factor for each input or output of a layer."""

    def make(model: Any) -> File:
        weight, name = layer_weights(model.modules)[LINEAR], KOHYA[LINEAR]
        added = numbers(weight.shape[1] if by_input else len(weight))
        tensors = {f"{name}.weight": added, f"{name}.on_input": torch.tensor(int(by_input))}
        return tensors, {LINEAR: weight * (added if by_input else added[:, None])}

    return make


def whole_difference(path: str) -> Form:
    """LyCORIS' full matrices."""

    def make(model: Any) -> File:
        change = numbers(*layer_weights(model.modules)[path].shape)
        return {f"{KOHYA[path]}.diff": change}, {path: change.flatten(1)}

    return make


def old_glora(model: Any) -> File:
    """GLoRA of LyCORIS' first versions: the factors stand the other way round."""
    weight = layer_weights(model.modules)[LINEAR]
    out, inputs = weight.shape
    parts = {"a1": (4, inputs), "a2": (inputs, 4), "b1": (4, inputs), "b2": (out, 4)}
    a1, a2, b1, b2 = (numbers(*shape, seed=number) for number, shape in enumerate(parts.values()))
    tensors = {f"{KOHYA[LINEAR]}.{n}.weight": t for n, t in zip(parts, (a1, a2, b1, b2), strict=True)}
    return tensors | {f"{KOHYA[LINEAR]}.alpha": torch.tensor(2.0)}, {LINEAR: (b2 @ b1 + weight @ a2 @ a1) * 0.5}


def fused(paths: tuple[str, ...], name: str, kind: str = "lora", keys: tuple[str, str] | None = None) -> Form:
    """A layer of a transformer's original code, whose rows are those of several layers of the model."""

    def make(model: Any) -> File:
        weights = layer_weights(model.modules)
        weight = torch.cat([weights[path] for path in paths])
        down, up = factors(weight)
        down_key, up_key = keys or (f"{name}.lora_down.weight", f"{name}.lora_up.weight")
        tensors, change = {down_key: down, up_key: up}, product(down, up)
        if not keys:
            tensors[f"{name}.alpha"], change = torch.tensor(2.0), change * 0.5
        if kind in ("dora by input", "dora by output"):
            tensors[f"{name}.dora_scale"] = norms(weight, kind == "dora by output")
            change = normalized(weight, change, tensors[f"{name}.dora_scale"])
        if kind == "lokr":
            first, second = numbers(2, 2), numbers(len(weight) // 2, weight.shape[1] // 2)
            tensors, change = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}, torch.kron(first, second)
        if kind == "loha":
            halves = [factors(weight), (numbers(4, weight.shape[1], seed=5), numbers(len(weight), 4, seed=6))]
            tensors = {
                f"{name}.hada_w{n}_{x}": t for n, (b, a) in enumerate(halves, 1) for x, t in (("a", a), ("b", b))
            }
            change = product(*halves[0]) * product(*halves[1])
        if kind == "fp8":
            tensors = {key: t.to(torch.float8_e4m3fn) if t.dim() else t for key, t in tensors.items()}
            change = product(tensors[down_key].float(), tensors[up_key].float()) * 0.5
        rows = change.split([len(weights[path]) for path in paths])
        return tensors, dict(zip(paths, rows, strict=True))

    return make


def swapped(model: Any) -> File:
    """Flux' last modulation, whose shift stands before its scale in the original code."""
    path, name = "transformer.norm_out.linear", "diffusion_model.final_layer.adaLN_modulation.1"
    down, up = factors(layer_weights(model.modules)[path])
    shift, scale = product(down, up).chunk(2)
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, {path: torch.cat([scale, shift])}
