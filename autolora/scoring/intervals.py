"""Estimates with intervals: a paired bootstrap over prompts first, then over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95% interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded for JSON."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def estimate(value: float, draws: Array, *samples: int) -> Estimate:
    """The value with the 2.5% and 97.5% quantiles of its bootstrap draws.

    Args:
        value: as measured.
        draws: of the bootstrap.
        samples: sizes of what it was drawn from; given, the interval is widened as `expansion` says.
    """
    ends = np.quantile(draws, [0.025, 0.975]) - value
    low, high = ends * expansion(*samples)
    return Estimate(float(value), float(value + min(low, 0.0)), float(value + max(high, 0.0)))


def expansion(*samples: int) -> float:
    """How much too narrow the percentiles of a bootstrap of so small samples are.

    sqrt(n / (n - 1)) of the smallest, times Student's over the normal quantile: the expanded percentile interval of
    Hesterberg (2015), What Teachers Should Know About the Bootstrap. Samples of about equal weight join their degrees
    of freedom (Satterthwaite 1946).
    """
    least = min(samples, default=0)
    if least < 2:
        return 1.0
    freedom = sum(samples) - len(samples)
    return float(np.sqrt(least / (least - 1)) * t.ppf(0.975, freedom) / norm.ppf(0.975))


def with_exact_bounds(rate: Estimate, renders: int) -> Estimate:
    """A rate whose ends are at least what so many renders without a single hit, or without a single miss, rule out.

    1 - .025^(1/n) and .025^(1/n), the exact (Clopper and Pearson 1934) bounds there: a bootstrap of equal values has no
    width at all.
    """
    certain = 0.025 ** (1 / renders)
    return Estimate(rate.value, min(rate.low, certain), max(rate.high, 1 - certain))


def bootstrap_means(values: Array, draws: int, seed: int) -> Array:
    """Means of `draws` resamples of a (prompts, seeds) table: prompts drawn first, then seeds within each.

    Equal seeds give equal resampling, so differences and products of two tables of one shape stay paired.
    """
    generator = np.random.default_rng(seed)
    prompts, seeds = values.shape
    rows = generator.integers(prompts, size=(draws, prompts, 1))
    columns = generator.integers(seeds, size=(draws, prompts, seeds))
    return np.asarray(values[rows, columns].mean(axis=(1, 2)))
