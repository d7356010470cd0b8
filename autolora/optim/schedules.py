"""Learning-rate schedules: pure functions from (optimizer step, total) to a factor between 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autolora.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """The same rate throughout, after a linear warm-up over a share of the run."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total: int) -> float:
        """1, once warm."""
        return _warm(self.warmup, step, total)[0]


@dataclass(frozen=True)
class Linear:
    """Linear decay to zero after a linear warm-up over a share of the run."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total: int) -> float:
        """1 - position after the warm-up."""
        rising, position = _warm(self.warmup, step, total)
        return rising * (1 - position)


@dataclass(frozen=True)
class Cosine:
    """Cosine decay to zero, without restarts, after a linear warm-up over a share of the run."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total: int) -> float:
        """0.5 (1 + cos(pi * position after the warm-up))."""
        rising, position = _warm(self.warmup, step, total)
        return rising * 0.5 * (1 + math.cos(math.pi * position))


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


def _check_warmup(warmup: float) -> None:
    if not 0 <= warmup < 1:
        raise ConfigError(f"schedule.warmup is a share of the run, from 0 to below 1, got {warmup}")


def _warm(warmup: float, step: int, total: int) -> tuple[float, float]:
    """The factor of the warm-up, and how much of the rest of the run is over."""
    length = round(warmup * total)
    if step < length:
        return (step + 1) / length, 0.0
    return 1.0, (step - length) / max(1, total - length)


Schedule = Constant | Linear | Cosine | CosineRestarts | AnnealedCosine
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "cosine_restarts": CosineRestarts,
    "annealed_cosine": AnnealedCosine,
}
