"""Figures of all trials for the dashboard, where each trial has a colour and can be hidden by the legend."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from autolora.report.figures.comparison import effect_points, value_axis
from autolora.report.figures.pareto import pareto_front
from autolora.report.figures.theme import new_figure, with_light_colours
from autolora.report.schema import Effect, TrialRow

HEIGHT = 420


def likeness_against_bleed(trials: Sequence[TrialRow]) -> go.Figure:
    """Fidelity by class bleed: each trial as a path through its checkpoints, and the Pareto front of all."""
    figure = new_figure("Likeness against bleed, checkpoints as paths", "class bleed", "fidelity", HEIGHT)
    points = []
    for trial in trials:
        path = [point for point in trial.curve if "bleed_class" in point.terms and "fidelity" in point.terms]
        points += path
        x, y = [point.bleed_class for point in path], [point.fidelity for point in path]
        text = [f"{point.at:g} images" for point in path]
        figure.add_scatter(x=x, y=y, text=text, mode="lines+markers", name=_name(trial), opacity=0.6)
    front = [points[place] for place in pareto_front([(-point.bleed_class, point.fidelity) for point in points])]
    figure.add_scatter(
        x=[point.bleed_class for point in front],
        y=[point.fidelity for point in front],
        name="Pareto front",
        mode="lines",
        line={"color": "var(--ink)", "dash": "dot"},
    )
    return figure


def learning_curves(trials: Sequence[TrialRow]) -> go.Figure:
    """The score of every trial by images shown."""
    figure = new_figure("Learning curves", "images shown", "score", HEIGHT)
    for trial in trials:
        x, y = [point.at for point in trial.curve], [point.score for point in trial.curve]
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=_name(trial))
    return figure


def parameter_effects(effects: Sequence[Effect]) -> go.Figure:
    """The best objective of each trial by the value of one parameter at a time, which a menu selects."""
    figure = new_figure("Parameter effects", "value", "best objective", HEIGHT)
    buttons = []
    for place, effect in enumerate(effects):
        figure.add_scatter(**effect_points(effect), visible=place == 0)
        axis = {f"xaxis.{key}": value for key, value in value_axis(effect).items()}
        visible = {"visible": [name == place for name in range(len(effects))]}
        label = f"{effect.recipe}/{effect.name}" if effect.recipe else effect.name
        buttons.append({"label": escape(label), "method": "update", "args": [visible, axis]})
    if effects:
        figure.update_xaxes(**value_axis(effects[0]))
        figure.update_layout(updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.15}])
    return figure


def for_dashboard(figure: go.Figure) -> go.Figure:
    """A copy of a figure with zoom, the colours of the light page, and a legend unless its lines are named."""
    result = with_light_colours(figure)
    result.update_layout(height=HEIGHT, margin={"l": 60, "r": 90, "t": 80, "b": 60}, paper_bgcolor="white")
    result.update_layout(showlegend=not figure.layout.annotations, dragmode="zoom")
    result.update_xaxes(fixedrange=False)
    result.update_yaxes(fixedrange=False)
    return result


def _name(trial: TrialRow) -> str:
    return f"{trial.number} {escape(trial.recipe)}"
