"""The layers of LoRA, LoCon and DyLoRA: low-rank changes of K adapters at once on one frozen base model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.adapters.base import AdaptedLayer, SlotRouting, State, shape_of
from autolora.adapters.kinds import SlotCapacity
from autolora.errors import ConfigError


def cut(state: State, rank: int) -> State:
    """The first ranks of a trained DyLoRA as a LoRA of its own, with the alpha that they were trained with.

    Raises:
        ConfigError: it has fewer.
    """
    found: State = {}
    for key, tensor in state.items():
        if key.endswith(".lora_down.weight") and not 1 <= rank <= len(tensor):
            raise ConfigError(f"rank={rank}: a LoRA of rank {len(tensor)} can be cut to 1 to {len(tensor)}")
        if key.endswith(".alpha"):
            found[key] = tensor.clamp(max=rank)
        else:
            found[key] = (tensor[:rank] if key.endswith(".lora_down.weight") else tensor[:, :rank]).clone()
    return found


def low_rank_of(layer: AdaptedLayer, dim: int, room: SlotCapacity) -> LowRank:
    """A layer's low-rank change that has room for `dim`; a new one where there is none, or one of another kind."""
    wanted = room.max_dim if room.slots > 1 else dim
    there = layer.update
    if not isinstance(there, LowRank) or there.down.shape[:2] != (room.slots, wanted):
        there = LowRank(layer.base, room.slots, wanted)
        layer.kept = [there]
    return there


