"""Figures put values where they belong, mark what they say they mark, and name what they show."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest

from autolora.report.figures.comparison import ComparedTrial, interval_bars, parameter_effect
from autolora.report.figures.curves import learning_curve, overview, schedules, spread, weight_sweep
from autolora.report.figures.dashboard import for_dashboard, learning_curves, likeness_against_bleed, parameter_effects
from autolora.report.figures.embed import embed
from autolora.report.figures.pareto import pareto_figure, pareto_front, pareto_points
from autolora.report.figures.theme import value_range
from autolora.report.schema import CurvePoint, Effect
from autolora.report.selection import compared_trials
from autolora.scoring.intervals import Estimate
from tests.report.made_up import EFFECTS, estimate, report, trial


def trace(figure: go.Figure, name: str) -> Any:
    (only,) = (trace for trace in figure.data if trace.name == name)
    return only


def shape(figure: go.Figure, name: str) -> Any:
    (only,) = (shape for shape in figure.layout.shapes if shape.name == name)
    return only


def texts(figure: go.Figure) -> list[str]:
    return [re.sub("</?b>", "", annotation.text) for annotation in figure.layout.annotations]


def test_an_axis_holds_the_values_in_quarters() -> None:
    assert value_range([0.5, 1.1, 0.9, -0.05]) == (-0.25, 1.25)
    assert value_range([0.5, math.nan]) == value_range([]) == (0.0, 1.0)
    assert value_range([9.0, -9.0]) == (-0.5, 1.5)


def test_lines_pass_through_the_checkpoints() -> None:
    row = trial(0, "guide", 1.0)
    figure = learning_curve(row, 0.15)
    for name, term in {"score": "score", "fidelity": "fidelity", "bleed": "bleed_class"}.items():
        line = trace(figure, name)
        assert list(line.x) == [point.at for point in row.curve]
        assert list(line.y) == pytest.approx([getattr(point, term) for point in row.curve], abs=1e-4)
    assert trace(figure, "bleed").text[-1] == "0.93 (0.89 to 0.97)"
    assert figure.layout.xaxis.title.text == "images shown"
    assert figure.layout.xaxis.range[1] >= 1600 and figure.layout.yaxis.range == (0.0, 1.25)
    assert texts(figure)[1:] == ["score", "fidelity", "editability", "bleed"]


def test_intervals_limit_best_and_overcooked_checkpoints_are_marked() -> None:
    row = trial(0, "guide", 1.0)
    figure = learning_curve(row, 0.15)
    assert figure.layout.title.text == "Learning curve of trial 0, guide; overcooked from 400 images"
    limit = shape(figure, "bleed limit")
    assert (limit.y0, limit.y1, limit.x0, limit.x1, limit.xref) == (0.15, 0.15, 0, 1, "x domain")
    shade = shape(figure, "overcooked")
    assert (shade.x0, shade.x1, shade.y0, shade.y1, shade.yref) == (400, 1600, 0, 1, "y domain")
    assert texts(figure)[0] == "overcooked from 400" and shape(figure, "overcooked from 400").x0 == 400
    ring, best = trace(figure, "best checkpoint"), next(p for p in row.curve if p.at == row.best_step)
    assert (list(ring.x), list(ring.y)) == ([best.at], [best.score])
    band = trace(figure, "fidelity, 95% interval")
    at = [point.at for point in row.curve]
    assert list(band.x) == at + at[::-1] and band.fill == "toself"
    highs, lows = [p.terms["fidelity"].high for p in row.curve], [p.terms["fidelity"].low for p in row.curve]
    assert list(band.y) == pytest.approx(highs + lows[::-1], abs=1e-4)


def test_nothing_is_marked_that_is_not_there() -> None:
    figure = learning_curve(replace(trial(4, "guide", 0.1), overcooked_step=None, best_step=None))
    assert not figure.layout.shapes and not trace(figure, "best checkpoint").x
    assert figure.layout.title.text == "Learning curve of trial 4, guide"
    plain = learning_curve(replace(trial(0, "guide", 1.0), curve=(CurvePoint(9, 0.5, 0.5, math.nan, math.inf),)))
    assert not [trace for trace in plain.data if "interval" in trace.name]
    assert list(trace(plain, "score").y) == [0.5] and not trace(plain, "editability").x and not trace(plain, "bleed").x
    assert texts(plain)[1:] == ["score", "fidelity"]


def test_overview_draws_the_best_last() -> None:
    figure = overview(report().trials, 3, [0, 1])
    assert [trace.name for trace in figure.data][-1] == "trial 3, guide-adamw"
    assert [trace.name for trace in figure.data][-3:-1] == ["trial 0, guide-adamw", "trial 1, guide-prodigy"]
    assert len(figure.data) == 6  # one trial has no scored checkpoint
    assert [trace.opacity for trace in figure.data] == [0.4] * 3 + [1.0] * 3
    assert list(figure.data[-1].y) == [point.score for point in report().trials[3].curve]
    assert texts(figure) == ["#0 baseline", "#1 baseline", "#3 best"]
    sizes = dict(zip(figure.data[-1].x, figure.data[-1].marker.size, strict=True))
    assert max(sizes, key=lambda at: sizes[at]) == report().trials[3].best_step


def test_interval_bars_have_a_panel_for_each_term() -> None:
    compared = compared_trials(report())
    figure = interval_bars(compared)
    assert texts(figure)[:4] == [
        "score (higher is better)",
        "fidelity (higher is better)",
        "editability (higher is better)",
        "bleed (lower is better)",
    ]
    bleed = trace(figure, "bleed")
    values = [row.terms["bleed_class"] for row in compared]
    assert list(bleed.y) == ["exported", "guide-adamw", "guide-prodigy"]
    assert list(bleed.x) == pytest.approx([value.value for value in values], abs=1e-4)
    assert list(bleed.error_x.array) == pytest.approx([value.high - value.value for value in values], abs=1e-4)
    assert list(bleed.error_x.arrayminus) == pytest.approx([value.value - value.low for value in values], abs=1e-4)
    ends = trace(figure, "bleed at the end of training")
    assert math.isnan(ends.x[0]) and list(ends.x[1:]) == [row.ends["bleed_class"] for row in compared[1:]]
    row = compared[1]
    assert f"{row.terms['bleed_class'].value:.2f} → {row.ends['bleed_class']:.2f}" in texts(figure)
    assert f"{compared[0].terms['score'].value:.2f}" in texts(figure)


def test_an_interval_says_its_values() -> None:
    row = ComparedTrial("<a>", trial(0, "guide", 1.0), {"score": Estimate(0.5, 0.4, 0.7)}, {"score": 0.9})
    figure = interval_bars([row])
    assert list(trace(figure, "score").text) == ["0.50 (0.40 to 0.70)"]
    assert list(trace(figure, "score").y) == ["&lt;a&gt;"]
    assert texts(figure) == ["score (higher is better)", "0.50 → 0.90"]


def test_effects_are_on_an_axis_of_their_kind() -> None:
    few, log, either = (parameter_effect(effect) for effect in EFFECTS)
    assert (few.layout.xaxis.type, few.layout.xaxis.categoryarray) == ("category", ("8", "16", "32"))
    assert log.layout.xaxis.type == "log" and list(log.data[0].x) == [1e-4, 3e-4, 6e-4, 9e-4]
    low, high = log.layout.xaxis.range
    assert low < math.log10(1e-4) and high > math.log10(9e-4)
    assert either.layout.xaxis.categoryarray == ("none", "0.5") and list(either.data[0].x) == ["none", "0.5"]
    linear = parameter_effect(replace(EFFECTS[1], log=False))
    assert linear.layout.xaxis.type == "linear"
    assert few.data[0].text[0] == "trial 2: adapter.dim 8, score 0.50 (0.45 to 0.55)"
    assert list(few.data[0].error_y.array) == pytest.approx([0.05] * 3)
    assert few.layout.title.text == "Score by adapter.dim of guide-adamw"


def test_an_effect_below_the_axis_widens_it() -> None:
    effect = Effect("a", "b", None, (1, 2), (Estimate(-2.0, -2.5, -1.5), estimate(0.5)), (0, 1))
    assert parameter_effect(effect).layout.yaxis.range[0] == -2.5


def test_labels_keep_their_distance_and_order() -> None:
    placed = spread([50.0, 51.0, 10.0, 99.0], 12, 0, 100)
    assert placed[2] < placed[0] < placed[1] < placed[3] <= 100
    assert sorted(placed)[1] - sorted(placed)[0] >= 12
    assert placed[1] - placed[0] >= 12
    assert spread([100.0, 100.0], 12, 0, 100) == [88.0, 100.0]


def test_a_sweep_marks_the_recommended_weight() -> None:
    points = [CurvePoint(w / 10, 0.5, w / 12, 1 - w / 20, w / 24) for w in range(4, 13)]
    figure = weight_sweep(points, 0.8, 0.4)
    assert texts(figure)[0] == "recommended 0.8" and shape(figure, "recommended 0.8").x0 == 0.8
    assert [trace.name for trace in figure.data] == ["score", "fidelity", "editability", "bleed"]
    assert (trace(figure, "fidelity").x[-1], trace(figure, "fidelity").y[-1]) == (1.2, 1.0)
    assert trace(figure, "fidelity").text[-1] == "1.00"
    assert shape(figure, "bleed limit").y0 == 0.4
    assert not weight_sweep(points).layout.shapes


def test_schedules_are_drawn_from_first_to_last_step_and_named() -> None:
    figure = schedules({"<long>": [(0, 1.0), (50, 0.5), (100, 0.0)], "short": [(0, 0.0), (10, 1.0)]})
    long, short = figure.data
    assert (list(long.x), list(long.y)) == ([0, 50, 100], [1.0, 0.5, 0.0])
    assert (list(short.x), list(short.y)) == ([0, 10], [0.0, 1.0])
    assert figure.layout.xaxis.range == (0, 100) and figure.layout.xaxis.title.text == "optimizer steps"
    assert texts(figure) == ["&lt;long&gt;", "short"]
    assert len({trace.line.color for trace in figure.data}) == 2


def test_no_point_of_the_front_is_beaten() -> None:
    points = [(0.5, 0.1), (0.6, 0.1), (0.55, 0.2), (0.9, 0.3), (0.9, 0.2)]
    assert pareto_front(points) == [3]
    assert pareto_front([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.4)]) == [0, 2, 1]
    assert pareto_front([]) == []


def test_the_pareto_figure_shows_every_checkpoint() -> None:
    content = report()
    points = pareto_points(content)
    front, every, exported = pareto_figure(content, points).data
    assert len(points) == len(every.x) == 6 * 8
    assert list(every.x) == pytest.approx([p.checkpoint.terms["likeness"].value for p in points], abs=1e-4)
    assert list(every.marker.color) == pytest.approx([p.checkpoint.bleed_class for p in points], abs=1e-4)
    assert every.marker.cmax == 0.3
    assert [symbol == "x" for symbol in every.marker.symbol] == [bool(p.checkpoint.broken) for p in points]
    best = next(p for p in points if p.trial.number == 3 and p.checkpoint.at == p.trial.best_step)
    assert list(exported.x) == pytest.approx([best.checkpoint.terms["likeness"].value], abs=1e-4)
    assert list(exported.error_x.array) == pytest.approx([0.08])
    assert every.text[points.index(best)].startswith("trial 3, guide-adamw, 1200 images<br>likeness ")
    assert list(front.x) == sorted(front.x) and list(front.y) == sorted(front.y, reverse=True) and front.x
    bleed = {(x, y): colour for x, y, colour in zip(every.x, every.y, every.marker.color, strict=True)}
    assert all(bleed[pair] <= 0.15 for pair in zip(front.x, front.y, strict=True))


def test_the_dashboards_figures_show_every_trial() -> None:
    scored = [row for row in report().trials if row.curve]
    names = [f"{row.number} {row.recipe}" for row in scored]
    paths = likeness_against_bleed(scored)
    assert [trace.name for trace in paths.data] == [*names, "Pareto front"]
    assert list(paths.data[0].x) == [point.bleed_class for point in scored[0].curve]
    front = list(zip(paths.data[-1].x, paths.data[-1].y, strict=True))
    assert front == sorted(front) and all(a[1] < b[1] for a, b in pairwise(front))
    curves = learning_curves(scored)
    assert [trace.name for trace in curves.data] == names
    assert list(curves.data[2].y) == [point.score for point in scored[2].curve]
    effects = parameter_effects(EFFECTS)
    assert [trace.visible for trace in effects.data] == [True, False, False]
    _, second, _ = effects.layout.updatemenus[0].buttons
    assert second.label == "guide-adamw/optimizer.lr"
    assert list(second.args[0]["visible"]) == [False, True, False]
    assert second.args[1]["xaxis.type"] == "log"
    assert not parameter_effects([]).data


def test_the_dashboard_gets_the_light_colours() -> None:
    figure = for_dashboard(weight_sweep(report().trials[0].curve, 0.7, 0.15))
    assert "var(--" not in figure.to_json()
    assert trace(figure, "fidelity").line.color == "#1f5fc4"
    assert figure.layout.dragmode == "zoom" and not figure.layout.showlegend  # its lines are named
    assert for_dashboard(learning_curves(report().trials)).layout.showlegend


def test_an_embedded_figure_is_its_data_with_its_title_to_read_out() -> None:
    row = replace(trial(0, "</script><b>", 1.0), reason="")
    page = embed(learning_curve(row, 0.15), "name")
    assert page.startswith('<div class="plot" id="name" role="img" aria-label="Learning curve of trial 0, &lt;/script')
    assert page.count("<script") == page.count("</script>") == 1
    content = json.loads(unescape(page.partition('json">')[2].partition("</script>")[0]))
    assert set(content) == {"data", "layout"}
    assert "template" not in content["layout"] and "title" not in content["layout"]
    assert content["layout"]["height"] == 250 and "--height: 250px" in page
    line = next(trace for trace in content["data"] if trace["name"] == "score")
    assert line["line"]["color"] == "var(--score)"
