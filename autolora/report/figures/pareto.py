"""Likeness against editability of every rendered checkpoint, coloured by bleed, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from autolora.report.figures.theme import TERM_NAMES, new_figure
from autolora.report.formatting import format_estimate
from autolora.report.schema import CurvePoint, Report, TrialRow

PARETO_TERMS = ("likeness", "editability", "bleed_class")
HEIGHT = 390


@dataclass(frozen=True)
class ParetoPoint:
    """A checkpoint of a trial with all three terms measured."""

    trial: TrialRow
    checkpoint: CurvePoint

    @property
    def name(self) -> str:
        """The trial, its recipe and the images shown."""
        return f"trial {self.trial.number}, {self.trial.recipe}, {self.checkpoint.at:g} images"

    @property
    def terms(self) -> dict[str, str]:
        """The three terms with their intervals, by their names in the page."""
        return {TERM_NAMES[term]: format_estimate(self.checkpoint.terms[term]) for term in PARETO_TERMS}


def pareto_points(report: Report) -> list[ParetoPoint]:
    """The checkpoints that can be shown, in the order of trials and images shown."""
    return [
        ParetoPoint(trial, checkpoint)
        for trial in report.trials
        for checkpoint in trial.curve
        if all(term in checkpoint.terms for term in PARETO_TERMS)
    ]


def is_exported(point: ParetoPoint, report: Report) -> bool:
    """Whether the report's LoRA was exported from this checkpoint."""
    return point.trial.number == report.best and point.checkpoint.at == point.trial.best_step


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other point beats in both coordinates, from the largest first coordinate on."""
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: points[place], reverse=True):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


def pareto_figure(report: Report, points: Sequence[ParetoPoint]) -> go.Figure:
    """Three traces: the front within the bleed limit, all points in their order, and a ring around the exported one."""
    limit = 1.0 if report.max_bleed is None else report.max_bleed
    within_limit = [point for point in points if point.checkpoint.terms["bleed_class"].value <= limit]
    pairs = list(zip(_values(within_limit, "likeness"), _values(within_limit, "editability"), strict=True))
    front = [within_limit[place] for place in reversed(pareto_front(pairs))]
    exported = [point for point in points if is_exported(point, report)]
    title = f"Likeness against editability of {len(points)} checkpoints, coloured by bleed"
    figure = new_figure(title, "likeness", "editability", HEIGHT)
    figure.add_scatter(
        x=_values(front, "likeness"),
        y=_values(front, "editability"),
        name="Pareto front",
        mode="lines",
        line={"color": "var(--soft)", "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=_values(points, "likeness"),
        y=_values(points, "editability"),
        name="checkpoints",
        mode="markers",
        marker=_coloured_by_bleed(points, limit),
        text=[
            f"{escape(point.name)}<br>" + "<br>".join(f"{name} {text}" for name, text in point.terms.items())
            for point in points
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=_values(exported, "likeness"),
        y=_values(exported, "editability"),
        error_x=_interval(exported, "likeness"),
        error_y=_interval(exported, "editability"),
        name="exported",
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": "var(--ink)", "line": {"width": 2.5}},
        hoverinfo="skip",
    )
    figure.update_layout(margin={"l": 50, "r": 8, "t": 12, "b": 46}, font_size=13, xaxis_showgrid=True)
    return figure


def _coloured_by_bleed(points: Sequence[ParetoPoint], limit: float) -> dict[str, Any]:
    """Markers whose colour goes from no bleed to twice the limit; a cross is a checkpoint that breaks a constraint."""
    return {
        "color": _values(points, "bleed_class"),
        "cmin": 0,
        "cmax": max(2 * limit, 0.1),
        "colorscale": [[0, "var(--fidelity)"], [0.5, "var(--middle)"], [1, "var(--bleed)"]],
        "size": 11,
        "symbol": ["x" if point.checkpoint.broken else "circle" for point in points],
        "colorbar": {"title": {"text": "bleed"}, "thickness": 10, "outlinewidth": 0},
    }


def _values(points: Sequence[ParetoPoint], term: str) -> list[float]:
    return [round(point.checkpoint.terms[term].value, 4) for point in points]


def _interval(points: Sequence[ParetoPoint], term: str) -> dict[str, Any]:
    estimates = [point.checkpoint.terms[term] for point in points]
    above, below = [e.high - e.value for e in estimates], [e.value - e.low for e in estimates]
    ends = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return ends | {"width": 0, "thickness": 1.5, "color": "var(--ink)"}
