"""Bars of intervals: the terms of the exported trial beside those of the baselines, and scores by a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autolora.report.figures.curves import CURVE_TERMS
from autolora.report.figures.theme import TERM_COLOURS, TERM_NAMES, THEME, new_figure, value_range
from autolora.report.formatting import format_estimate, number
from autolora.report.schema import Effect, TrialRow
from autolora.scoring.intervals import Estimate

ROW, PANEL = 24, 34  # pixels of a trial, and of a panel's title and space
FEW_VALUES = 3  # up to so many values stand side by side at equal distances


@dataclass(frozen=True)
class ComparedTrial:
    """The terms of a trial at its best checkpoint; `ends` are a baseline's at the end of its training."""

    name: str
    trial: TrialRow
    terms: Mapping[str, Estimate]
    ends: Mapping[str, float]


def interval_bars(trials: Sequence[ComparedTrial]) -> go.Figure:
    """A panel for each term: value and 95% interval of each trial, and a ring where a baseline's training ended."""
    terms = [term for term in CURVE_TERMS if any(term in trial.terms for trial in trials)]
    titles = [f"{TERM_NAMES[term]} ({'lower' if term == 'bleed_class' else 'higher'} is better)" for term in terms]
    height = len(terms) * (PANEL + ROW * len(trials)) + 30
    figure = make_subplots(len(terms), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=PANEL / height)
    figure.update_annotations(x=0, xanchor="left", yshift=2, font={"size": 12, "color": "var(--ink)"})
    for row, term in enumerate(terms, start=1):
        _add_panel(figure, row, term, [trial for trial in trials if term in trial.terms])
    values = [value for t in trials for e in t.terms.values() for value in (e.low, e.high)]
    low, high = value_range([*values, *(value for t in trials for value in t.ends.values())])
    figure.update_xaxes(range=[low - 0.02, high + 0.02], showgrid=True, dtick=0.25, zeroline=low < 0)
    names = [escape(trial.name) for trial in trials]
    figure.update_yaxes(
        autorange="reversed", categoryorder="array", categoryarray=names, showgrid=False, tickfont={"size": 12}
    )
    figure.update_layout(
        template=THEME,
        title_text="The exported trial and the baselines, each at its best checkpoint",
        height=height,
        margin={"l": 10, "r": 100, "t": 26, "b": 24},
    )
    return figure


def _add_panel(figure: go.Figure, row: int, term: str, trials: Sequence[ComparedTrial]) -> None:
    """Add the values of one term, and their numbers at the right edge."""
    colour, names = TERM_COLOURS[term], [escape(trial.name) for trial in trials]
    values = [trial.terms[term] for trial in trials]
    ends = [trial.ends.get(term, math.nan) for trial in trials]
    for name, value, end in zip(names, values, ends, strict=True):
        if math.isfinite(end):
            line = {"color": colour, "width": 1.2, "dash": "dot"}
            x = [value.value, end]
            figure.add_scatter(x=x, y=[name, name], mode="lines", line=line, hoverinfo="skip", row=row, col=1)
        text = f"{value.value:.2f}" + (f" → {end:.2f}" if math.isfinite(end) else "")
        figure.add_annotation(
            x=1, xref="x domain", y=name, text=text, showarrow=False, xanchor="left", xshift=10, row=row, col=1,
            font={"size": 12, "color": "var(--ink)"},
        )  # fmt: skip
    figure.add_scatter(
        **_points(names, values, "x"),
        name=TERM_NAMES[term],
        marker={"color": colour, "size": 9},
        text=[format_estimate(value) for value in values],
        hovertemplate="%{y}: %{text}<extra></extra>",
        row=row,
        col=1,
    )
    figure.add_scatter(
        x=ends,
        y=names,
        name=f"{TERM_NAMES[term]} at the end of training",
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
        hovertemplate="%{y}: %{x:.2f} at the end of training<extra></extra>",
        row=row,
        col=1,
    )


def parameter_effect(effect: Effect) -> go.Figure:
    """The score of every trial, with its interval, by the value of one parameter."""
    figure = new_figure(f"Score by {effect.name} of {effect.recipe}", effect.name, "score")
    figure.add_scatter(**effect_points(effect))
    figure.update_xaxes(**value_axis(effect))
    low = min([-0.5, *(score.low for score in effect.scores)])
    figure.update_yaxes(range=[low, 1.02], dtick=0.5)
    figure.update_layout(margin_r=16)
    return figure


def effect_points(effect: Effect) -> dict[str, Any]:
    """The trace of a parameter's effect: a point with its interval for each trial."""
    categories = value_axis(effect)["type"] == "category"
    rows = zip(effect.values, effect.scores, effect.trials, strict=True)
    return _points([escape(number(value)) if categories else value for value in effect.values], effect.scores, "y") | {
        "name": escape(effect.name),
        "marker": {"color": "var(--score)", "size": 8},
        "text": [
            f"trial {trial}: {escape(effect.name)} {escape(number(value))}, score {_score_text(score)}"
            for value, score, trial in rows
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def value_axis(effect: Effect) -> dict[str, Any]:
    """The axis for a parameter's values: numbers by size or by magnitude, few or other values side by side."""
    distinct = list(dict.fromkeys(effect.values))
    numbers = [float(v) for v in distinct if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(distinct) or len(distinct) <= FEW_VALUES:
        ordered = sorted(distinct, key=lambda v: (isinstance(v, str), v is not None and not isinstance(v, str) and v))
        names = [escape(number(value)) for value in ordered]
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names,
            "range": [-0.5, len(names) - 0.5],
            "tickmode": "auto",
        }
    ends = [min(numbers), max(numbers)]
    if effect.log and ends[0] > 0:
        low, high = math.log10(ends[0]), math.log10(ends[1])
        room = 0.04 * (high - low)
        ticks = {"tickmode": "array", "tickvals": ends, "ticktext": [number(value) for value in ends]}
        return {"type": "log", "range": [low - room, high + room], **ticks}
    room = 0.04 * (ends[1] - ends[0])
    return {"type": "linear", "range": [ends[0] - room, ends[1] + room], "tickmode": "auto", "nticks": 5}


def _score_text(score: Estimate) -> str:
    return format_estimate(score) if score.low < score.high else f"{score.value:.2f}"


def _points(places: Sequence[object], values: Sequence[Estimate], direction: str) -> dict[str, Any]:
    """Points with their intervals along `direction`, `x` or `y`; the places are on the other axis."""
    above = [round(value.high - value.value, 4) for value in values]
    below = [round(value.value - value.low, 4) for value in values]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "width": 0, "thickness": 2}
    return {
        direction: [round(value.value, 4) for value in values],
        "y" if direction == "x" else "x": list(places),
        f"error_{direction}": bars,
        "mode": "markers",
    }
