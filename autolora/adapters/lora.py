"""LoRA for K trials at once on one frozen base (K = 1 is the same code).

Batches are K contiguous, equally long segments, one a slot; every sample has its own LoRA weight, so that the base
model (weight 0) and several weights render in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autolora.errors import ConfigError

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2", "fc1", "fc2"),
    "projections": ("proj_in", "proj_out"),
}
State = dict[str, Tensor]


@dataclass(frozen=True)
class NormStats:
    """What max-norm scaling did to one slot: modules scaled, mean and largest norm afterwards."""

    scaled: int
    mean: float
    max: float


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021): delta = alpha / dim * up @ down."""

    dim: int = 32
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "feed_forward", "projections")
    text_encoder: bool = False

    def __post_init__(self) -> None:
        if self.dim < 1 or self.alpha <= 0:
            raise ConfigError(
                f"adapter.dim must be at least 1 and adapter.alpha above 0, got {self.dim} and {self.alpha}"
            )
        unknown = set(self.targets) - set(TARGETS)
        if unknown or not self.targets:
            raise ConfigError(f"adapter.targets must be some of {', '.join(TARGETS)}, got {list(self.targets)}")

    @property
    def scale(self) -> float:
        """alpha / dim."""
        return self.alpha / self.dim

    def attach(self, modules: Mapping[str, nn.Module], slots: int = 1, max_dim: int | None = None) -> AdapterSet:
        """Wrap every targeted layer; the returned set has room for `slots` adapters of rank up to `max_dim`."""
        return AdapterSet(modules, self.targets, self.text_encoder, slots, max_dim or self.dim)


