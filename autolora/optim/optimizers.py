"""Optimizers as frozen dataclasses that build themselves."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import optimization

from autolora.errors import ConfigError
from autolora.optim.prodigy import BatchedProdigy

T = TypeVar("T", bound="OptimizerSpec")
Params = Sequence[nn.Parameter]


class Buildable:
    """What every optimizer does."""

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot."""
        raise NotImplementedError

    def check(self, device: torch.device) -> None:
        """Refuse what cannot be built there, before anything trains.

        Raises:
            ConfigError: a library is missing, or it does not run on such a device.
        """
        self.build([nn.Parameter(torch.zeros(1, device=device))])


@dataclass(frozen=True)
class OptimizerSpec(Buildable):
    """What every optimizer with a rate of one's own choosing has."""

    lr: float = 1e-4
    text_encoder_lr: float | None = None  # where the text encoder is adapted too; null: the same
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("lr", "text_encoder_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                raise ConfigError(f"optimizer.{name} must be above 0 and below 1, got {rate}")

    def for_text_encoder(self: T) -> T:
        """The same with the text encoder's own rate."""
        return replace(self, lr=self.text_encoder_lr or self.lr)


@dataclass(frozen=True)
class AdamW(OptimizerSpec):
    """AdamW (Loshchilov & Hutter 2019)."""

    beta1: float = 0.9
    beta2: float = 0.999

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot."""
        return torch.optim.AdamW(
            params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class AdamW8bit(AdamW):
    """AdamW that keeps its moments in 8 bits (Dettmers et al. 2022): a quarter of the memory, on GPUs."""

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot.

        Raises:
            ConfigError: bitsandbytes is not installed, or the weights are not on a GPU.
        """
        library = optional("bitsandbytes", "8bit", "AdamW8bit")
        if params[0].device.type != "cuda":
            raise ConfigError("AdamW8bit runs on NVIDIA GPUs only, the model is on the CPU: use optimizer=adamw")
        found: torch.optim.Optimizer = library.optim.AdamW8bit(
            params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return found


@dataclass(frozen=True)
class Adafactor(OptimizerSpec):
    """Adafactor (Shazeer & Stern 2018) at a rate of one's own: second moments by row and column only."""

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot; torch's own scales its rate by a weight's size, which is 0 when a LoRA starts."""
        found: torch.optim.Optimizer = optimization.Adafactor(
            params, lr=self.lr, weight_decay=self.weight_decay, scale_parameter=False, relative_step=False
        )
        return found


@dataclass(frozen=True)
class Lion(OptimizerSpec):
    """Lion (Chen et al. 2023): every step has the same size, so a third to a tenth of AdamW's rate."""

    beta1: float = 0.9
    beta2: float = 0.99

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot.

        Raises:
            ConfigError: pytorch_optimizer is not installed.
        """
        return _of_pytorch_optimizer(
            "Lion", params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class CAME(OptimizerSpec):
    """CAME (Luo et al. 2023): Adafactor that trusts its steps by how steady they are."""

    beta1: float = 0.9
    beta2: float = 0.999
    beta3: float = 0.9999

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot.

        Raises:
            ConfigError: pytorch_optimizer is not installed.
        """
        betas = (self.beta1, self.beta2, self.beta3)
        return _of_pytorch_optimizer("CAME", params, lr=self.lr, betas=betas, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class ScheduleFree(OptimizerSpec):
    """AdamW whose running average takes the place of a schedule (Defazio et al. 2024).

    It has two states: what it steps from, and the average, which is what is saved and judged; `train()` and `eval()`
    change from one to the other.
    """

    beta1: float = 0.9
    beta2: float = 0.999

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot.

        Raises:
            ConfigError: pytorch_optimizer is not installed.
        """
        return _of_pytorch_optimizer(
            "ScheduleFreeAdamW", params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class Prodigy(Buildable):
    """Prodigy (Mishchenko & Defazio 2023): the rate is found; `d_coef` is what one tunes.

    One estimate d an optimizer, so the text encoder, where it is adapted too, has an optimizer of its own.
    """

    lr: float = 1.0
    d_coef: float = 1.0
    text_encoder_d_coef: float | None = None  # null: the same
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    d0: float = 1e-6  # where the estimate starts; runs of a few hundred optimizer steps need it higher

    def __post_init__(self) -> None:
        if self.lr != 1.0:
            raise ConfigError(
                f"Prodigy finds its own rate: optimizer.lr must be 1, got {self.lr}; tune optimizer.d_coef"
            )
        for name in ("d_coef", "text_encoder_d_coef"):
            factor = getattr(self, name)
            if factor is not None and not 0 < factor <= 10:
                raise ConfigError(f"optimizer.{name} must be above 0 and at most 10 (0.5 to 2 is usual), got {factor}")
        if not 0 < self.d0 <= 1e-2:
            raise ConfigError(f"optimizer.d0 must be above 0 and at most 0.01 (1e-6 is usual), got {self.d0}")

    def for_text_encoder(self) -> Prodigy:
        """The same with the text encoder's own factor."""
        return replace(self, d_coef=self.text_encoder_d_coef or self.d_coef)

    def build(self, params: Params) -> torch.optim.Optimizer:
        """The optimizer of one slot, with an estimate d of its own."""
        with redirect_stdout(io.StringIO()):  # it prints its settings
            optimizer: torch.optim.Optimizer = BatchedProdigy(
                params,
                lr=self.lr,
                d_coef=self.d_coef,
                d0=self.d0,
                betas=(self.beta1, self.beta2),
                weight_decay=self.weight_decay,
                safeguard_warmup=True,
                use_bias_correction=True,
            )
        return optimizer


def optional(module: str, extra: str, what: str) -> Any:
    """An optional library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{what} needs {module}: pip install 'autolora[{extra}]'") from error


def _of_pytorch_optimizer(name: str, params: Params, **settings: Any) -> torch.optim.Optimizer:
    library = optional("pytorch_optimizer", "optimizers", name)
    found: torch.optim.Optimizer = getattr(library, name)(params, **settings)
    return found


Optimizer = OptimizerSpec | Prodigy
OPTIMIZERS: dict[str, type[OptimizerSpec] | type[Prodigy]] = {
    "adamw": AdamW,
    "adamw8bit": AdamW8bit,
    "adafactor": Adafactor,
    "lion": Lion,
    "came": CAME,
    "schedulefree": ScheduleFree,
    "prodigy": Prodigy,
}
