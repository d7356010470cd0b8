"""The adapters whose layer work peft does: LoHa, LoKr, IA3 and DoRA; one trial at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from autolora.adapters.base import SlotRouting, State
from autolora.adapters.deltas import change, layer_scale
from autolora.adapters.kinds import PEFT_LAYER, DoRA, ia3_config
from autolora.errors import ConfigError

NAME = "default"  # of peft's adapter in each layer


class PeftLayer:
    """A layer's change by one of peft's tuners."""

    def __init__(self, base: nn.Module, config: PeftConfig, generator: torch.Generator | None = None) -> None:
        holder: Any = nn.ModuleDict({PEFT_LAYER: base})
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            torch.manual_seed(0 if generator is None else int(torch.randint(2**62, (), generator=generator)))
            inject_adapter_in_model(config, holder)
        self.tuner: Any = holder[PEFT_LAYER].eval()  # in training it would ask the global generator for its dropout
        for parameter in self.tuner.parameters():
            if parameter.requires_grad:  # peft takes the base's dtype
                parameter.data = parameter.data.float()
        self.kind = str(config.peft_type.value if config.peft_type else "").lower()
        if _whole(self.tuner):
            self.tuner.scaling[NAME] = 1.0

    def forward(self, x: Tensor, base: nn.Module, routing: SlotRouting) -> Tensor:
        """base(x) plus each sample's change."""
        changed: Tensor = self.tuner(x)
        if routing.weights is None:
            return changed
        plain: Tensor = base(x)
        return plain + _per_sample(routing.weights, changed) * (changed - plain)

    def _named(self) -> dict[str, nn.Parameter]:
        """The tuner's own tensors by the names that LyCORIS gives them."""
        if self.kind == "lora":
            found = {
                "lora_down.weight": self.tuner.lora_A[NAME].weight,
                "lora_up.weight": self.tuner.lora_B[NAME].weight,
                "dora_scale": self.tuner.lora_magnitude_vector[NAME].weight,
            }
        elif self.kind == "ia3":
            found = {"weight": self.tuner.ia3_l[NAME]}
        else:
            found = {name: getattr(self.tuner, name)[NAME] for name in _factors(self.tuner)}
        return found

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """What an optimizer trains."""
        return list(self._named().values())

    def gather_grads(self, slot: int) -> None:
        """They are where they belong."""

    def clear_grads(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters(0):
            parameter.grad = None

    def limit(self, slot: int, rank: int | None) -> None:
        """There is but one rank."""

    def parts(self, slot: int) -> State:
        """The tensors of a LyCORIS file; IA3's `weight` is what its factors exceed 1 by."""
        return {name: tensor.cpu().clone() for name, tensor in self._parts().items()}

    def _parts(self) -> State:
        """The same where the tuner has them."""
        found = {name: parameter.detach() for name, parameter in self._named().items()}
        if self.kind == "ia3":
            on_input = torch.tensor(bool(self.tuner.is_feedforward))
            return {"weight": found["weight"].flatten() - 1, "on_input": on_input}
        if "dora_scale" in found:
            outputs = found["dora_scale"].numel()
            found["dora_scale"] = found["dora_scale"].reshape(outputs, *(1,) * (self.tuner.weight.dim() - 1))
        alpha = 1.0 if _whole(self.tuner) else float(self.tuner.scaling[NAME]) * self.tuner.r[NAME]
        return {**found, "alpha": torch.tensor(alpha, dtype=torch.float64)}

    @torch.no_grad()
    def load(self, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Take over what `parts` gave."""
        if parts.keys() - {"alpha", "on_input"} != self._named().keys():
            raise ConfigError(f"{', '.join(sorted(parts))} are not the parts of a {self.kind} such as this")
        for name, parameter in self._named().items():
            given = parts[name] + 1 if self.kind == "ia3" else parts[name]
            if given.numel() != parameter.numel():
                raise ConfigError(f"{name} of {tuple(given.shape)} does not fit {tuple(parameter.shape)}")
            parameter.copy_(given.reshape(parameter.shape))
        if self.kind != "ia3" and not _whole(self.tuner):
            self.tuner.scaling[NAME] = layer_scale(parts, self.tuner.r[NAME])

    def change(self, slot: int) -> Tensor:
        """The change of weight, of the layer's shape."""
        weight: Tensor = self.tuner.get_base_layer().weight
        return change(self._parts(), weight).view(weight.shape)

    @torch.no_grad()
    def norm(self, slot: int) -> Tensor:
        """Frobenius norm of the change of weight."""
        norm: Tensor = torch.linalg.vector_norm(self.change(slot))
        return norm

    @torch.no_grad()
    def rescale(self, slot: int, factor: Tensor) -> None:
        """The change times the factor t: each of k multiplied tensors by t^(1/k), IA3's factors towards 1.

        DoRA: W + t (m (W + D) / |W + D| - W) with c = m / |W + D| is s (W + t c / s D) with s = 1 - t + t c, for every
        output, so `up` takes t c / s, and the magnitude what s (W + ...) measures.
        """
        if self.kind == "ia3":
            self.tuner.ia3_l[NAME].sub_(1).mul_(factor).add_(1)
        elif self.kind == "lora":
            self._rescale_dora(factor)
        else:
            names = _factors(self.tuner)
            for name in names:
                getattr(self.tuner, name)[NAME].mul_(factor ** (1 / len(names)))

    def _rescale_dora(self, factor: Tensor) -> None:
        if factor == 1:
            return
        weight = self.tuner.get_base_layer().weight.flatten(1)
        magnitude = self.tuner.lora_magnitude_vector[NAME].weight
        up = self.tuner.lora_B[NAME].weight
        delta = self.tuner.get_delta_weight(NAME).flatten(1)
        ratio = magnitude.flatten() / (weight + delta).norm(dim=1)
        share = 1 - factor + factor * ratio
        by_output = factor * ratio / share
        up.mul_(by_output.view(-1, *(1,) * (up.dim() - 1)))
        magnitude.copy_((share * (weight + by_output[:, None] * delta).norm(dim=1)).view(magnitude.shape))


def held(base: nn.Linear | nn.Conv2d, parts: Mapping[str, Tensor]) -> State:
    """A file's parts as one of peft's tuners has them, in float32.

    Raises:
        ConfigError: none makes the same change of them.
    """
    if "on_input" in parts and not parts["on_input"] and base.bias is not None:
        raise ConfigError("IA3 scales a layer's bias too, the file its weight alone")
    if "dora_scale" in parts and parts["dora_scale"].dim() > 1 and len(parts["dora_scale"]) != len(base.weight):
        raise ConfigError("DoRA has a magnitude for each output, the file one for each input")
    tuned = tuned_of(base, parts)
    tuned.load(0, parts)
    return tuned.parts(0)


def tuned_of(base: nn.Module, parts: Mapping[str, Tensor]) -> PeftLayer:
    """A change with room for saved parts.

    Raises:
        ConfigError: they are of no kind that is known.
    """
    if "on_input" in parts:
        return PeftLayer(base, ia3_config(bool(parts["on_input"])))
    if "dora_scale" in parts and "lora_mid.weight" not in parts:
        return PeftLayer(base, DoRA().peft_config(len(parts["lora_down.weight"]), 1.0))
    if "hada_w1_b" in parts:
        rank, effective = len(parts["hada_w1_b"]), "hada_t1" in parts
        return PeftLayer(
            base, LoHaConfig(r=rank, alpha=rank, use_effective_conv2d=effective, target_modules=[PEFT_LAYER])
        )
    if any(name.startswith("lokr_") for name in parts):
        return _lokr_of(base, parts)
    raise ConfigError(f"parts {', '.join(sorted(parts))} are of no adapter that is known")


def _lokr_of(base: nn.Module, parts: Mapping[str, Tensor]) -> PeftLayer:
    """The first of the ways of dividing a layer that these factors have the shapes of."""
    sides = [max(tensor.shape[:2]) for name, tensor in parts.items() if tensor.dim() > 1]
    rank = next((len(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), max(sides))
    wanted = {name: tuple(tensor.shape) for name, tensor in parts.items() if name != "alpha"}
    for factor in (-1, *sorted(set(sides))):
        config = LoKrConfig(
            r=rank,
            alpha=rank,
            decompose_factor=factor,
            decompose_both="lokr_w1_a" in parts,
            use_effective_conv2d="lokr_t2" in parts,
            target_modules=[PEFT_LAYER],
        )
        found = PeftLayer(base, config)
        if {name: tuple(tensor.shape) for name, tensor in found.parts(0).items() if name != "alpha"} == wanted:
            return found
    raise ConfigError(f"no division of a {type(base).__name__} has factors of the shapes {wanted}")


def _factors(tuner: Any) -> list[str]:
    """LoHa's or LoKr's tensors that this layer has."""
    return [name for name in tuner.adapter_layer_names if NAME in getattr(tuner, name)]


def _whole(tuner: Any) -> bool:
    """Whether it is a LoKr with neither factor factored."""
    return {"lokr_w1", "lokr_w2"} <= set(_factors(tuner))


def _per_sample(weights: Tensor, like: Tensor) -> Tensor:
    """(B,) repeated to the batch and shaped to multiply it."""
    full = weights.to(like).repeat(len(like) // len(weights))
    return full.view(-1, *(1,) * (like.dim() - 1))
