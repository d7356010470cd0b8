"""Values as text for reports, tables and logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this imports scipy
    from autolora.scoring.intervals import Estimate


def parameters(values: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Sampled values as (full name, short name, value); a short name that two share is the full name instead."""
    keys = {key: key.rpartition("/")[2] for key in values}
    lasts = [key.rpartition(".")[2] for key in keys.values()]
    return [
        (path, last if lasts.count(last) == 1 else path, number(values[key]))
        for (key, path), last in zip(keys.items(), lasts, strict=True)
    ]


def number(value: object) -> str:
    """A value as text: three significant digits for fractions, `none` for None."""
    if value is None:
        return "none"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 trial`, `2 trials`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def duration(seconds: float) -> str:
    """Seconds as text in at most two units: `12 min 14 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_estimate(estimate: Estimate) -> str:
    """A value with its interval: `0.52 (0.47 to 0.57)`."""
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
