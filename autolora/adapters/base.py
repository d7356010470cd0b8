"""What all adapters share: an adapted layer, its change of weight, and which slots of a batch it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

State = dict[str, Tensor]  # `<path of a layer>.<part>`, on the CPU


def shape_of(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Return the shape of a layer's weight without dequantizing it."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


@dataclass(frozen=True)
class NormStats:
    """What max-norm scaling did to one slot: the number of scaled layers, the mean and the largest norm afterwards."""

    scaled: int
    mean: float
    max: float


class SlotRouting:
    """Which slots the current batch has segments of, and each sample's LoRA weight; all layers of a set share it."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # None: all weights are 1
        self.enabled = True
        self.only: tuple[int, ...] | None = None  # the slots that have a segment, in this order; None: all slots
        self._cache: dict[object, Tensor] = {}

    def set_weights(self, weights: Tensor | None) -> None:
        """Set the LoRA weights of the next batch's samples."""
        self.weights, self._cache = weights, {}

    def select(self, stack: Tensor) -> Tensor:
        """Return the rows of a (K, ...) stack that belong to the batch's slots; a view where the slots are adjacent."""
        if self.only is None or self.only == tuple(range(len(stack))):
            return stack
        first, count = self.only[0], len(self.only)
        if self.only == tuple(range(first, first + count)):
            return stack[first : first + count]
        key = (self.only, stack.device)
        if key not in self._cache:
            self._cache[key] = torch.tensor(self.only, device=stack.device)
        return stack.index_select(0, self._cache[key])

    def scales(self, by_slot: Sequence[float], batch: int, like: Tensor) -> Tensor:
        """Return each sample's scale times its LoRA weight.

        Args:
            by_slot: the scale of each of the batch's K slots.
            batch: the batch size B.
            like: a tensor with the dtype and the device of the result.

        Returns:
            A tensor of shape (B, 1, 1).
        """
        key = (*by_slot, batch, like.dtype, like.device)
        if key not in self._cache:
            scales = like.new_tensor(by_slot).repeat_interleave(batch // len(by_slot))
            if self.weights is not None:
                scales = scales * self.weights.to(like).repeat(batch // len(self.weights))
            self._cache[key] = scales.view(-1, 1, 1)
        return self._cache[key]


class WeightDelta(Protocol):
    """One layer's change of weight, for K slots or for one."""

    def forward(self, x: Tensor, base: nn.Module, routing: SlotRouting) -> Tensor:
        """Return base(x) plus what each sample's change adds."""
        ...

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """Return the parameters of a slot that an optimizer trains."""
        ...

    def gather_grads(self, slot: int) -> None:
        """Store a slot's gradients in its parameters."""
        ...

    def clear_grads(self) -> None:
        """Delete the gradients of all slots."""
        ...

    def limit_rank(self, slot: int, rank: int | None) -> None:
        """Use only a slot's first `rank` ranks from now on; None uses all."""
        ...

    def parts(self, slot: int) -> State:
        """Return a slot's tensors by their names in LyCORIS files."""
        ...

    def load(self, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Set a slot's tensors to what `parts` returned.

        Raises:
            ConfigError: they do not fit.
        """
        ...

    def dense(self, slot: int) -> Tensor:
        """Return a slot's change of weight as one tensor of the layer's shape."""
        ...

    def norm(self, slot: int) -> Tensor:
        """Return the Frobenius norm of a slot's change of weight."""
        ...

    def rescale(self, slot: int, factor: Tensor) -> None:
        """Multiply a slot's change of weight by a factor above 0."""
        ...


class AdaptedLayer(nn.Module):
    """A frozen layer and its change of weight, if it has one."""

    def __init__(self, base: nn.Linear | nn.Conv2d, routing: SlotRouting) -> None:
        super().__init__()
        self.base, self.routing = base, routing
        self.delta: WeightDelta | None = None  # not a module, so that walking the model finds only the model's modules

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel size of a convolution larger than 1x1, else empty."""
        sides = shape_of(self.base)[2:]
        return sides if any(side > 1 for side in sides) else ()

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) plus what each sample's change adds."""
        if self.delta is None or not self.routing.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        return self.delta.forward(x, self.base, self.routing)