class LowRank:
    """A layer's K low-rank changes: down (K, R, in * k * k), up (K, R, out); smaller ranks padded with zeros."""

    def __init__(self, base: nn.Linear | nn.Conv2d, slots: int, rank: int) -> None:
        self.base = base
        full = torch.float32  # whatever the base is kept in
        weight = base.weight
        self.down = nn.Parameter(weight.new_zeros(slots, rank, weight[0].numel(), dtype=full))
        self.up = nn.Parameter(weight.new_zeros(slots, rank, weight.shape[0], dtype=full))
        self.dims, self.scales = [rank] * slots, [[0.0]] * slots  # scales by rank where there is more than one
        self.used: list[int | None] = [None] * slots
        self.pairs: list[list[tuple[nn.Parameter, nn.Parameter]]] = [[] for _ in range(slots)]  # one a unit

    @classmethod
    def of(cls, layer: AdaptedLayer, parts: Mapping[str, Tensor]) -> LowRank:
        """One with room for these parts."""
        return cls(layer.base, 1, len(parts["lora_down.weight"]))

    @torch.no_grad()
    def start(self, slot: int, scales: list[float], unit: int, generator: torch.Generator) -> None:
        """A fresh change of as many ranks as there are scales, trained in units of so many."""
        dim, inside = len(scales), self.down.shape[2]
        self.down[slot].zero_()
        self.up[slot].zero_()
        bound = 1 / math.sqrt(inside)  # kaiming_uniform with a = sqrt(5)
        self.down[slot, :dim] = torch.empty(dim, inside).uniform_(-bound, bound, generator=generator)
        self.dims[slot], self.scales[slot], self.used[slot] = dim, scales, None
        cuts = [slice(begin, begin + unit) for begin in range(0, dim, unit)]
        self.pairs[slot] = [
            (nn.Parameter(self.down.data[slot, cut]), nn.Parameter(self.up.data[slot, cut])) for cut in cuts
        ]

    def scale(self, slot: int) -> float:
        """The factor of up @ down at the rank in use."""
        return self.scales[slot][(self.used[slot] or len(self.scales[slot])) - 1]

    def forward(self, x: Tensor, base: nn.Module, routing: SlotRouting) -> Tensor:
        """base(x) plus each sample's change."""
        y: Tensor = base(x)
        chosen = routing.only or range(len(self.used))
        down, up = routing.of(self.down), routing.of(self.up)
        slots, batch, used = len(chosen), x.shape[0], [self.used[slot] for slot in chosen]
        hidden = self._hidden(x, down)
        if any(used):
            ranks = torch.arange(down.shape[1], device=x.device)
            kept = torch.tensor([rank or down.shape[1] for rank in used], device=x.device)
            hidden = hidden * (ranks < kept[:, None, None]).to(hidden.dtype)
        scales = [self.scale(slot) for slot in chosen]
        common = scales[0]
        if routing.weights is not None or any(scale != common for scale in scales):
            each = hidden.reshape(batch, -1, hidden.shape[-1]) * routing.scales(scales, batch, hidden)
            hidden, common = each.view(hidden.shape), 1.0
        out = torch.baddbmm(_rows(y, slots), hidden, up, alpha=common)  # one pass adds the change and scales it
        if y.dim() < 4:
            return out.view(y.shape)
        return out.view(batch, *y.shape[2:], out.shape[-1]).permute(0, 3, 1, 2)

    def _hidden(self, x: Tensor, down: Tensor) -> Tensor:
        """(K, B / K * tokens, R), by one grouped convolution where the base is one of more than one pixel."""
        slots, rank = down.shape[:2]
        base = self.base
        if isinstance(base, nn.Linear) or base.kernel_size == (1, 1):
            return torch.bmm(_rows(x, slots), down.transpose(1, 2))
        grouped = x.view(slots, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        kernel = down.reshape(slots * rank, *base.weight.shape[1:])
        seen = F.conv2d(grouped, kernel, None, base.stride, base.padding, base.dilation, slots)
        return seen.view(len(grouped), slots, rank, -1).permute(1, 0, 3, 2).reshape(slots, -1, rank)

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """Views of the stacked tensors, a pair a unit."""
        return [parameter for pair in self.pairs[slot] for parameter in pair]

    def gather_grads(self, slot: int) -> None:
        """The slot's part of the stacked gradients; of a limited step, the last unit's only."""
        begin = 0
        for down, up in self.pairs[slot]:
            cut = slice(begin, begin + len(down))
            begin += len(down)
            idle = self.down.grad is None or self.up.grad is None or self.used[slot] not in (None, begin)
            down.grad = None if idle else self.down.grad[slot, cut]  # type: ignore[index]
            up.grad = None if idle else self.up.grad[slot, cut]  # type: ignore[index]

    def clear_grads(self) -> None:
        """Drop the stacked gradients, and the slots' views that would keep them alive."""
        for parameter in (self.down, self.up, *(one for pairs in self.pairs for pair in pairs for one in pair)):
            parameter.grad = None

    def limit(self, slot: int, rank: int | None) -> None:
        """Use only the first ranks until told otherwise; None: all."""
        self.used[slot] = rank

    def parts(self, slot: int) -> State:
        """`lora_down.weight` (r, in, ...), `lora_up.weight` (out, r, ...) and `alpha`, which is scale * r."""
        dim, shape = self.dims[slot], shape_of(self.base)
        down, up = self.down.detach()[slot, :dim], self.up.detach()[slot, :dim]
        return {
            "lora_down.weight": down.cpu().clone().view(dim, *shape[1:]),
            "lora_up.weight": up.cpu().T.contiguous().clone().view(-1, dim, *(1,) * (len(shape) - 2)),
            "alpha": torch.tensor(self.scales[slot][-1] * dim, dtype=torch.float64),
        }

    @torch.no_grad()
    def load(self, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Take over what `parts` gave; nothing at all is a change of zero."""
        self.down[slot].zero_()
        self.up[slot].zero_()
        if not parts:
            return
        down, up = parts["lora_down.weight"].flatten(1), parts["lora_up.weight"].flatten(1)
        rank = len(down)
        room, sides = self.down.shape[1], (self.up.shape[2], self.down.shape[2])
        if rank > room or (up.shape[0], down.shape[1]) != sides or up.shape[1] != rank:
            raise ConfigError(
                f"up {tuple(up.shape)} and down {tuple(down.shape)} do not fit {sides[0]} x {sides[1]} weights and a "
                f"rank of at most {room}"
            )
        self.down[slot, :rank], self.up[slot, :rank] = down.to(self.down), up.T.to(self.up)
        scale = float(parts["alpha"]) / rank if "alpha" in parts else 1.0
        if rank != len(self.scales[slot]) or not math.isclose(scale, self.scales[slot][-1], rel_tol=1e-6):
            self.scales[slot] = [scale] * rank
        self.dims[slot] = rank

    def change(self, slot: int) -> Tensor:
        """scale * up @ down, of the layer's shape."""
        dim = self.dims[slot]
        product = self.up[slot, :dim].T @ self.down[slot, :dim]
        return (self.scale(slot) * product).view(shape_of(self.base))

    def norm(self, slot: int) -> Tensor:
        """The largest norm of scale * up @ down at any rank that is used.

        |up @ down|^2 is the sum over both ranks of (down down^T)(up^T up), so it needs only r x r products (kohya
        sd-scripts' scale_weight_norms), and the sums of its corners are those of the smaller ranks.
        """
        dim, scales = self.dims[slot], self.scales[slot]
        down, up = self.down[slot, :dim], self.up[slot, :dim]
        products = (down @ down.T) * (up @ up.T)
        if len(self.pairs[slot]) < 2:
            return products.sum().clamp(min=0).sqrt() * scales[-1]
        corners = products.cumsum(0).cumsum(1).diagonal().clamp(min=0).sqrt() * products.new_tensor(scales)
        ends = torch.tensor([len(pair[0]) for pair in self.pairs[slot]]).cumsum(0) - 1
        return corners[ends].max()

    @torch.no_grad()
    def rescale(self, slot: int, factor: Tensor) -> None:
        """Both factors by its root."""
        dim = self.dims[slot]
        self.down[slot, :dim] *= factor.sqrt()
        self.up[slot, :dim] *= factor.sqrt()


def _rows(x: Tensor, slots: int) -> Tensor:
    """(B, tokens, C) or (B, C, H, W) -> (K, B / K * tokens, C); a view where the memory allows."""
    tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
    return tokens.reshape(slots, -1, tokens.shape[-1])
