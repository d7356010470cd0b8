"""The kinds of adapters and their settings: LoRA, DyLoRA, DoRA, LoHa, LoKr and IA3.

A new kind is one class here with an entry of `ADAPTERS`. The config is read before torch and peft are imported, so both
are imported only inside the methods that need them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autolora.adapters.settings import Adapter, SlotCapacity
from autolora.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Generator

    from autolora.adapters.base import AdaptedLayer

MAX_USEFUL_DIM = 32  # of LoHa and LoKr, by the community guide
MAX_USEFUL_CONV = 64, 32.0  # dim and alpha of convolutions, by the same guide
PEFT_LAYER = "layer"  # the name of the one layer that peft adapts at a time


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al. 2021): delta = alpha / dim * up @ down. With the target `conv` it is LoCon."""

    dim: int = 32
    alpha: float = 16.0
    conv_dim: int | None = None  # of convolutions larger than 1x1; None: dim and alpha
    conv_alpha: float | None = None
    rank_stabilized: bool = False  # scale by alpha / sqrt(dim) instead (Kalajdzievski 2023, rsLoRA)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranks(self)

    @property
    def max_rank(self) -> int:
        """The largest rank of any layer's change."""
        return max(self.dim, self.conv_dim or 1)

    @property
    def conv_ranks(self) -> tuple[int, float]:
        """dim and alpha of convolutions larger than 1x1."""
        return self.conv_dim or self.dim, self.conv_alpha or self.alpha

    def ranks(self, layer: AdaptedLayer) -> tuple[int, float]:
        """Return dim and alpha of a layer."""
        return self.conv_ranks if layer.kernel else (self.dim, self.alpha)

    def kohya_args(self, training: bool = False) -> dict[str, str]:
        """Return the arguments (`network_args`) of the module that loads a file, or of the one that trains it."""
        if "conv" not in self.targets:
            return {}
        dim, alpha = self.conv_ranks
        return {"conv_dim": str(dim), "conv_alpha": f"{self.alpha_in_file(dim, alpha):g}"}

    def alpha_in_file(self, dim: int, alpha: float) -> float:
        """Return the alpha of a file; rsLoRA divides alpha by the root of dim, so its file has a larger one."""
        return alpha * dim**0.5 if self.rank_stabilized else alpha

    def notes(self) -> tuple[str, ...]:
        """Return a warning where convolutions exceed the guide's limits."""
        dim, alpha = self.conv_ranks
        max_dim, max_alpha = MAX_USEFUL_CONV
        if "conv" not in self.targets or (dim <= max_dim and alpha <= max_alpha):
            return ()
        limits = f"above {max_dim} and {max_alpha:g} they pick up the dataset's noise"
        return (f"convolutions of dim {dim} and alpha {alpha:g}: {limits}",)

    def start(self, layer: AdaptedLayer, path: str, slot: int, capacity: SlotCapacity, generator: Generator) -> None:
        """Start with `down` Kaiming-uniform, as peft does, and `up` zero."""
        from autolora.adapters.low_rank import low_rank_delta

        dim, alpha = self.ranks(layer)
        scale = alpha / math.sqrt(dim) if self.rank_stabilized else alpha / dim
        low_rank_delta(layer, dim, capacity).start(slot, [scale] * dim, dim, generator)


@dataclass(frozen=True, kw_only=True)
class DyLoRA(Adapter):
    """LoRA that can be cut to any multiple of `unit` as its rank after training (Valipour et al. 2022).

    Each step draws such a rank b and trains the last unit of the first b ranks; the ranks below it are used but not
    trained. The scale is min(alpha, b) / b, so that the guide's pairs come out: dim 64 and alpha 32 can be cut to
    60 / 32, ..., 4 / 4.
    """

    kohya_trainer: ClassVar[str | None] = "networks.dylora"
    kohya_note: ClassVar[str] = (
        "Its DyLoRA computes every rank at each step; autolora leaves out the ranks above the drawn one."
    )
    dim: int = 64
    alpha: float = 32.0
    unit: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranks(self)
        if self.unit < 1 or self.dim % self.unit:
            raise ConfigError(f"adapter.dim={self.dim} must be divisible by adapter.unit={self.unit}")
        if "conv" in self.targets:
            raise ConfigError("DyLoRA cannot adapt convolutions: leave `conv` out of adapter.targets")

    @property
    def max_rank(self) -> int:
        """The largest rank of any layer's change."""
        return self.dim

    @property
    def n_ranks(self) -> int:
        """How many ranks a training step can be limited to: the multiples of `unit`."""
        return self.dim // self.unit

    def kohya_args(self, training: bool = False) -> dict[str, str]:
        """Return the arguments (`network_args`) of the module that loads a file, or of the one that trains it."""
        return {"unit": str(self.unit)} if training else {}

    def start(self, layer: AdaptedLayer, path: str, slot: int, capacity: SlotCapacity, generator: Generator) -> None:
        """Start with `down` Kaiming-uniform, as peft does, and `up` zero."""
        from autolora.adapters.low_rank import low_rank_delta

        scales = [min(self.alpha, rank) / rank for rank in range(1, self.dim + 1)]
        low_rank_delta(layer, self.dim, capacity).start(slot, scales, self.unit, generator)


