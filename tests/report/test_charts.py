"""Charts put values where they belong and are well-formed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from autolora.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    BucketSize,
    frame_for,
    interval,
    learning_curve,
    overview,
    schedules,
    spread,
    weight_sweep,
)
from autolora.report.schema import CurvePoint
from autolora.scoring.intervals import Estimate
from tests.report.made_up import report, trial


def test_frame_corners() -> None:
    frame = BucketSize(100, 0.0, 1.0)
    assert (frame.x(0), frame.x(100)) == (LEFT, WIDTH - RIGHT)
    assert (frame.y(0), frame.y(1)) == (HEIGHT - BOTTOM, TOP)
    assert frame.y(7) == TOP


def test_frame_holds_the_curves_in_quarters() -> None:
    points = [CurvePoint(300, 0.5, 1.1, 0.9, -0.05)]
    assert frame_for([points]) == BucketSize(300, -0.25, 1.25)
    assert frame_for([points], ["score"]) == BucketSize(300, 0.0, 1.0)
    assert frame_for([]) == BucketSize(1, 0.0, 1.0)
    assert frame_for([[CurvePoint(1, 9, -9, 0, 0)]]) == BucketSize(1, -0.5, 1.5)


def test_lines_pass_through_the_checkpoints() -> None:
    row = trial(0, "guide", 1.0)
    frame = frame_for([row.curve])
    chart = ET.fromstring(learning_curve(row, 0.15))
    line = next(e for e in chart.iter("polyline") if e.get("class") == "series bleed_class")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
    expected = [(frame.x(p.at), frame.y(p.bleed_class)) for p in row.curve]
    assert points == [pytest.approx(pair, abs=0.06) for pair in expected]
    shade = next(e for e in chart.iter("rect") if e.get("class") == "burnt")
    assert float(shade.get("x", 0)) == pytest.approx(frame.x(row.overcooked_step or 0), abs=0.06)
    ring = next(e for e in chart.iter("circle") if e.get("class") == "best-ring")
    assert float(ring.get("cx", 0)) == pytest.approx(frame.x(row.best_step or 0), abs=0.06)


def test_overview_draws_the_best_last() -> None:
    chart = ET.fromstring(overview(report().trials, 3, [0, 1]))
    kinds = [e.get("class") for e in chart.iter("polyline")]
    assert kinds[-1] == "trial chosen"
    assert kinds.count("trial baseline") == 2
    assert len(kinds) == 6


def test_interval_says_its_values() -> None:
    chart = ET.fromstring(interval(Estimate(0.5, 0.4, 0.7), "score", end=0.9))
    assert chart.get("aria-label") == "0.50 (0.40 to 0.70), 0.90 at the end of training"
    dot, ring = (next(e for e in chart.iter("circle") if e.get("class") == f"{k} score") for k in ("dot", "hollow"))
    assert float(dot.get("cx", 0)) < float(ring.get("cx", 0))


def test_labels_keep_their_distance_and_order() -> None:
    placed = spread([50.0, 51.0, 10.0, 99.0], 12, 0, 100)
    assert placed[2] < placed[0] < placed[1] < placed[3] <= 100
    assert sorted(placed)[1] - sorted(placed)[0] >= 12
    assert placed[1] - placed[0] >= 12
    assert spread([100.0, 100.0], 12, 0, 100) == [88.0, 100.0]


def test_a_sweep_marks_the_recommended_weight() -> None:
    points = [CurvePoint(w / 10, 0.5, w / 12, 1 - w / 20, w / 24) for w in range(4, 13)]
    chart = str(weight_sweep(points, 0.8, 0.4))
    assert "recommended 0.8" in chart
    assert chart.count("<polyline") == 4
    assert "weight 1.2: fidelity 1.00" in chart
    assert 'class="limit"' in chart
    assert "recommended" not in str(weight_sweep(points, None))


def test_schedules_are_drawn_from_first_to_last_step_and_named() -> None:
    drawn = schedules({"<long>": [(0, 1.0), (50, 0.5), (100, 0.0)], "short": [(0, 0.0), (10, 1.0)]})
    long, short = re.findall(r'<polyline[^>]* points="([^"]*)"', drawn)
    assert [point.split(",")[0] for point in long.split()] == ["34.0", "170.0", "306.0"]
    assert len(short.split()) == 2 and float(short.split()[1].split(",")[1]) == 22.0
    assert "&lt;long&gt;" in drawn and "<long>" not in drawn
