"""Estimates with 95% intervals: a paired bootstrap over prompts and over the seeds of each prompt.

`scipy.stats` is imported inside the functions, because it takes half a second and reports only need `Estimate`.
"""

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
        """Return the numbers rounded for JSON."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


@dataclass(frozen=True)
class BootstrapEstimate:
    """A value with its bootstrap draws, so that it can be combined with other values."""

    value: float
    draws: Array  # (n_bootstrap,)

    def estimate(self) -> Estimate:
        """Return the value with its interval."""
        return estimate(self.value, self.draws)


def mean_of(estimates: list[BootstrapEstimate]) -> BootstrapEstimate:
    """Return the mean of several values and of their draws."""
    values, draws = [e.value for e in estimates], [e.draws for e in estimates]
    return BootstrapEstimate(float(np.mean(values)), np.mean(draws, axis=0))


def estimate(value: float, draws: Array, *sample_sizes: int) -> Estimate:
    """Return the value with the 2.5% and 97.5% quantiles of its bootstrap draws.

    Args:
        value: the measured value.
        draws: the bootstrap draws.
        sample_sizes: sizes of the samples that the draws were resampled from; if given, the interval is widened by
            `expansion`.
    """
    ends = np.quantile(draws, [0.025, 0.975]) - value
    low, high = ends * expansion(*sample_sizes)
    return Estimate(float(value), float(value + min(low, 0.0)), float(value + max(high, 0.0)))


def expansion(*sample_sizes: int) -> float:
    """Return the factor by which the percentile interval of a bootstrap is too narrow for small samples.

    It is sqrt(n / (n - 1)) of the smallest sample, times the ratio of Student's quantile to the normal one: the
    expanded percentile interval of Hesterberg (2015), What Teachers Should Know About the Bootstrap. The degrees of
    freedom of samples with about equal weight are added (Satterthwaite 1946).
    """
    smallest = min(sample_sizes, default=0)
    if smallest < 2:
        return 1.0
    from scipy.stats import norm, t

    freedom = sum(sample_sizes) - len(sample_sizes)
    return float(np.sqrt(smallest / (smallest - 1)) * t.ppf(0.975, freedom) / norm.ppf(0.975))


def with_exact_bounds(rate: Estimate, renders: int) -> Estimate:
    """Widen a rate's interval to the exact bounds (Clopper and Pearson 1934) for no hit and for no miss.

    A bootstrap of equal values has no width: 0 hits in n renders would give the interval [0, 0]. The exact bounds are
    then 1 - 0.025^(1/n) for no hit and 0.025^(1/n) for no miss. scipy's `binomtest` solves for them numerically and
    differs by up to 5e-13, which would change the scores of earlier studies.
    """
    bound = 0.025 ** (1 / renders)
    return Estimate(rate.value, min(rate.low, bound), max(rate.high, 1 - bound))


def bootstrap_means(values: Array, n_bootstrap: int, seed: int) -> Array:
    """Resample a table (prompts, seeds), first prompts and then the seeds of each, and return the means (n_bootstrap,).

    Equal seeds resample tables of the same shape in the same way, so differences and products of their means are
    paired.
    """
    generator = np.random.default_rng(seed)
    prompts, seeds = values.shape
    rows = generator.integers(prompts, size=(n_bootstrap, prompts, 1))
    columns = generator.integers(seeds, size=(n_bootstrap, prompts, seeds))
    return np.asarray(values[rows, columns].mean(axis=(1, 2)))
