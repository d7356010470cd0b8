"""Optimizers and their settings: each is one frozen dataclass that builds itself.

A new optimizer is one class here with an entry of `OPTIMIZERS`. The config is read before torch is imported, so torch
and the optimizers' libraries are imported only inside the methods that need them.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from autolora.errors import ConfigError
from autolora.optim.base import Optimizer, OptimizerSpec, of_pytorch_optimizer, optional

if TYPE_CHECKING:
    import torch

    from autolora.optim.base import Params


@dataclass(frozen=True)
class AdamW(OptimizerSpec):
    """AdamW (Loshchilov & Hutter 2019)."""

    beta1: float = 0.9
    beta2: float = 0.999

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters."""
        import torch

        return torch.optim.AdamW(
            params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class AdamW8bit(AdamW):
    """AdamW with 8-bit moments (Dettmers et al. 2022): a quarter of the memory, on NVIDIA GPUs only."""

    state_bytes: ClassVar[float | None] = 2.0  # two moments of one byte; it cannot step on the CPU

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters.

        Raises:
            ConfigError: bitsandbytes is not installed, or the weights are not on a GPU.
        """
        library = optional("bitsandbytes", "8bit", "AdamW8bit")
        if params[0].device.type != "cuda":
            raise ConfigError("AdamW8bit runs on NVIDIA GPUs only, the model is on the CPU: use optimizer=adamw")
        optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(
            params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return optimizer


@dataclass(frozen=True)
class Adafactor(OptimizerSpec):
    """Adafactor (Shazeer & Stern 2018) at a fixed learning rate: second moments by row and column only."""

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters.

        This is not torch's Adafactor, which multiplies its rate by the weight's size: 0 for half of a new LoRA.
        """
        from transformers.optimization import Adafactor as TransformersAdafactor

        optimizer: torch.optim.Optimizer = TransformersAdafactor(
            params, lr=self.lr, weight_decay=self.weight_decay, scale_parameter=False, relative_step=False
        )
        return optimizer

    def kohya_args(self) -> tuple[str, ...]:
        """Return the values of sd-scripts' `--optimizer_args`."""
        return (*super().kohya_args(), "scale_parameter=False", "relative_step=False", "warmup_init=False")


@dataclass(frozen=True)
class Lion(OptimizerSpec):
    """Lion (Chen et al. 2023): it steps by the sign of the momentum and needs a third to a tenth of AdamW's rate."""

    beta1: float = 0.9
    beta2: float = 0.99

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters.

        Raises:
            ConfigError: pytorch_optimizer is not installed.
        """
        return of_pytorch_optimizer(
            "Lion", params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class CAME(OptimizerSpec):
    """CAME (Luo et al. 2023): Adafactor whose steps are larger where successive updates agree."""

    kohya_name: ClassVar[str | None] = "pytorch_optimizer.CAME"

    beta1: float = 0.9
    beta2: float = 0.999
    beta3: float = 0.9999

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters.

        Raises:
            ConfigError: pytorch_optimizer is not installed.
        """
        betas = (self.beta1, self.beta2, self.beta3)
        return of_pytorch_optimizer("CAME", params, lr=self.lr, betas=betas, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class ScheduleFree(OptimizerSpec):
    """AdamW with a running average of the weights instead of a schedule (Defazio et al. 2024).

    The weights that it trains and their average are two states, and `train()` and `eval()` switch between them. The
    average is what is saved and scored.
    """

    kohya_name: ClassVar[str | None] = "AdamWScheduleFree"
    replaces_schedule: ClassVar[bool] = True

    beta1: float = 0.9
    beta2: float = 0.999

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters.

        Raises:
            ConfigError: pytorch_optimizer is not installed.
        """
        return of_pytorch_optimizer(
            "ScheduleFreeAdamW", params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class Prodigy(Optimizer):
    """Prodigy (Mishchenko & Defazio 2023): it estimates the learning rate; `d_coef` scales the estimate.

    One optimizer has one estimate d, so the text encoder, where it is adapted too, gets an optimizer of its own.
    """

    lr: float = 1.0
    d_coef: float = 1.0
    text_encoder_d_coef: float | None = None  # None: `d_coef`
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    d0: float = 1e-6  # the first estimate; training runs of a few hundred optimizer steps need a higher one

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
        """Return the same settings with the text encoder's factor."""
        return replace(self, d_coef=self.text_encoder_d_coef or self.d_coef)

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters."""
        from autolora.optim.prodigy import BatchedProdigy

        with redirect_stdout(io.StringIO()):  # prodigyopt prints its settings
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

    def kohya_args(self) -> tuple[str, ...]:
        """Return the values of sd-scripts' `--optimizer_args`."""
        estimate = (f"d_coef={self.d_coef:g}", f"d0={self.d0:g}", "safeguard_warmup=True", "use_bias_correction=True")
        return (*super().kohya_args(), *estimate)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "adamw8bit": AdamW8bit,
    "adafactor": Adafactor,
    "lion": Lion,
    "came": CAME,
    "schedulefree": ScheduleFree,
    "prodigy": Prodigy,
}
