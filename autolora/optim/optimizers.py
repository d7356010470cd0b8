"""Optimizers as frozen dataclasses that build themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import torch
from prodigyopt import Prodigy as ProdigyOptimizer
from torch import nn

from autolora.errors import ConfigError


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019)."""

    lr: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise ConfigError(f"optimizer.lr must be above 0 and below 1, got {self.lr}")

    def build(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of one slot."""
        return torch.optim.AdamW(
            params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class Prodigy:
    """Prodigy (Mishchenko & Defazio 2023): the rate is found; `d_coef` is what one tunes."""

    lr: float = 1.0
    d_coef: float = 1.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    d0: float = 1e-6  # where the estimate starts; runs of a few hundred optimizer steps need it higher

    def __post_init__(self) -> None:
        if self.lr != 1.0:
            raise ConfigError(
                f"Prodigy finds its own rate: optimizer.lr must be 1, got {self.lr}; tune optimizer.d_coef"
            )
        if not 0 < self.d_coef <= 10:
            raise ConfigError(f"optimizer.d_coef must be above 0 and at most 10 (0.5 to 2 is usual), got {self.d_coef}")
        if not 0 < self.d0 <= 1e-2:
            raise ConfigError(f"optimizer.d0 must be above 0 and at most 0.01 (1e-6 is usual), got {self.d0}")

    def build(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of one slot, with an estimate d of its own."""
        with redirect_stdout(io.StringIO()):  # it prints its settings
            optimizer: torch.optim.Optimizer = ProdigyOptimizer(
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


OPTIMIZERS: dict[str, type[AdamW] | type[Prodigy]] = {"adamw": AdamW, "prodigy": Prodigy}
