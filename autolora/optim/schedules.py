"""Learning-rate schedules: pure functions from (optimizer step, total) to a factor between 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autolora.errors import ConfigError


@dataclass(frozen=True)
class WithWarmup:
    """What falls once, after a linear warm-up over a share of the run."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"schedule.warmup is a share of the run, from 0 to below 1, got {self.warmup}")

    def factor(self, step: int, total: int) -> float:
        """Rising by equal steps, then `fall` over the rest of the run."""
        length = round(self.warmup * total)
        if step < length:
            return (step + 1) / length
        return self.fall((step - length) / max(1, total - length))

    def fall(self, position: float) -> float:
        """The factor when that share of the run after the warm-up is over."""
        raise NotImplementedError


class Constant(WithWarmup):
    """The same rate throughout."""

    def fall(self, position: float) -> float:
        """Always 1."""
        return 1.0


class Linear(WithWarmup):
    """Linear decay to zero."""

    def fall(self, position: float) -> float:
        """1 - position."""
        return 1 - position


class Cosine(WithWarmup):
    """Cosine decay to zero, without restarts."""

    def fall(self, position: float) -> float:
        """`half_cosine`."""
        return half_cosine(position)


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine decay to zero, restarted at full rate (Loshchilov & Hutter 2017)."""

    cycles: int = 3

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ConfigError(f"schedule.cycles must be at least 1, got {self.cycles}")

    def factor(self, step: int, total: int) -> float:
        """`half_cosine` of the position in the cycle."""
        return half_cosine((self.cycles * step / max(1, total)) % 1.0)


@dataclass(frozen=True)
class AnnealedCosine:
    """Cycles that warm up linearly from `floor`, fall by cosine back to it, and peak `gamma` lower each time.

    Cycle length L becomes round((L - w) * multiplier) + w with w warm-up steps; the last one ends with the run.
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
        length = max(1, round(total / ((1 - self.warmup) * growth + self.warmup * self.cycles)))
        warmup, peak, start = round(self.warmup * length), 1.0, 0
        for _ in range(self.cycles - 1):
            if step < start + length:
                break
            start += length
            length = max(1, round((length - warmup) * self.multiplier) + warmup)
            peak *= self.gamma
        else:
            length = max(1, total - start)
        position = step - start
        if position < warmup:
            return self.floor + (peak - self.floor) * (position + 1) / warmup
        return self.floor + (peak - self.floor) * half_cosine((position - warmup) / max(1, length - warmup))


def half_cosine(position: float) -> float:
    """From 1 at 0 to 0 at 1: 0.5 (1 + cos(pi * position)) (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * position))


Schedule = Constant | Linear | Cosine | CosineRestarts | AnnealedCosine
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "cosine_restarts": CosineRestarts,
    "annealed_cosine": AnnealedCosine,
}
