"""The layers of DoRA, LoHa, LoKr and IA3, which peft computes; one adapter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from autolora.adapters.base import SlotRouting, State
from autolora.adapters.deltas import delta_weight, layer_scale
from autolora.adapters.kinds import PEFT_LAYER, DoRA, ia3_config
from autolora.errors import ConfigError

NAME = "default"  # peft's name of the adapter in each layer


class PeftLayer:
    """A layer's change of weight, held by one of peft's layers."""

    def __init__(self, base: nn.Module, config: PeftConfig, generator: torch.Generator | None = None) -> None:
        holder: Any = nn.ModuleDict({PEFT_LAYER: base})
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # peft draws from the CPU's global generator
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(config, holder)
        self.layer: Any = holder[PEFT_LAYER].eval()  # in training mode its dropout would use the global generator
        for parameter in self.layer.parameters():
            if parameter.requires_grad:  # peft gives them the base model's dtype
                parameter.data = parameter.data.float()
        self.kind = str(config.peft_type.value if config.peft_type else "").lower()
        if _is_unfactored_lokr(self.layer):
            self.layer.scaling[NAME] = 1.0

    def forward(self, x: Tensor, base: nn.Module, routing: SlotRouting) -> Tensor:
        """Return base(x) plus what each sample's change adds."""
        adapted: Tensor = self.layer(x)
        if routing.weights is None:
            return adapted
        plain: Tensor = base(x)
        return plain + _per_sample(routing.weights, adapted) * (adapted - plain)

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        """Return peft's trained tensors by their LyCORIS names."""
        if self.kind == "lora":
            return {
                "lora_down.weight": self.layer.lora_A[NAME].weight,
                "lora_up.weight": self.layer.lora_B[NAME].weight,
                "dora_scale": self.layer.lora_magnitude_vector[NAME].weight,
            }
        if self.kind == "ia3":
            return {"weight": self.layer.ia3_l[NAME]}
        return {name: getattr(self.layer, name)[NAME] for name in _factor_names(self.layer)}

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """Return the parameters that an optimizer trains."""
        return list(self._named_parameters().values())

    def gather_grads(self, slot: int) -> None:
        """Do nothing: the parameters already have their gradients."""

    def clear_grads(self) -> None:
        """Delete the gradients."""
        for parameter in self.parameters(0):
            parameter.grad = None

    def limit_rank(self, slot: int, rank: int | None) -> None:
        """Do nothing: these kinds are trained at one rank."""

    def parts(self, slot: int) -> State:
        """Return the tensors of a LyCORIS file; IA3's `weight` is its factors minus 1."""
        return {name: tensor.cpu().clone() for name, tensor in self._parts().items()}

    def _parts(self) -> State:
        """Return the same tensors on the layer's device."""
        parts = {name: parameter.detach() for name, parameter in self._named_parameters().items()}
        if self.kind == "ia3":
            on_input = torch.tensor(bool(self.layer.is_feedforward))
            return {"weight": parts["weight"].flatten() - 1, "on_input": on_input}
        if "dora_scale" in parts:
            outputs = parts["dora_scale"].numel()
            parts["dora_scale"] = parts["dora_scale"].reshape(outputs, *(1,) * (self.layer.weight.dim() - 1))
        alpha = 1.0 if _is_unfactored_lokr(self.layer) else float(self.layer.scaling[NAME]) * self.layer.r[NAME]
        return {**parts, "alpha": torch.tensor(alpha, dtype=torch.float64)}

    @torch.no_grad()
    def load(self, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Set the tensors to what `parts` returned.

        Raises:
            ConfigError: they belong to another kind, or their shapes do not fit.
        """
        if parts.keys() - {"alpha", "on_input"} != self._named_parameters().keys():
            raise ConfigError(f"{', '.join(sorted(parts))} are not the parts of this {self.kind}")
        for name, parameter in self._named_parameters().items():
            tensor = parts[name] + 1 if self.kind == "ia3" else parts[name]
            if tensor.numel() != parameter.numel():
                raise ConfigError(f"{name} of {tuple(tensor.shape)} does not fit {tuple(parameter.shape)}")
            parameter.copy_(tensor.reshape(parameter.shape))
        if self.kind != "ia3" and not _is_unfactored_lokr(self.layer):
            self.layer.scaling[NAME] = layer_scale(parts, self.layer.r[NAME])

    def dense(self, slot: int) -> Tensor:
        """Return the change of weight as one tensor of the layer's shape."""
        weight: Tensor = self.layer.get_base_layer().weight
        return delta_weight(self._parts(), weight).view(weight.shape)

    @torch.no_grad()
    def norm(self, slot: int) -> Tensor:
        """Return the Frobenius norm of the change of weight."""
        norm: Tensor = torch.linalg.vector_norm(self.dense(slot))
        return norm

    @torch.no_grad()
    def rescale(self, slot: int, factor: Tensor) -> None:
        """Multiply the change of weight by a factor t.

        LoHa and LoKr: each of the k multiplied tensors by t^(1/k). IA3: the factors' distance from 1 by t.
        DoRA: with c = m / |W + D|, the new weight W + t (c (W + D) - W) equals s (W + t c / s D) where s = 1 - t + t c,
        for every output. So `up` is multiplied by t c / s, and the magnitude is set to the norm of s (W + t c / s D).
        """
        if self.kind == "ia3":
            self.layer.ia3_l[NAME].sub_(1).mul_(factor).add_(1)
        elif self.kind == "lora":
            self._rescale_dora(factor)
        else:
            names = _factor_names(self.layer)
            for name in names:
                getattr(self.layer, name)[NAME].mul_(factor ** (1 / len(names)))

    def _rescale_dora(self, factor: Tensor) -> None:
        if factor == 1:
            return
        weight = self.layer.get_base_layer().weight.flatten(1)
        magnitude = self.layer.lora_magnitude_vector[NAME].weight
        up = self.layer.lora_B[NAME].weight
        delta = self.layer.get_delta_weight(NAME).flatten(1)
        ratio = magnitude.flatten() / (weight + delta).norm(dim=1)
        share = 1 - factor + factor * ratio
        by_output = factor * ratio / share
        up.mul_(by_output.view(-1, *(1,) * (up.dim() - 1)))
        magnitude.copy_((share * (weight + by_output[:, None] * delta).norm(dim=1)).view(magnitude.shape))


def as_peft_parts(base: nn.Linear | nn.Conv2d, parts: Mapping[str, Tensor]) -> State:
    """Return a file's parts as one of peft's layers holds them, in float32.

    Raises:
        ConfigError: no peft layer makes the same change of them.
    """
    if "on_input" in parts and not parts["on_input"] and base.bias is not None:
        raise ConfigError("peft's IA3 scales a layer's bias too, the file scales its weight alone")
    if "dora_scale" in parts and parts["dora_scale"].dim() > 1 and len(parts["dora_scale"]) != len(base.weight):
        raise ConfigError("peft's DoRA has a magnitude for each output, the file one for each input")
    layer = peft_layer_for(base, parts)
    layer.load(0, parts)
    return layer.parts(0)


def peft_layer_for(base: nn.Module, parts: Mapping[str, Tensor]) -> PeftLayer:
    """Return a change that saved parts can be loaded into.

    Raises:
        ConfigError: they are of no known kind.
    """
    if "on_input" in parts:
        return PeftLayer(base, ia3_config(bool(parts["on_input"])))
    if parts.keys() & {"scalar", "lora_mid.weight"} or ("dora_scale" in parts and "lora_down.weight" not in parts):
        raise ConfigError(f"no peft layer has the parts {', '.join(sorted(parts))}")
    if "dora_scale" in parts:
        return PeftLayer(base, DoRA().peft_config(len(parts["lora_down.weight"]), 1.0))
    if "hada_w1_b" in parts:
        rank, tucker = len(parts["hada_w1_b"]), "hada_t1" in parts
        config = LoHaConfig(r=rank, alpha=rank, use_effective_conv2d=tucker, target_modules=[PEFT_LAYER])
        return PeftLayer(base, config)
    if any(name.startswith("lokr_") for name in parts):
        return _lokr_layer_for(base, parts)
    raise ConfigError(f"the parts {', '.join(sorted(parts))} are of no known adapter")


def _lokr_layer_for(base: nn.Module, parts: Mapping[str, Tensor]) -> PeftLayer:
    """Return a LoKr with the first `factor` that divides the layer into factors of the parts' shapes."""
    sides = [max(tensor.shape[:2]) for name, tensor in parts.items() if tensor.dim() > 1]
    rank = next((len(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), max(sides))
    shapes = _factor_shapes(parts)
    for factor in (-1, *sorted(set(sides))):
        config = LoKrConfig(
            r=rank,
            alpha=rank,
            decompose_factor=factor,
            decompose_both="lokr_w1_a" in parts,
            use_effective_conv2d="lokr_t2" in parts,
            target_modules=[PEFT_LAYER],
        )
        layer = PeftLayer(base, config)
        if _factor_shapes(layer.parts(0)) == shapes:
            return layer
    raise ConfigError(f"no LoKr of a {type(base).__name__} has factors of the shapes {shapes}")


def _factor_shapes(parts: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in parts.items() if name != "alpha"}


def _factor_names(layer: Any) -> list[str]:
    """Return the names of LoHa's or LoKr's tensors that this layer has."""
    return [name for name in layer.adapter_layer_names if NAME in getattr(layer, name)]


def _is_unfactored_lokr(layer: Any) -> bool:
    """Return whether the layer is a LoKr neither of whose factors is itself factored."""
    return {"lokr_w1", "lokr_w2"} <= set(_factor_names(layer))


def _per_sample(weights: Tensor, like: Tensor) -> Tensor:
    """Repeat the (B,) weights to the batch and shape them so that they multiply `like`."""
    repeated = weights.to(like).repeat(len(like) // len(weights))
    return repeated.view(-1, *(1,) * (like.dim() - 1))
