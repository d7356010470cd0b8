"""The adapted layers of one model, for K adapters at once; K = 1 uses the same code.

A batch consists of contiguous segments of equal length, one for each slot or for some of them. Every sample has its own
LoRA weight, so that one batch can render the base model (weight 0) and several weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from autolora.adapters.base import AdaptedLayer, NormStats, SlotRouting, State, WeightDelta
from autolora.adapters.deltas import LOW_RANK, parts_by_layer
from autolora.adapters.low_rank import LowRank
from autolora.adapters.peft_layers import peft_layer_for
from autolora.adapters.settings import Adapter, SlotCapacity
from autolora.adapters.targets import in_text_encoder
from autolora.errors import ConfigError


def attach(
    modules: Mapping[str, nn.Module], *adapters: Adapter, slots: int = 1, max_dim: int | None = None
) -> AdapterSet:
    """Wrap every layer that any of the adapters changes.

    Args:
        modules: the model's root modules by name.
        adapters: the kinds that will be trained or loaded.
        slots: how many adapters the set holds at once.
        max_dim: the largest rank of a slot; None: the largest of `adapters`.

    Raises:
        ConfigError: they change no layer of the model.
    """
    return AdapterSet(modules, adapters, SlotCapacity(slots, max_dim or max(a.max_rank for a in adapters)))


class AdapterSet:
    """The adapted layers of one model, reused by every trial of a process."""

    def __init__(self, modules: Mapping[str, nn.Module], adapters: Sequence[Adapter], capacity: SlotCapacity) -> None:
        self.modules, self.adapters, self.capacity = modules, tuple(adapters), capacity
        self.touches_text_encoder = any(adapter.text_encoder for adapter in adapters)
        if self.touches_text_encoder and not any(in_text_encoder(name) for name in modules):
            raise ConfigError(
                "adapter.text_encoder=true: LoRA files for this model hold no text encoder; set it to false"
            )
        self.routing = SlotRouting()
        self.layers: dict[str, AdaptedLayer] = {}
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []  # parent, attribute, original layer
        self._slot_adapters: list[Adapter | None] = [None] * capacity.slots
        self._unadapted: list[str] = []  # paths of the layers that are not wrapped
        self._wrap()
        if not self.layers:
            targets = sorted({target for adapter in adapters for target in adapter.targets})
            raise ConfigError(f"adapter.targets={targets} match no layer of the model")

    def _wrap(self) -> None:
        for root_name, root in self.modules.items():
            for name, module in list(root.named_modules()):
                path = f"{root_name}.{name}"
                if not isinstance(module, nn.Linear | nn.Conv2d):
                    continue
                if not any(adapter.adapts(path) for adapter in self.adapters):
                    self._unadapted.append(path)
                else:
                    parent_name, _, attribute = name.rpartition(".")
                    parent = root.get_submodule(parent_name)
                    self.layers[path] = AdaptedLayer(module, self.routing)
                    setattr(parent, attribute, self.layers[path])
                    self._originals.append((parent, attribute, module))

    @property
    def roots(self) -> tuple[str, ...]:
        """The names of the root modules that have adapted layers."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self.layers))

    @property
    def slots(self) -> int:
        """How many segments the current batch has."""
        return self.capacity.slots if self.routing.only is None else len(self.routing.only)

    def detach(self) -> None:
        """Put the original layers back."""
        for parent, attribute, module in self._originals:
            setattr(parent, attribute, module)
        self.layers, self._originals, self._unadapted = {}, [], []

    @contextmanager
    def widened(self, slots: int) -> Iterator[AdapterSet]:
        """Replace this set by one with so many slots for a while; afterwards this set holds no adapters."""
        self.detach()
        wide = AdapterSet(self.modules, self.adapters, replace(self.capacity, slots=slots))
        try:
            yield wide
        finally:
            wide.detach()
            self._wrap()

    def start(self, slot: int, adapter: Adapter, generator: torch.Generator) -> list[nn.Parameter]:
        """Put a new adapter into a slot and return its parameters.

        Raises:
            ConfigError: its rank is too large, it changes layers that are not wrapped, or it cannot share the set.
        """
        kind = type(adapter).__name__
        if path := next((path for path in self._unadapted if adapter.adapts(path)), None):
            raise ConfigError(f"{kind} changes {path}, which this set was not built for")
        if self.capacity.slots > 1 and not adapter.packable:
            raise ConfigError(f"{kind} trains one at a time, not in a set of {self.capacity.slots}")
        if self.capacity.slots > 1 and adapter.max_rank > self.capacity.max_dim:
            raise ConfigError(f"adapter.dim={adapter.max_rank} exceeds the {self.capacity.max_dim} of this set")
        self._slot_adapters[slot] = adapter
        for path, layer in self.layers.items():
            if adapter.adapts(path):
                adapter.start(layer, path, slot, self.capacity, generator)
            elif self.capacity.slots == 1:
                layer.delta = None
        return self.parameters(slot)

    @property
    def deltas(self) -> list[WeightDelta]:
        """The changes of all layers that have one."""
        return [layer.delta for layer in self.layers.values() if layer.delta is not None]

    def parameters(self, slot: int, text_encoder: bool | None = None) -> list[nn.Parameter]:
        """Return a slot's own parameters, which any optimizer can train.

        Args:
            slot: the slot.
            text_encoder: True for the text encoder's alone, False for the others alone, None for all.
        """
        return [
            parameter
            for path, layer in self.layers.items()
            if layer.delta is not None and text_encoder in (None, in_text_encoder(path))
            for parameter in layer.delta.parameters(slot)
        ]

    def draw_rank(self, slot: int, generator: torch.Generator) -> None:
        """Limit the next step to a random rank, if the slot's adapter is trained that way (DyLoRA)."""
        adapter = self._slot_adapters[slot]
        if adapter is not None and adapter.n_ranks > 1:
            unit = adapter.max_rank // adapter.n_ranks
            rank = (int(torch.randint(adapter.n_ranks, (), generator=generator)) + 1) * unit
            for delta in self.deltas:
                delta.limit_rank(slot, rank)

    def gather_grads(self, loss_scale: float = 1.0) -> None:
        """Store each slot's gradients in its parameters, divided by `loss_scale`, and lift the limits of the ranks."""
        for delta in self.deltas:
            for slot in range(self.capacity.slots):
                delta.gather_grads(slot)
                delta.limit_rank(slot, None)
                for parameter in delta.parameters(slot) if loss_scale != 1 else ():
                    if parameter.grad is not None:
                        parameter.grad = parameter.grad / loss_scale

    def clear_grads(self) -> None:
        """Delete the gradients of all slots."""
        for delta in self.deltas:
            delta.clear_grads()

    @contextmanager
    def weighted(self, per_sample: Tensor) -> Iterator[None]:
        """Give each sample its LoRA weight, (B,); where all are 1 the faster code for a single scale stays in use."""
        self.routing.set_weights(None if bool((per_sample == 1).all()) else per_sample)
        try:
            yield
        finally:
            self.routing.set_weights(None)

    @contextmanager
    def only(self, *slots: int) -> Iterator[None]:
        """Take batches that have segments of these slots only, in this order."""
        self.routing.only = slots
        try:
            yield
        finally:
            self.routing.only = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Compute the base model without any adapter."""
        self.routing.enabled = False
        try:
            yield
        finally:
            self.routing.enabled = True

    def load(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        """Load a saved adapter into a slot; layers that it does not name become the base model's.

        Raises:
            ConfigError: it names layers that are not adapted here, or it does not fit them.
        """
        by_layer = parts_by_layer(state)
        unknown = sorted(set(by_layer) - set(self.layers))
        if unknown or not by_layer:
            raise ConfigError(f"the adapter does not fit this model: layers {unknown[:3]} are not adapted here")
        for path, layer in self.layers.items():
            try:
                _load_layer(layer, by_layer.get(path), slot, self.capacity)
            except ConfigError as error:
                raise ConfigError(f"the adapter does not fit this model: {path}: {error}") from error

    def state(self, slot: int = 0) -> State:
        """Return a slot's adapter as CPU tensors named `<path of a layer>.<part>`, with the parts' LyCORIS names."""
        return {
            f"{path}.{part}": tensor
            for path, layer in self.layers.items()
            if layer.delta is not None
            for part, tensor in layer.delta.parts(slot).items()
        }

    @torch.no_grad()
    def rescale(self, factor: float, slot: int = 0) -> None:
        """Multiply a slot's change of every layer by a factor."""
        for delta in self.deltas:
            delta.rescale(slot, torch.tensor(factor))  # a 0-dim tensor works with any device

    @torch.no_grad()
    def apply_max_norm(self, slot: int, max_norm: float) -> NormStats:
        """Scale each layer's change whose norm exceeds `max_norm` down to it."""
        deltas = self.deltas
        norms = torch.stack([delta.norm(slot) for delta in deltas])
        factors = (max_norm / norms.clamp(min=1e-12)).clamp(max=1)
        for delta, factor in zip(deltas, factors, strict=True):
            delta.rescale(slot, factor)
        capped = norms.clamp(max=max_norm)
        return NormStats(int((norms > max_norm).sum()), float(capped.mean()), float(capped.max()))


def _load_layer(layer: AdaptedLayer, parts: State | None, slot: int, capacity: SlotCapacity) -> None:
    """Load a layer's parts; the present change is reused where its parts have the same shapes.

    An optimizer may hold the parameters of the present change.
    """
    if capacity.slots > 1:
        if layer.delta is not None:
            layer.delta.load(slot, parts or {})
        return
    if parts is None:
        layer.delta = None
        return
    delta = layer.delta
    if delta is None or _shapes(delta.parts(0)) != _shapes(parts):
        is_low_rank = parts.keys() <= LOW_RANK
        delta = LowRank.for_parts(layer, parts) if is_low_rank else peft_layer_for(layer.base, parts)
        layer.delta = delta
    delta.load(0, parts)


def _shapes(parts: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in parts.items()}
