"""The wrapped layers of one model, with room for K adapters at once (K = 1 is the same code).

Batches are contiguous, equally long segments, one for each slot or for some of them; every sample has its own weight,
so that the base model (weight 0) and several weights render in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from autolora.adapters.base import AdaptedLayer, NormStats, SlotRouting, State, WeightDelta
from autolora.adapters.deltas import LOW_RANK, parts_by_layer
from autolora.adapters.kinds import Adapter, SlotCapacity
from autolora.adapters.low_rank import LowRank
from autolora.adapters.peft_layers import tuned_of
from autolora.adapters.targets import in_text_encoder
from autolora.errors import ConfigError


def attach(
    modules: Mapping[str, nn.Module], *adapters: Adapter, slots: int = 1, max_dim: int | None = None
) -> AdapterSet:
    """Wrap every layer that any of the adapters changes, for `slots` adapters of rank up to `max_dim`.

    Raises:
        ConfigError: they change none.
    """
    return AdapterSet(modules, adapters, SlotCapacity(slots, max_dim or max(one.max_rank for one in adapters)))


class AdapterSet:
    """The wrapped layers of one model, reused by every trial of a process."""

    def __init__(self, modules: Mapping[str, nn.Module], adapters: Sequence[Adapter], room: SlotCapacity) -> None:
        self.modules, self.adapters, self.room = modules, tuple(adapters), room
        self.touches_text_encoder = any(one.text_encoder for one in adapters)
        if self.touches_text_encoder and not any(in_text_encoder(name) for name in modules):
            raise ConfigError(
                "adapter.text_encoder=true: LoRA files for this model hold no text encoder; set it to false"
            )
        self.routing = SlotRouting()
        self.layers: dict[str, AdaptedLayer] = {}
        self._homes: list[tuple[nn.Module, str, nn.Module]] = []
        self._specs: list[Adapter | None] = [None] * room.slots
        self._left: list[str] = []  # paths of layers that stay as they are
        self._wrap()
        if not self.layers:
            targets = sorted({target for one in adapters for target in one.targets})
            raise ConfigError(f"adapter.targets={targets} match no layer of the model")

    def _wrap(self) -> None:
        for root_name, root in self.modules.items():
            for name, module in list(root.named_modules()):
                path = f"{root_name}.{name}"
                if not isinstance(module, nn.Linear | nn.Conv2d):
                    continue
                if not any(one.adapts(path) for one in self.adapters):
                    self._left.append(path)
                else:
                    parent_name, _, attribute = name.rpartition(".")
                    parent = root.get_submodule(parent_name)
                    self.layers[path] = AdaptedLayer(module, self.routing)
                    setattr(parent, attribute, self.layers[path])
                    self._homes.append((parent, attribute, module))

    @property
    def roots(self) -> tuple[str, ...]:
        """The names of the modules in which layers are wrapped."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self.layers))

    @property
    def slots(self) -> int:
        """How many segments a batch has."""
        return self.room.slots if self.routing.only is None else len(self.routing.only)

    def detach(self) -> None:
        """Put the original layers back."""
        for parent, attribute, module in self._homes:
            setattr(parent, attribute, module)
        self.layers, self._homes, self._left = {}, [], []

    @contextmanager
    def widened(self, slots: int) -> Iterator[AdapterSet]:
        """A set of so many slots in the place of this one, which is empty afterwards."""
        self.detach()
        wide = AdapterSet(self.modules, self.adapters, replace(self.room, slots=slots))
        try:
            yield wide
        finally:
            wide.detach()
            self._wrap()

    def start(self, slot: int, spec: Adapter, generator: torch.Generator) -> list[nn.Parameter]:
        """Give a slot a fresh adapter and return its parameters.

        Raises:
            ConfigError: its rank does not fit, it changes layers that are not wrapped, or it cannot share the set.
        """
        if left := next((path for path in self._left if spec.adapts(path)), None):
            raise ConfigError(f"{type(spec).__name__} changes {left}, which this set was not built for")
        if self.room.slots > 1 and not spec.packable:
            raise ConfigError(f"{type(spec).__name__} trains one at a time, not in a set of {self.room.slots}")
        if self.room.slots > 1 and spec.max_rank > self.room.max_dim:
            raise ConfigError(f"adapter.dim={spec.max_rank} exceeds the {self.room.max_dim} this set was built for")
        self._specs[slot] = spec
        for path, layer in self.layers.items():
            if spec.adapts(path):
                spec.start(layer, path, slot, self.room, generator)
            elif self.room.slots == 1:
                layer.kept = []
        return self.parameters(slot)

    @property
    def updates(self) -> list[WeightDelta]:
        """The changes of all layers that have one."""
        return [layer.kept[0] for layer in self.layers.values() if layer.kept]

    def parameters(self, slot: int, text_encoder: bool | None = None) -> list[nn.Parameter]:
        """A slot's own parameters, so that any optimizer works on them: all, or the text encoder's or the others'."""
        return [
            parameter
            for path, layer in self.layers.items()
            if layer.kept and text_encoder in (None, in_text_encoder(path))
            for parameter in layer.kept[0].parameters(slot)
        ]

    def draw_rank(self, slot: int, generator: torch.Generator) -> None:
        """Limit the coming step to a rank drawn at random, where the slot's adapter asks for it, and to no more."""
        spec = self._specs[slot]
        if spec is not None and spec.n_ranks > 1:
            rank = (int(torch.randint(spec.n_ranks, (), generator=generator)) + 1) * (spec.max_rank // spec.n_ranks)
            for update in self.updates:
                update.limit(slot, rank)

    def gather_grads(self, loss_scale: float = 1.0) -> None:
        """Hand each slot its gradients, free of what its loss was multiplied by, and use all ranks again."""
        for update in self.updates:
            for slot in range(self.room.slots):
                update.gather_grads(slot)
                update.limit(slot, None)
                for parameter in update.parameters(slot) if loss_scale != 1 else ():
                    if parameter.grad is not None:
                        parameter.grad = parameter.grad / loss_scale

    def clear_grads(self) -> None:
        """Drop the gradients."""
        for update in self.updates:
            update.clear_grads()

    @contextmanager
    def weighted(self, per_sample: Tensor) -> Iterator[None]:
        """Each sample's weight, (B,); where all are 1 the faster path for one scale is kept."""
        self.routing.set(None if bool((per_sample == 1).all()) else per_sample)
        try:
            yield
        finally:
            self.routing.set(None)

    @contextmanager
    def only(self, *slots: int) -> Iterator[None]:
        """Batches of these slots' segments, in this order, as if there were no others."""
        self.routing.only = slots
        try:
            yield
        finally:
            self.routing.only = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone."""
        self.routing.enabled = False
        try:
            yield
        finally:
            self.routing.enabled = True

    def load(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        """Put a saved adapter into a slot; layers it does not name stay as the base model has them.

        Raises:
            ConfigError: it names layers this set has not wrapped, or does not fit them.
        """
        by_layer = parts_by_layer(state)
        unknown = sorted(set(by_layer) - set(self.layers))
        if unknown or not by_layer:
            raise ConfigError(f"the adapter does not fit this model: layers {unknown[:3]} are not adapted here")
        for path, layer in self.layers.items():
            try:
                _load_layer(layer, by_layer.get(path), slot, self.room)
            except ConfigError as error:
                raise ConfigError(f"the adapter does not fit this model: {path}: {error}") from error

    def state(self, slot: int = 0) -> State:
        """A slot's adapter as CPU tensors, by the paths of its layers and the names that LyCORIS gives to its parts."""
        return {
            f"{path}.{part}": tensor
            for path, layer in self.layers.items()
            if layer.kept
            for part, tensor in layer.kept[0].parts(slot).items()
        }

    @torch.no_grad()
    def rescale(self, factor: float, slot: int = 0) -> None:
        """Multiply a slot's change of every layer."""
        for update in self.updates:
            update.rescale(slot, torch.tensor(factor))  # of no dimension: it goes with any device

    @torch.no_grad()
    def apply_max_norm(self, slot: int, max_norm: float) -> NormStats:
        """Cap each module's change: where its norm n > max_norm it becomes max_norm / n of itself."""
        updates = self.updates
        norms = torch.stack([update.norm(slot) for update in updates])
        factors = (max_norm / norms.clamp(min=1e-12)).clamp(max=1)
        for update, factor in zip(updates, factors, strict=True):
            update.rescale(slot, factor)
        capped = norms.clamp(max=max_norm)
        return NormStats(int((norms > max_norm).sum()), float(capped.mean()), float(capped.max()))


def _load_layer(layer: AdaptedLayer, parts: State | None, slot: int, room: SlotCapacity) -> None:
    """Into the change that is there, where an optimizer may hold its parameters, if that has the same parts."""
    if room.slots > 1:
        if layer.update is not None:
            layer.update.load(slot, parts or {})
        return
    if parts is None:
        layer.kept = []
        return
    there = layer.update.parts(0) if layer.update is not None else {}
    if {name: tensor.shape for name, tensor in there.items()} != {name: t.shape for name, t in parts.items()}:
        layer.kept = [LowRank.of(layer, parts) if parts.keys() <= LOW_RANK else tuned_of(layer.base, parts)]
    layer.kept[0].load(0, parts)