class Routing:
    """The scale of each sample of the coming batch, shared by all layers of a set."""

    def __init__(self, slots: int) -> None:
        self.slot_scales = [0.0] * slots
        self.weights: Tensor | None = None
        self.enabled = True
        self.cache: tuple[object, Tensor] | None = None

    @property
    def common_scale(self) -> float | None:
        """The one scale of all samples; None where they differ."""
        first = self.slot_scales[0]
        return first if self.weights is None and all(scale == first for scale in self.slot_scales) else None

    def scales(self, batch: int, like: Tensor) -> Tensor:
        """(B, 1, 1) factors alpha / dim * weight for a batch of K contiguous segments."""
        key = (batch, tuple(self.slot_scales), like.dtype, like.device)
        if self.cache is None or self.cache[0] != key:
            slots = len(self.slot_scales)
            scales = like.new_tensor(self.slot_scales).repeat_interleave(batch // slots)
            if self.weights is not None:
                scales = scales * self.weights.to(like).repeat(batch // len(self.weights))
            self.cache = (key, scales.view(-1, 1, 1))
        return self.cache[1]


class LoRALayer(nn.Module):
    """A frozen Linear or 1 x 1 Conv2d with K low-rank updates: down (K, R, in), up (K, R, out)."""

    def __init__(self, base: nn.Linear | nn.Conv2d, routing: Routing, slots: int, max_dim: int) -> None:
        super().__init__()
        self.base, self.routing = base, routing
        inside, outside = base.weight.shape[1], base.weight.shape[0]
        self.down = nn.Parameter(base.weight.new_zeros(slots, max_dim, inside))
        self.up = nn.Parameter(base.weight.new_zeros(slots, max_dim, outside))

    def forward(self, x: Tensor) -> Tensor:
        """base(x) plus each sample's scaled update."""
        y: Tensor = self.base(x)
        if not self.routing.enabled:
            return y
        slots, batch = self.down.shape[0], x.shape[0]
        hidden = torch.bmm(_rows(x, slots), self.down.transpose(1, 2))
        scale = self.routing.common_scale
        if scale is None:
            each = hidden.view(batch, -1, hidden.shape[-1]) * self.routing.scales(batch, hidden)
            hidden, scale = each.view(hidden.shape), 1.0
        out = torch.baddbmm(_rows(y, slots), hidden, self.up, alpha=scale)  # one pass adds the update and scales it
        if y.dim() < 4:
            return out.view(y.shape)
        return out.view(batch, *y.shape[2:], out.shape[-1]).permute(0, 3, 1, 2)


class AdapterSet:
    """The wrapped layers of one model, reused by every trial of a process."""

    def __init__(
        self, modules: Mapping[str, nn.Module], targets: tuple[str, ...], text_encoder: bool, slots: int, max_dim: int
    ) -> None:
        self.slots, self.max_dim, self.touches_text_encoder = slots, max_dim, text_encoder
        self.routing = Routing(slots)
        self.layers: dict[str, LoRALayer] = {}
        self._homes: list[tuple[nn.Module, str, nn.Module]] = []
        self._dims = [max_dim] * slots
        self._alphas = [0.0] * slots
        self._views: list[list[tuple[nn.Parameter, nn.Parameter]]] = [[] for _ in range(slots)]
        suffixes = tuple(s for target in targets for s in TARGETS[target])
        for root_name, root in modules.items():
            if root_name == "text_encoder" and not text_encoder:
                continue
            for name, module in list(root.named_modules()):
                if name.endswith(suffixes) and _adaptable(module):
                    self._wrap(root, f"{root_name}.{name}", name, module)
        if not self.layers:
            raise ConfigError(f"adapter.targets={list(targets)} match no layer of the model")

    def _wrap(self, root: nn.Module, path: str, name: str, module: nn.Module) -> None:
        parent_name, _, attribute = name.rpartition(".")
        parent = root.get_submodule(parent_name)
        layer = LoRALayer(module, self.routing, self.slots, self.max_dim)  # type: ignore[arg-type]
        setattr(parent, attribute, layer)
        self.layers[path] = layer
        self._homes.append((parent, attribute, module))

    def detach(self) -> None:
        """Put the original layers back."""
        for parent, attribute, module in self._homes:
            setattr(parent, attribute, module)
        self.layers, self._homes = {}, []

    def start(self, slot: int, spec: LoRA, generator: torch.Generator) -> list[nn.Parameter]:
        """Give a slot a fresh adapter and return its parameters: down Kaiming-uniform as in peft, up zero."""
        if spec.dim > self.max_dim:
            raise ConfigError(f"adapter.dim={spec.dim} exceeds the {self.max_dim} this set was built for")
        self._dims[slot], self._alphas[slot] = spec.dim, spec.alpha
        self.routing.slot_scales[slot] = spec.scale
        self._views[slot] = []
        with torch.no_grad():
            for layer in self.layers.values():
                layer.down[slot].zero_()
                layer.up[slot].zero_()
                bound = 1 / math.sqrt(layer.down.shape[2])  # kaiming_uniform with a = sqrt(5)
                draw = torch.empty(spec.dim, layer.down.shape[2]).uniform_(-bound, bound, generator=generator)
                layer.down[slot, : spec.dim] = draw
                pair = (nn.Parameter(layer.down.data[slot, : spec.dim]), nn.Parameter(layer.up.data[slot, : spec.dim]))
                self._views[slot].append(pair)
        return self.parameters(slot)

    def parameters(self, slot: int) -> list[nn.Parameter]:
        """A slot's own parameters: views of the stacked ones, so that any optimizer works on them."""
        return [parameter for pair in self._views[slot] for parameter in pair]

    def gather_grads(self) -> None:
        """Hand each slot its part of the stacked gradients."""
        for slot, views in enumerate(self._views):
            dim = self._dims[slot]
            for layer, (down, up) in zip(self.layers.values(), views, strict=False):
                down.grad = None if layer.down.grad is None else layer.down.grad[slot, :dim]
                up.grad = None if layer.up.grad is None else layer.up.grad[slot, :dim]

    def clear_grads(self) -> None:
        """Drop the stacked gradients."""
        for layer in self.layers.values():
            layer.down.grad = layer.up.grad = None

    @contextmanager
    def weighted(self, per_sample: Tensor) -> Iterator[None]:
        """Each sample's LoRA weight, (B,); where all are 1 the faster path for one scale is kept."""
        self.routing.weights = None if bool((per_sample == 1).all()) else per_sample
        self.routing.cache = None
        try:
            yield
        finally:
            self.routing.weights = self.routing.cache = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone."""
        self.routing.enabled = False
        try:
            yield
        finally:
            self.routing.enabled = True

    def state(self, slot: int = 0) -> State:
        """A slot's adapter as CPU tensors: `<path>.lora_down.weight` (r, in), `.lora_up.weight` (out, r), `.alpha`."""
        out: State = {}
        dim = self._dims[slot]
        for path, layer in self.layers.items():
            tail = (1, 1) if isinstance(layer.base, nn.Conv2d) else ()
            down, up = layer.down.detach()[slot, :dim], layer.up.detach()[slot, :dim]
            out[f"{path}.lora_down.weight"] = down.cpu().clone().view(*down.shape, *tail)
            out[f"{path}.lora_up.weight"] = up.cpu().T.contiguous().clone().view(up.shape[1], dim, *tail)
            out[f"{path}.alpha"] = torch.tensor(self._alphas[slot], dtype=torch.float64)
        return out

    def load(self, state: State, slot: int = 0) -> None:
        """Put a saved adapter into a slot; layers it does not name get a zero update.

        Raises:
            ConfigError: it names layers this set has not wrapped, or its rank is too large.
        """
        paths = {key.removesuffix(".lora_down.weight") for key in state if key.endswith(".lora_down.weight")}
        unknown = paths - set(self.layers)
        dims = {state[f"{path}.lora_down.weight"].shape[0] for path in paths}
        if unknown or not paths or max(dims) > self.max_dim:
            what = (
                f"layers {sorted(unknown)[:3]} are not adapted here"
                if unknown
                else f"ranks {sorted(dims)} do not fit {self.max_dim}"
            )
            raise ConfigError(f"the LoRA does not fit this model: {what}")
        self._dims[slot] = dim = max(dims)
        alphas = {float(state[f"{p}.alpha"]) if f"{p}.alpha" in state else None for p in paths}
        alpha = alphas.pop() if len(alphas) == len(dims) == 1 else None
        self._alphas[slot] = alpha or float(dim)  # mixed ones, and zero, are folded into `up`
        self.routing.slot_scales[slot] = shared = self._alphas[slot] / dim
        with torch.no_grad():
            for path, layer in self.layers.items():
                layer.down[slot].zero_()
                layer.up[slot].zero_()
                if path in paths:
                    down, up = state[f"{path}.lora_down.weight"], state[f"{path}.lora_up.weight"]
                    rank = down.shape[0]
                    own = float(state[f"{path}.alpha"]) / rank if f"{path}.alpha" in state else 1.0
                    layer.down[slot, :rank] = down.reshape(rank, -1).to(layer.down)
                    layer.up[slot, :rank] = up.reshape(-1, rank).T.to(layer.up) * (own / shared)

    @torch.no_grad()
    def apply_max_norm(self, slot: int, max_norm: float) -> NormStats:
        """Cap each module's update: where n = |scale * up @ down| > max_norm, both shrink by sqrt(max_norm / n).

        |up @ down|^2 = trace((down down^T)(up^T up)) needs only r x r products (kohya sd-scripts' scale_weight_norms).
        """
        dim, scale = self._dims[slot], self.routing.slot_scales[slot]
        squares = []
        for layer in self.layers.values():
            down, up = layer.down[slot, :dim], layer.up[slot, :dim]
            squares.append(((down @ down.T) * (up @ up.T)).sum())
        norms = torch.stack(squares).clamp(min=0).sqrt() * scale
        factors = (max_norm / norms.clamp(min=1e-12)).clamp(max=1).sqrt()
        for layer, factor in zip(self.layers.values(), factors, strict=True):
            layer.down[slot, :dim] *= factor
            layer.up[slot, :dim] *= factor
        capped = norms.clamp(max=max_norm)
        return NormStats(int((norms > max_norm).sum()), float(capped.mean()), float(capped.max()))


def _rows(x: Tensor, slots: int) -> Tensor:
    """(B, tokens, C) or (B, C, H, W) -> (K, B / K * tokens, C); a view where the memory allows."""
    tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
    return tokens.reshape(slots, -1, tokens.shape[-1])


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
