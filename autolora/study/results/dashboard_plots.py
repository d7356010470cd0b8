"""Plots of a study for the dashboard, from the points of its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from optuna import Study
from optuna.trial import FrozenTrial
from optuna_dashboard import save_plotly_graph_object

from autolora.evaluation.result import CheckpointResult, load_results
from autolora.study.artifacts import TrialFiles

Sweep = Mapping[str, Mapping[str, Mapping[str, float]]]  # by weight and term


@dataclass(frozen=True)
class Curve:
    """A trial with its scored checkpoints."""

    trial: FrozenTrial
    points: Sequence[CheckpointResult]

    @property
    def name(self) -> str:
        """As the legends call it."""
        return f"{self.trial.number} {self.trial.user_attrs['recipe']}"


def study_curves(study: Study, files: TrialFiles) -> list[Curve]:
    """Every trial with a scored checkpoint."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if uid and (points := load_results(files.fetch(uid, only="curve.json"))):
            found.append(Curve(trial, points))
    return found


def save_plots(study: Study, files: TrialFiles, sweep: Sweep | None = None) -> None:
    """Draw a study's plots anew; `sweep` are the terms of the exported LoRA by weight."""
    curves = study_curves(study, files)
    figures = {"likeness-bleed": likeness_against_bleed(curves), "learning-curves": learning_curves(curves)}
    figures["parameter-effects"] = parameter_effects(curves)
    if sweep:
        figures["weight-sweep"] = weight_sweep(sweep)
    for name, figure in figures.items():
        figure.update_layout(template="none", height=420)
        save_plotly_graph_object(study, figure, graph_object_id=name)


def likeness_against_bleed(curves: Sequence[Curve]) -> go.Figure:
    """Each trial as a path through its checkpoints, and the front of what nothing beats in both."""
    figure = go.Figure()
    known = [
        (p.terms["bleed_class"]["value"], p.terms["fidelity"]["value"], f"{curve.name}, step {p.step}")
        for curve in curves
        for p in curve.points
        if p.terms
    ]
    for curve in curves:
        points = [p for p in curve.points if p.terms]
        x, y = ([p.terms[name]["value"] for p in points] for name in ("bleed_class", "fidelity"))
        text = [f"step {p.step}" for p in points]
        figure.add_scatter(x=x, y=y, text=text, mode="lines+markers", name=curve.name, opacity=0.6)
    front = pareto_front(known)
    steps = {"x": [bleed for bleed, _, _ in front], "y": [likeness for _, likeness, _ in front]}
    words = [word for _, _, word in front]
    figure.add_scatter(**steps, text=words, mode="lines", name="front", line={"color": "black", "dash": "dot"})
    return _titled(figure, "Likeness against bleed, checkpoints as paths", "class bleed", "fidelity")


def pareto_front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those of which no other has as little bleed and more fidelity, by bleed."""
    front: list[tuple[float, float, str]] = []
    for one in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or one[1] > front[-1][1]:
            front.append(one)
    return front


def learning_curves(curves: Sequence[Curve]) -> go.Figure:
    """The score, or without one the objective, of every trial by images shown."""
    figure = go.Figure()
    for curve in curves:
        x = [p.step for p in curve.points]
        y = [p.score["value"] if p.score else p.objective for p in curve.points]
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=curve.name)
    return _titled(figure, "Learning curves", "images shown", "score")


def parameter_effects(curves: Sequence[Curve]) -> go.Figure:
    """The best score of a trial by what each of its keys was; one trace a key, chosen by its name."""
    figure = go.Figure()
    names = sorted({name for curve in curves for name in curve.trial.params if name != "recipe"})
    for place, name in enumerate(names):
        having = [curve for curve in curves if name in curve.trial.params]
        y = [max(p.objective for p in curve.points) for curve in having]
        x = [str(v) if (v := curve.trial.params[name]) is None else v for curve in having]
        figure.add_scatter(x=x, y=y, mode="markers", name=name, text=[c.name for c in having], visible=place == 0)
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [one == name for one in names]}]} for name in names
    ]
    if buttons:
        figure.update_layout(updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.15}])
    return _titled(figure, "Parameter effects", "value", "best objective")


def weight_sweep(sweep: Sweep) -> go.Figure:
    """Terms of the exported LoRA by its weight."""
    figure = go.Figure()
    weights = sorted(sweep, key=float)
    for name in ("fidelity", "editability", "bleed_class"):
        y = [sweep[weight][name]["value"] for weight in weights]
        figure.add_scatter(x=[float(weight) for weight in weights], y=y, mode="lines+markers", name=name)
    return _titled(figure, "Weight sweep of the exported LoRA", "weight", "term")


def _titled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y)
    return figure
