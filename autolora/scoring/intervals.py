"""Estimates with intervals: a paired bootstrap over prompts first, then over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def estimate(value: float, draws: Array) -> Estimate:
    """The value with the 2.5% and 97.5% quantiles of its bootstrap draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def bootstrap_means(values: Array, draws: int, seed: int) -> Array:
    """Means of `draws` resamples of a (prompts, seeds) table: prompts drawn first, then seeds within each.

    Equal seeds give equal resampling, so differences and products of two tables of one shape stay paired.
    """
    generator = np.random.default_rng(seed)
    prompts, seeds = values.shape
    rows = generator.integers(prompts, size=(draws, prompts, 1))
    columns = generator.integers(seeds, size=(draws, prompts, seeds))
    return np.asarray(values[rows, columns].mean(axis=(1, 2)))
