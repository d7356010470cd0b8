"""The contract of all adapters: the layers they may change, each sample's weight, one layer's change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

State = dict[str, Tensor]  # `<path of a layer>.<part>`, on the CPU


def shape_of(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """The shape of a layer's weight, without restoring one that is quantized."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


@dataclass(frozen=True)
class NormStats:
    """What max-norm scaling did to one slot: modules scaled, mean and largest norm afterwards."""

    scaled: int
    mean: float
    max: float


class SlotRouting:
    """Whose segments the coming batch has, and the weight of each sample, shared by all layers of a set."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # None: all are 1
        self.enabled = True
        self.only: tuple[int, ...] | None = None  # the slots that have a segment, in this order; None: all
        self._known: dict[object, Tensor] = {}

    def set(self, weights: Tensor | None) -> None:
        """The weights of the coming batch."""
        self.weights, self._known = weights, {}

    def of(self, stack: Tensor) -> Tensor:
        """What the slots of the batch have of a (K, ...) stack; a view where they are neighbours."""
        if self.only is None or self.only == tuple(range(len(stack))):
            return stack
        first, count = self.only[0], len(self.only)
        if self.only == tuple(range(first, first + count)):
            return stack[first : first + count]
        key = (self.only, stack.device)
        if key not in self._known:
            self._known[key] = torch.tensor(self.only, device=stack.device)
        return stack.index_select(0, self._known[key])

    def scales(self, by_slot: Sequence[float], batch: int, like: Tensor) -> Tensor:
        """(B, 1, 1) factors scale * weight for a batch of K contiguous segments."""
        key = (*by_slot, batch, like.dtype, like.device)
        if key not in self._known:
            scales = like.new_tensor(by_slot).repeat_interleave(batch // len(by_slot))
            if self.weights is not None:
                scales = scales * self.weights.to(like).repeat(batch // len(self.weights))
            self._known[key] = scales.view(-1, 1, 1)
        return self._known[key]


class WeightDelta(Protocol):
    """One layer's change of weight, for K slots or for one."""

    def forward(self, x: Tensor, base: nn.Module, routing: SlotRouting) -> Tensor:
        """base(x) plus each sample's change."""
        ...

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """What an optimizer trains."""
        ...

    def gather_grads(self, slot: int) -> None:
        """Put the slot's gradients where its parameters have them."""
        ...

    def clear_grads(self) -> None:
        """Drop the gradients of all slots."""
        ...

    def limit(self, slot: int, rank: int | None) -> None:
        """Use only the first ranks until told otherwise; None: all."""
        ...

    def parts(self, slot: int) -> State:
        """The slot's tensors by their names in a LyCORIS file."""
        ...

    def load(self, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Take over what `parts` gave.

        Raises:
            ConfigError: they do not fit.
        """
        ...

    def change(self, slot: int) -> Tensor:
        """The change of weight, of the layer's shape."""
        ...

    def norm(self, slot: int) -> Tensor:
        """Frobenius norm of the change of weight."""
        ...

    def rescale(self, slot: int, factor: Tensor) -> None:
        """Multiply the change of weight by a factor above 0."""
        ...


class AdaptedLayer(nn.Module):
    """A frozen layer and its change, if any."""

    def __init__(self, base: nn.Linear | nn.Conv2d, routing: SlotRouting) -> None:
        super().__init__()
        self.base, self.routing = base, routing
        self.kept: list[WeightDelta] = []  # in a list, so that whoever walks the model meets none but its own modules

    @property
    def update(self) -> WeightDelta | None:
        """What changes this layer now."""
        return self.kept[0] if self.kept else None

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sides of a convolution of more than one pixel, else empty."""
        sides = shape_of(self.base)[2:]
        return sides if any(side > 1 for side in sides) else ()

    def forward(self, x: Tensor) -> Tensor:
        """base(x) plus each sample's change."""
        if not self.kept or not self.routing.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        return self.kept[0].forward(x, self.base, self.routing)
