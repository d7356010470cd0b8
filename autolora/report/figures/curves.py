"""Curves: the terms of a trial by images shown, of a LoRA by weight, the score of all trials, learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from autolora.report.figures.theme import HEIGHT, MARGIN, TERM_COLOURS, TERM_NAMES, new_figure, value_range
from autolora.report.formatting import format_estimate
from autolora.report.schema import CurvePoint, TrialRow

CURVE_TERMS = ("score", "fidelity", "editability", "bleed_class")
END_NAME = {"showarrow": False, "xanchor": "left", "xshift": 6, "yanchor": "middle"}
LABEL_GAP = 13.0  # pixels between the names at the lines' ends
DASHES = ("solid", "dash", "dot", "dashdot")  # so that lines differ by more than their colour


def learning_curve(trial: TrialRow, max_bleed: float | None = None) -> go.Figure:
    """The terms of a trial by images shown, with their intervals; best and overcooked checkpoints are marked.

    Args:
        trial: with at least one scored checkpoint.
        max_bleed: drawn as a limit.
    """
    title = f"Learning curve of trial {trial.number}, {trial.recipe}"
    if trial.overcooked_step is not None:
        title += f"; overcooked from {trial.overcooked_step} images"
    figure = new_figure(title, "images shown")
    if trial.overcooked_step is not None:
        _mark_overcooked(figure, trial.overcooked_step, max(point.at for point in trial.curve))
    _add_terms(figure, trial.curve, "images", max_bleed)
    best = [point for point in trial.curve if point.at == trial.best_step]
    figure.add_scatter(
        x=[point.at for point in best],
        y=[point.score for point in best],
        name="best checkpoint",
        mode="markers",
        marker={"symbol": "circle-open", "size": 14, "color": "var(--score)", "line": {"width": 2}},
        hoverinfo="skip",
    )
    return figure


def weight_sweep(sweep: Sequence[CurvePoint], weight: float | None = None, max_bleed: float | None = None) -> go.Figure:
    """The terms of the exported LoRA by weight, with their intervals.

    Args:
        sweep: one point per weight.
        weight: the recommended weight, which is marked.
        max_bleed: drawn as a limit.
    """
    figure = new_figure("Weight sweep of the exported LoRA", "LoRA weight")
    if weight is not None:
        _add_vertical(figure, weight, f"recommended {weight:g}", "var(--score)", "center")
    _add_terms(figure, sweep, "weight", max_bleed)
    return figure


def overview(trials: Iterable[TrialRow], best: int | None, baselines: Iterable[int]) -> go.Figure:
    """The score of every trial by images shown; the best trial and the baselines stand out and are drawn last.

    Args:
        trials: those without a scored checkpoint are left out.
        best: the number of the exported trial.
        baselines: the numbers of the baselines.
    """
    marked = set(baselines)
    curves = [trial for trial in trials if trial.curve]
    ranks = {trial.number: 2 if trial.number == best else int(trial.number in marked) for trial in curves}
    figure = new_figure("Score of every trial by images shown", "images shown", "score")
    _set_ranges(figure, [point for trial in curves for point in trial.curve], ["score"])
    ends = []
    for trial in sorted(curves, key=lambda trial: ranks[trial.number]):
        rank = ranks[trial.number]
        colour = ("var(--soft)", "var(--bleed)", "var(--fidelity)")[rank]
        figure.add_scatter(
            x=[point.at for point in trial.curve],
            y=[point.score for point in trial.curve],
            name=f"trial {trial.number}, {escape(trial.recipe)}",
            mode="lines+markers",
            line={"color": colour, "width": (1.3, 2.4, 2.8)[rank]},
            marker={"size": [9 if rank and p.at == trial.best_step else 0.1 for p in trial.curve]},
            opacity=1.0 if rank else 0.4,
            hovertemplate="%{fullData.name}<br>%{x} images: score %{y:.2f}<extra></extra>",
        )
        last = trial.curve[-1]
        if rank and math.isfinite(last.score):
            ends.append((last.at, last.score, f"#{trial.number} {'best' if rank == 2 else 'baseline'}", colour))
    _add_end_names(figure, ends)
    figure.update_layout(margin_r=88)
    return figure


def schedules(curves: Mapping[str, Sequence[tuple[int, float]]]) -> go.Figure:
    """The learning rate of each recipe by optimizer steps, as a factor from 0 to 1.

    Args:
        curves: by recipe, the factor at each optimizer step.
    """
    figure = new_figure("Learning rate by optimizer steps", "optimizer steps", "factor")
    last_step = max(curve[-1][0] for curve in curves.values())
    figure.update_xaxes(range=[0, max(last_step, 1)])
    figure.update_yaxes(range=[0, 1.02])
    ends = []
    for place, (name, curve) in enumerate(curves.items()):
        colour = TERM_COLOURS[CURVE_TERMS[place % len(CURVE_TERMS)]]
        steps, factors = zip(*curve, strict=True)
        dash = DASHES[place // len(CURVE_TERMS) % len(DASHES)]
        template = "%{x} steps: %{y:.2f}<extra>%{fullData.name}</extra>"
        line = {"color": colour, "width": 2, "dash": dash}
        figure.add_scatter(x=steps, y=factors, name=escape(name), mode="lines", line=line, hovertemplate=template)
        ends.append((steps[-1], factors[-1], escape(name), colour))
    _add_end_names(figure, ends)
    figure.update_layout(margin_r=24 + 7 * max(map(len, curves)))
    return figure


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the given ones, in their order, at least `gap` apart and within the bounds if they fit."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [0.0] * len(positions)
    floor = low
    for index in order:
        placed[index] = max(positions[index], floor)
        floor = placed[index] + gap
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _add_terms(figure: go.Figure, points: Sequence[CurvePoint], unit: str, max_bleed: float | None) -> None:
    """Add a line for each term, the band of its intervals, and its name at its end."""
    low, high = _set_ranges(figure, points, CURVE_TERMS)
    title = "%{x} images shown" if unit == "images" else "weight %{x}"
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(unifiedhovertitle_text=title)
    if max_bleed is not None and low <= max_bleed <= high:
        line = {"color": "var(--bleed)", "width": 1.5, "dash": "dot"}
        figure.add_shape(
            type="line", name="bleed limit", xref="x domain", x0=0, x1=1, y0=max_bleed, y1=max_bleed, line=line
        )
    for term in CURVE_TERMS:
        _add_band(figure, points, term)
    ends = []
    for term in CURVE_TERMS:
        values = [(point, value) for point in points if math.isfinite(value := float(getattr(point, term)))]
        line = {"color": TERM_COLOURS[term], "width": 2.8 if term == "score" else 2}
        figure.add_scatter(
            x=[point.at for point, _ in values],
            y=[round(value, 4) for _, value in values],
            text=[format_estimate(p.terms[term]) if term in p.terms else f"{value:.2f}" for p, value in values],
            name=TERM_NAMES[term],
            mode="lines+markers",
            line=line | {"dash": "dash" if term == "editability" else "solid"},
            marker={"size": 5},
            hovertemplate=f"{TERM_NAMES[term]} %{{text}}<extra></extra>",
        )
        if values:
            point, value = values[-1]
            ends.append((point.at, value, TERM_NAMES[term], TERM_COLOURS[term]))
    _add_end_names(figure, ends)


def _add_band(figure: go.Figure, points: Sequence[CurvePoint], term: str) -> None:
    """Add the intervals around a line as an area."""
    intervals = [(point.at, point.terms[term]) for point in points if term in point.terms]
    forward = [(at, round(interval.high, 4)) for at, interval in intervals]
    back = [(at, round(interval.low, 4)) for at, interval in reversed(intervals)]
    if len(intervals) < 2:
        return
    figure.add_scatter(
        x=[at for at, _ in forward + back],
        y=[value for _, value in forward + back],
        name=f"{TERM_NAMES[term]}, 95% interval",
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=TERM_COLOURS[term],
        opacity=0.1,
        hoverinfo="skip",
        showlegend=False,
    )


def _mark_overcooked(figure: go.Figure, step: int, last: float) -> None:
    """Shade the region from the first overcooked checkpoint on, and name it."""
    figure.add_shape(
        type="rect", name="overcooked", x0=step, x1=max(last, step), yref="y domain", y0=0, y1=1,
        fillcolor="var(--overcooked)", line={"width": 0}, layer="below",
    )  # fmt: skip
    anchor = "right" if step > last / 2 else "left"
    _add_vertical(figure, step, f"overcooked from {step}", "var(--bleed)", anchor)


def _add_vertical(figure: go.Figure, x: float, text: str, colour: str, anchor: str) -> None:
    """Add a dashed vertical line with a text above the plot."""
    line = {"color": colour, "width": 1.5, "dash": "dash"}
    figure.add_shape(type="line", name=text, x0=x, x1=x, yref="y domain", y0=0, y1=1.03, line=line)
    figure.add_annotation(
        x=x, yref="y domain", y=1.03, yanchor="bottom", xanchor=anchor, text=f"<b>{text}</b>", showarrow=False,
        font={"color": colour},
    )  # fmt: skip


def _set_ranges(figure: go.Figure, points: Sequence[CurvePoint], terms: Iterable[str]) -> tuple[float, float]:
    """Set the ranges of both axes to hold the points; return the range of the values."""
    low, high = value_range(float(getattr(point, term)) for point in points for term in terms)
    figure.update_xaxes(range=[0, 1.02 * max([1.0, *(p.at for p in points)])] if points else [0, 1], nticks=6)
    figure.update_yaxes(range=[low, high], dtick=0.25 if high - low <= 1 else 0.5)
    return low, high


def _add_end_names(figure: go.Figure, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines at their ends, moved apart where the names would overlap; each end is (x, y, name, colour)."""
    low, high = figure.layout.yaxis.range
    pixels = HEIGHT - MARGIN["t"] - MARGIN["b"]
    scale = pixels / (high - low)
    places = [(min(max(y, low), high) - low) * scale for _, y, _, _ in ends]
    names = [
        {"x": x, "y": low, "yshift": place, "text": f"<b>{name}</b>", "font": {"color": colour}} | END_NAME
        for (x, _, name, colour), place in zip(ends, spread(places, LABEL_GAP, 0, pixels), strict=True)
    ]
    figure.layout.annotations = [*figure.layout.annotations, *names]