@dataclass(frozen=True, kw_only=True)
class PeftKind(LoRA):
    """What the kinds share whose layers peft computes: dim and alpha by layer, and one adapter at a time."""

    packable: ClassVar[bool] = False
    kohya_module: ClassVar[str] = "lycoris.kohya"
    lycoris_preset: ClassVar[str] = "attn-mlp"  # the one with our layers; with convolutions its default is nearest
    lycoris_args: ClassVar[dict[str, str]] = {}  # which algorithm of LyCORIS it is

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_stabilized and not isinstance(self, DoRA):
            raise ConfigError("adapter.rank_stabilized works with LoRA and DoRA only; leave it out")

    def kohya_args(self, training: bool = False) -> dict[str, str]:
        """Return the arguments (`network_args`) of LyCORIS."""
        return {**self.lycoris_args, **self._preset(training), **super().kohya_args(training)}

    def _preset(self, training: bool) -> dict[str, str]:
        """Return LyCORIS' preset, without which it also trains resnets, samplers and the time's embedding."""
        return {"preset": self.lycoris_preset} if training and "conv" not in self.targets else {}

    def peft_config(self, dim: int, alpha: float) -> PeftConfig:
        """Return peft's settings for one layer."""
        raise NotImplementedError

    def start(self, layer: AdaptedLayer, path: str, slot: int, capacity: SlotCapacity, generator: Generator) -> None:
        """Start as peft does, with a seed drawn from `generator`."""
        from autolora.adapters.peft_layers import PeftLayer

        layer.delta = PeftLayer(layer.base, self.peft_config(*self.ranks(layer)), generator)


@dataclass(frozen=True, kw_only=True)
class DoRA(PeftKind):
    """LoRA with a separate trained magnitude per output (Liu et al. 2024): m * (W + delta) / |W + delta|."""

    lycoris_args: ClassVar[dict[str, str]] = {"algo": "lora", "dora_wd": "True"}

    def peft_config(self, dim: int, alpha: float) -> PeftConfig:
        """Return peft's settings for one layer."""
        from peft import LoraConfig

        return LoraConfig(
            r=dim,
            lora_alpha=alpha,
            use_dora=True,
            use_rslora=self.rank_stabilized,
            target_modules=[PEFT_LAYER],
        )


@dataclass(frozen=True, kw_only=True)
class LoHa(PeftKind):
    """Hadamard product of two low-rank changes (Hyeon-Woo et al. 2022, FedPara): (a1 b1) * (a2 b2) * alpha / dim."""

    lycoris_args: ClassVar[dict[str, str]] = {"algo": "loha"}

    def peft_config(self, dim: int, alpha: float) -> PeftConfig:
        """Return peft's settings for one layer."""
        from peft import LoHaConfig

        return LoHaConfig(r=dim, alpha=alpha, target_modules=[PEFT_LAYER])

    def notes(self) -> tuple[str, ...]:
        """Return warnings where the ranks exceed the guide's limits."""
        return (*_dim_notes("LoHa", self), *super().notes())


