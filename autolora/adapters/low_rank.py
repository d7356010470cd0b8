"""The layers of LoRA, LoCon and DyLoRA: low-rank changes of K adapters at once on one frozen base model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.adapters.base import AdaptedLayer, SlotRouting, State, shape_of
from autolora.adapters.settings import SlotCapacity
from autolora.errors import ConfigError


def cut(state: State, rank: int) -> State:
    """Return the first ranks of a trained DyLoRA as a LoRA, with the alpha that they were trained with.

    Raises:
        ConfigError: it has fewer ranks.
    """
    smaller: State = {}
    for key, tensor in state.items():
        if key.endswith(".lora_down.weight") and not 1 <= rank <= len(tensor):
            raise ConfigError(f"rank={rank}: a LoRA of rank {len(tensor)} can be cut to 1 to {len(tensor)}")
        if key.endswith(".alpha"):
            smaller[key] = tensor.clamp(max=rank)
        else:
            smaller[key] = (tensor[:rank] if key.endswith(".lora_down.weight") else tensor[:, :rank]).clone()
    return smaller


def low_rank_delta(layer: AdaptedLayer, dim: int, capacity: SlotCapacity) -> LowRank:
    """Return a layer's low-rank change that holds rank `dim`; it is new where the layer's present one does not fit."""
    rank = capacity.max_dim if capacity.slots > 1 else dim
    delta = layer.delta
    if not isinstance(delta, LowRank) or delta.down.shape[:2] != (capacity.slots, rank):
        delta = LowRank(layer.base, capacity.slots, rank)
        layer.delta = delta
    return delta


class LowRank:
    """A layer's K low-rank changes: down (K, R, in * k * k), up (K, R, out); smaller ranks are padded with zeros."""

    def __init__(self, base: nn.Linear | nn.Conv2d, slots: int, rank: int) -> None:
        self.base = base
        weight, dtype = base.weight, torch.float32  # whatever dtype the base model has
        self.down = nn.Parameter(weight.new_zeros(slots, rank, weight[0].numel(), dtype=dtype))
        self.up = nn.Parameter(weight.new_zeros(slots, rank, weight.shape[0], dtype=dtype))
        self.dims, self.scales = [rank] * slots, [[0.0]] * slots  # DyLoRA has one scale per rank
        self.rank_limits: list[int | None] = [None] * slots
        self.pairs: list[list[tuple[nn.Parameter, nn.Parameter]]] = [[] for _ in range(slots)]  # one per unit

    @classmethod
    def for_parts(cls, layer: AdaptedLayer, parts: Mapping[str, Tensor]) -> LowRank:
        """Return a change of one slot that these parts can be loaded into."""
        return cls(layer.base, 1, len(parts["lora_down.weight"]))

    @torch.no_grad()
    def start(self, slot: int, scales: list[float], unit: int, generator: torch.Generator) -> None:
        """Start a new change: `down` Kaiming-uniform, `up` zero.

        Args:
            slot: the slot to fill.
            scales: the scale at each rank from 1 on; their number is the rank.
            unit: how many ranks are trained together.
            generator: the source of the random numbers.
        """
        dim, n_inputs = len(scales), self.down.shape[2]
        self.down[slot].zero_()
        self.up[slot].zero_()
        bound = 1 / math.sqrt(n_inputs)  # kaiming_uniform with a = sqrt(5)
        self.down[slot, :dim] = torch.empty(dim, n_inputs).uniform_(-bound, bound, generator=generator)
        self.dims[slot], self.scales[slot], self.rank_limits[slot] = dim, scales, None
        units = [slice(begin, begin + unit) for begin in range(0, dim, unit)]
        self.pairs[slot] = [
            (nn.Parameter(self.down.data[slot, ranks]), nn.Parameter(self.up.data[slot, ranks])) for ranks in units
        ]

    def scale(self, slot: int) -> float:
        """Return the factor of up @ down at the rank in use."""
        return self.scales[slot][(self.rank_limits[slot] or len(self.scales[slot])) - 1]

    def forward(self, x: Tensor, base: nn.Module, routing: SlotRouting) -> Tensor:
        """Return base(x) plus what each sample's change adds."""
        y: Tensor = base(x)
        slots = routing.only or range(len(self.rank_limits))
        down, up = routing.select(self.down), routing.select(self.up)
        batch, limits = x.shape[0], [self.rank_limits[slot] for slot in slots]
        hidden = self._hidden(x, down)
        if any(limits):
            ranks = torch.arange(down.shape[1], device=x.device)
            used = torch.tensor([rank or down.shape[1] for rank in limits], device=x.device)
            hidden = hidden * (ranks < used[:, None, None]).to(hidden.dtype)
        scales = [self.scale(slot) for slot in slots]
        scale = scales[0]
        if routing.weights is not None or any(other != scale for other in scales):
            by_sample = hidden.reshape(batch, -1, hidden.shape[-1]) * routing.scales(scales, batch, hidden)
            hidden, scale = by_sample.view(hidden.shape), 1.0
        out = torch.baddbmm(_rows(y, len(slots)), hidden, up, alpha=scale)  # scales and adds in one pass
        if y.dim() < 4:
            return out.view(y.shape)
        return out.view(batch, *y.shape[2:], out.shape[-1]).permute(0, 3, 1, 2)

    def _hidden(self, x: Tensor, down: Tensor) -> Tensor:
        """Return down(x), of shape (K, B / K * tokens, R).

        Where the layer is a convolution larger than 1x1, one grouped convolution serves all slots.
        """
        slots, rank = down.shape[:2]
        base = self.base
        if isinstance(base, nn.Linear) or base.kernel_size == (1, 1):
            return torch.bmm(_rows(x, slots), down.transpose(1, 2))
        grouped = x.view(slots, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        kernel = down.reshape(slots * rank, *base.weight.shape[1:])
        convolved = F.conv2d(grouped, kernel, None, base.stride, base.padding, base.dilation, slots)
        return convolved.view(len(grouped), slots, rank, -1).permute(1, 0, 3, 2).reshape(slots, -1, rank)

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """Return views of a slot's part of the stacked tensors, one pair per unit."""
        return [parameter for pair in self.pairs[slot] for parameter in pair]

    def gather_grads(self, slot: int) -> None:
        """Store a slot's part of the stacked gradients in its parameters.

        After a step with a limited rank only the last unit in use gets its gradient.
        """
        begin = 0
        for down, up in self.pairs[slot]:
            ranks = slice(begin, begin + len(down))
            begin += len(down)
            idle = self.down.grad is None or self.up.grad is None or self.rank_limits[slot] not in (None, begin)
            down.grad = None if idle else self.down.grad[slot, ranks]  # type: ignore[index]
            up.grad = None if idle else self.up.grad[slot, ranks]  # type: ignore[index]

    def clear_grads(self) -> None:
        """Delete the stacked gradients, and the slots' views of them, which would keep their memory."""
        views = (parameter for pairs in self.pairs for pair in pairs for parameter in pair)
        for parameter in (self.down, self.up, *views):
            parameter.grad = None

    def limit_rank(self, slot: int, rank: int | None) -> None:
        """Use only a slot's first `rank` ranks from now on; None uses all."""
        self.rank_limits[slot] = rank

    def parts(self, slot: int) -> State:
        """Return `lora_down.weight` (r, in, ...), `lora_up.weight` (out, r, ...) and `alpha`, which is scale * r."""
        dim, shape = self.dims[slot], shape_of(self.base)
        down, up = self.down.detach()[slot, :dim], self.up.detach()[slot, :dim]
        return {
            "lora_down.weight": down.cpu().clone().view(dim, *shape[1:]),
            "lora_up.weight": up.cpu().T.contiguous().clone().view(-1, dim, *(1,) * (len(shape) - 2)),
            "alpha": torch.tensor(self.scales[slot][-1] * dim, dtype=torch.float64),
        }

    @torch.no_grad()
    def load(self, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Set a slot's tensors to what `parts` returned; empty parts mean a change of zero.

        Raises:
            ConfigError: they do not fit the layer or the largest rank.
        """
        self.down[slot].zero_()
        self.up[slot].zero_()
        if not parts:
            return
        down, up = parts["lora_down.weight"].flatten(1), parts["lora_up.weight"].flatten(1)
        rank = len(down)
        max_rank, sides = self.down.shape[1], (self.up.shape[2], self.down.shape[2])
        if rank > max_rank or (up.shape[0], down.shape[1]) != sides or up.shape[1] != rank:
            raise ConfigError(
                f"up {tuple(up.shape)} and down {tuple(down.shape)} do not fit {sides[0]} x {sides[1]} weights and a "
                f"rank of at most {max_rank}"
            )
        self.down[slot, :rank], self.up[slot, :rank] = down.to(self.down), up.T.to(self.up)
        scale = float(parts["alpha"]) / rank if "alpha" in parts else 1.0
        if rank != len(self.scales[slot]) or not math.isclose(scale, self.scales[slot][-1], rel_tol=1e-6):
            self.scales[slot] = [scale] * rank
        self.dims[slot] = rank

    def dense(self, slot: int) -> Tensor:
        """Return scale * up @ down, of the layer's shape."""
        dim = self.dims[slot]
        product = self.up[slot, :dim].T @ self.down[slot, :dim]
        return (self.scale(slot) * product).view(shape_of(self.base))

    def norm(self, slot: int) -> Tensor:
        """Return the norm of scale * up @ down; of a DyLoRA, the largest norm at any of its ranks.

        |up @ down|^2 is the sum of all elements of (down down^T) * (up^T up), so that r x r products are enough
        (`scale_weight_norms` of kohya's sd-scripts). The same sum over the first b rows and columns gives rank b.
        """
        dim, scales = self.dims[slot], self.scales[slot]
        down, up = self.down[slot, :dim], self.up[slot, :dim]
        products = (down @ down.T) * (up @ up.T)
        if len(self.pairs[slot]) < 2:
            return products.sum().clamp(min=0).sqrt() * scales[-1]
        by_rank = products.cumsum(0).cumsum(1).diagonal().clamp(min=0).sqrt() * products.new_tensor(scales)
        ends = torch.tensor([len(pair[0]) for pair in self.pairs[slot]]).cumsum(0) - 1
        return by_rank[ends].max()

    @torch.no_grad()
    def rescale(self, slot: int, factor: Tensor) -> None:
        """Multiply each of the two factors by the root of `factor`."""
        dim = self.dims[slot]
        self.down[slot, :dim] *= factor.sqrt()
        self.up[slot, :dim] *= factor.sqrt()


def _rows(x: Tensor, slots: int) -> Tensor:
    """Reshape (B, tokens, C) or (B, C, H, W) to (K, B / K * tokens, C); a view where the memory layout allows it."""
    tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
    return tokens.reshape(slots, -1, tokens.shape[-1])
