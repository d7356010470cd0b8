"""Likeness against editability of every rendered checkpoint, coloured by bleed, as a Plotly figure."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autolora.report.formatting import format_estimate
from autolora.report.schema import CurvePoint, Report, TrialRow

TERMS = {"likeness": "likeness", "editability": "editability", "bleed_class": "bleed"}


@dataclass(frozen=True)
class Dot:
    """A checkpoint with every term measured."""

    trial: TrialRow
    point: CurvePoint

    @property
    def words(self) -> str:
        """Which one it is."""
        return f"trial {self.trial.number}, {self.trial.recipe}, step {self.point.at:g}"

    @property
    def terms(self) -> dict[str, str]:
        """The three terms with their intervals, by the names people read."""
        return {word: format_estimate(self.point.terms[name]) for name, word in TERMS.items()}


def dots(report: Report) -> list[Dot]:
    """The checkpoints that can be shown, in the order of trials and steps."""
    return [Dot(trial, p) for trial in report.trials for p in trial.curve if all(name in p.terms for name in TERMS)]


def front(found: Sequence[Dot], max_bleed: float) -> list[Dot]:
    """Those within the bleed limit that no other one beats in both likeness and editability, by rising likeness."""
    calm = [one for one in found if one.point.terms["bleed_class"].value <= max_bleed]
    kept, highest = [], -float("inf")
    for one in sorted(calm, key=lambda d: (-d.point.terms["likeness"].value, -d.point.terms["editability"].value)):
        if one.point.terms["editability"].value > highest:
            highest = one.point.terms["editability"].value
            kept.append(one)
    return kept[::-1]


def figure(report: Report, found: Sequence[Dot]) -> dict[str, Any]:
    """The figure as plain data; the script gives it the page's colours.

    Traces: the front, every checkpoint, a ring around the exported one; the second's points are `found` in order.
    """
    limit = 1.0 if report.max_bleed is None else report.max_bleed
    edge = front(found, limit)
    best = report.trial(report.best)
    chosen = [one for one in found if one.trial is best and one.point.at == best.best_step] if best else []
    made = go.Figure(
        [
            go.Scatter(x=_of(edge, "likeness"), y=_of(edge, "editability"), mode="lines", hoverinfo="skip"),
            go.Scatter(
                x=_of(found, "likeness"),
                y=_of(found, "editability"),
                mode="markers",
                marker={
                    "color": _of(found, "bleed_class"),
                    "cmin": 0,
                    "cmax": max(2 * limit, 0.1),
                    "size": 11,
                    "symbol": ["x" if one.point.broken else "circle" for one in found],
                    "colorbar": {"title": {"text": "bleed"}, "thickness": 10, "outlinewidth": 0},
                },
                text=[f"{one.words}<br>" + "<br>".join(f"{k} {v}" for k, v in one.terms.items()) for one in found],
                hovertemplate="%{text}<extra></extra>",
            ),
            go.Scatter(
                x=_of(chosen, "likeness"),
                y=_of(chosen, "editability"),
                error_x=_whiskers(chosen, "likeness"),
                error_y=_whiskers(chosen, "editability"),
                mode="markers",
                marker={"symbol": "circle-open", "size": 20, "line": {"width": 2.5}},
                hoverinfo="skip",
            ),
        ]
    )
    made.update_layout(
        template="none",
        showlegend=False,
        margin={"l": 54, "r": 8, "t": 12, "b": 46},
        xaxis={"title": {"text": "likeness"}},
        yaxis={"title": {"text": "editability"}},
        hovermode="closest",
    )
    plain: dict[str, Any] = json.loads(made.to_json())
    return plain


def _of(found: Sequence[Dot], name: str) -> list[float]:
    return [round(one.point.terms[name].value, 4) for one in found]


def _whiskers(found: Sequence[Dot], name: str) -> dict[str, Any]:
    ends = [one.point.terms[name] for one in found]
    above, below = [e.high - e.value for e in ends], [e.value - e.low for e in ends]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "width": 0, "thickness": 1.5}


def library() -> str:
    """Plotly's script, packed by gzip as base64: a third of its size; browsers unpack it themselves."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
