"""Learning-rate schedules: pure functions from (optimizer step, all steps) to a factor between 0 and 1.

A new schedule is one class here with an entry of `SCHEDULES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from autolora.errors import ConfigError


class Schedule:
    """What every schedule has."""

    kohya_name: ClassVar[str | None] = None  # its name in kohya's sd-scripts; None: sd-scripts has no such schedule

    def factor(self, step: int, total: int) -> float:
        """Return the factor of the learning rate.

        Args:
            step: the optimizer step, from 0.
            total: the optimizer steps of the whole training run.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class WithWarmup(Schedule):
    """A schedule that falls once, after a linear warm-up over a share of the training run."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"schedule.warmup is a share of the run, from 0 to below 1, got {self.warmup}")

    def factor(self, step: int, total: int) -> float:
        """Return the factor: it rises by equal steps, then follows `fall` for the rest of the run."""
        length = round(self.warmup * total)
        if step < length:
            return (step + 1) / length
        return self.fall((step - length) / max(1, total - length))

    def fall(self, position: float) -> float:
        """Return the factor at a position after the warm-up, from 0 to 1."""
        raise NotImplementedError


class Constant(WithWarmup):
    """The same rate throughout."""

    kohya_name = "constant"

    def fall(self, position: float) -> float:
        """Return 1."""
        return 1.0


class Linear(WithWarmup):
    """Linear decay to zero."""

    kohya_name = "linear"

    def fall(self, position: float) -> float:
        """Return 1 - position."""
        return 1 - position


class Cosine(WithWarmup):
    """Cosine decay to zero, without restarts."""

    kohya_name = "cosine"

    def fall(self, position: float) -> float:
        """Return `half_cosine` of the position."""
        return half_cosine(position)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Cosine decay to zero, restarted at the full rate (Loshchilov & Hutter 2017)."""

    kohya_name: ClassVar[str | None] = "cosine_with_restarts"

    cycles: int = 3

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ConfigError(f"schedule.cycles must be at least 1, got {self.cycles}")

    def factor(self, step: int, total: int) -> float:
        """Return `half_cosine` of the position in the cycle."""
        return half_cosine((self.cycles * step / max(1, total)) % 1.0)


@dataclass(frozen=True)
class AnnealedCosine(Schedule):
    """Cycles that warm up linearly from `floor` and fall back to it by cosine; each peak is `gamma` times the last.

    After a cycle of L steps, w of them warm-up, the next has round((L - w) * multiplier) + w. The last one ends with
    the training run.
    """

    kohya_name: ClassVar[str | None] = "cosine_with_restarts"

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
        """Return the factor at an optimizer step."""
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
    """Return 0.5 (1 + cos(pi * position)): 1 at position 0, 0 at position 1 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * position))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "cosine_restarts": CosineRestarts,
    "annealed_cosine": AnnealedCosine,
}