@dataclass(frozen=True, kw_only=True)
class LoKr(PeftKind):
    """Kronecker product (Yeh et al. 2024, LyCORIS): kron(w1, w2), with w2 factored where that saves weights.

    The scale alpha / dim belongs to the factored w2. Where neither factor is factored there is no rank and no scale, as
    in the programs that load such files.
    """

    lycoris_args: ClassVar[dict[str, str]] = {"algo": "lokr"}
    factor: int = -1  # the largest side of w1; -1: as near to a square as the layer allows

    def peft_config(self, dim: int, alpha: float) -> PeftConfig:
        """Return peft's settings for one layer."""
        from peft import LoKrConfig

        return LoKrConfig(r=dim, alpha=alpha, decompose_factor=self.factor, target_modules=[PEFT_LAYER])

    def kohya_args(self, training: bool = False) -> dict[str, str]:
        """Return the arguments (`network_args`) of LyCORIS."""
        args = {**self.lycoris_args, "factor": str(self.factor), **self._preset(training)}
        return {**args, **LoRA.kohya_args(self, training)}

    def notes(self) -> tuple[str, ...]:
        """Return warnings where the ranks exceed the guide's limits."""
        return (*_dim_notes("LoKr", self), *super().notes())


@dataclass(frozen=True, kw_only=True)
class IA3(PeftKind):
    """A factor for each output of the keys and values and each input of the feed-forwards (Liu et al. 2022).

    It has no rank. dim and alpha are accepted, so that other kinds' recipes need no change, and ignored. A layer that
    has a bias cannot have its outputs scaled, because the programs that load such files scale only the weight.
    """

    lycoris_preset: ClassVar[str] = "ia3"
    kohya_note: ClassVar[str] = (
        "LyCORIS 3.2 and 4.1 cannot train IA3: both stop with an error of their own, whatever the arguments are."
    )
    lycoris_args: ClassVar[dict[str, str]] = {"algo": "ia3"}
    OUTPUTS: ClassVar[tuple[str, ...]] = ("to_k", "to_v")
    INPUTS: ClassVar[tuple[str, ...]] = ("ff.net.2", "fc2", "feed_forward.w2")

    def adapts(self, path: str) -> bool:
        """Return whether the layer of this path is changed."""
        return super().adapts(path) and path.endswith(self.OUTPUTS + self.INPUTS)

    def start(self, layer: AdaptedLayer, path: str, slot: int, capacity: SlotCapacity, generator: Generator) -> None:
        """Start with factors of 1.

        Raises:
            ConfigError: the layer has a bias, which factors of the outputs would change too.
        """
        from autolora.adapters.peft_layers import PeftLayer

        on_input = path.endswith(self.INPUTS)
        if layer.base.bias is not None and not on_input:
            raise ConfigError(f"IA3 does not suit this model: {path} has a bias, which IA3 files cannot scale")
        layer.delta = PeftLayer(layer.base, ia3_config(on_input))

    def notes(self) -> tuple[str, ...]:
        """Return a note that dim and alpha are ignored."""
        return (f"IA3 has neither rank nor alpha: dim {self.dim} and alpha {self.alpha:g} are not used",)


ADAPTERS: dict[str, type[LoRA] | type[DyLoRA]] = {
    "lora": LoRA,
    "dylora": DyLoRA,
    "dora": DoRA,
    "loha": LoHa,
    "lokr": LoKr,
    "ia3": IA3,
}


def ia3_config(on_input: bool) -> PeftConfig:
    """Return peft's settings of an IA3 layer whose factors scale its inputs or its outputs."""
    from peft import IA3Config

    return IA3Config(target_modules=[PEFT_LAYER], feedforward_modules=[PEFT_LAYER] if on_input else [])


def _check_ranks(adapter: LoRA | DyLoRA) -> None:
    """Raise a ConfigError for a rank below 1 or an alpha that is not above 0."""
    for name in ("dim", "conv_dim"):
        rank = getattr(adapter, name, None)
        if rank is not None and rank < 1:
            raise ConfigError(f"adapter.{name} must be at least 1, got {rank}")
    for name in ("alpha", "conv_alpha"):
        alpha = getattr(adapter, name, None)
        if alpha is not None and alpha <= 0:
            raise ConfigError(f"adapter.{name} must be above 0, got {alpha}")


def _dim_notes(kind: str, adapter: LoRA) -> tuple[str, ...]:
    dims = {"dim": adapter.dim, "conv_dim": adapter.conv_dim if "conv" in adapter.targets else None}
    return tuple(
        f"{kind} of {name} {dim}: above {MAX_USEFUL_DIM} it learns no more and oversaturates sooner"
        for name, dim in dims.items()
        if dim is not None and dim > MAX_USEFUL_DIM
    )
