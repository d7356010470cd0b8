"""Learning-rate schedules: pure functions from (optimizer step, total) to a factor between 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autolora.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    def factor(self, step: int, total: int) -> float:
        """Always 1."""
        return 1.0


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine decay to zero, restarted at full rate (Loshchilov & Hutter 2017)."""

    cycles: int = 3

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ConfigError(f"schedule.cycles must be at least 1, got {self.cycles}")

    def factor(self, step: int, total: int) -> float:
        """0.5 (1 + cos(pi * position in the cycle))."""
        position = (self.cycles * step / max(1, total)) % 1.0
        return 0.5 * (1 + math.cos(math.pi * position))


@dataclass(frozen=True)
class AnnealedCosine:
    """Cycles that warm up linearly from `floor`, fall by cosine back to it, and peak `gamma` lower each time.

    Cycle length L becomes round((L - w) * multiplier) + w with w warm-up steps.
    """

    cycles: int = 3
    warmup: float = 0.1
    gamma: float = 0.7
    multiplier: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.cycles < 1 or not 0 <= self.warmup < 1 or not 0 < self.gamma <= 1 or self.multiplier <= 0:
            raise ConfigError(
                "schedule needs cycles >= 1, 0 <= warmup < 1, 0 < gamma <= 1 and multiplier > 0, got "
                f"{self.cycles}, {self.warmup}, {self.gamma} and {self.multiplier}"
            )

    def factor(self, step: int, total: int) -> float:
        """The factor at an optimizer step."""
        growth = sum(self.multiplier**i for i in range(self.cycles))
        length = max(1, round(total / growth))
        warmup, peak, start = round(self.warmup * length), 1.0, 0
        while step >= start + length:
            start += length
            length = max(1, round((length - warmup) * self.multiplier) + warmup)
            peak *= self.gamma
        position = step - start
        if position < warmup:
            return self.floor + (peak - self.floor) * (position + 1) / warmup
        fall = (position - warmup) / max(1, length - warmup)
        return self.floor + (peak - self.floor) * 0.5 * (1 + math.cos(math.pi * fall))


Schedule = Constant | CosineRestarts | AnnealedCosine
SCHEDULES: dict[str, type[Constant] | type[CosineRestarts] | type[AnnealedCosine]] = {
    "constant": Constant,
    "cosine_restarts": CosineRestarts,
    "annealed_cosine": AnnealedCosine,
}
