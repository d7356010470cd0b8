"""The tables of metrics and constraints are consistent, so that everything can be derived from them."""

from __future__ import annotations

import string

import pytest

from autolora.scoring.metric_types import Constraint
from autolora.scoring.metrics import CONSTRAINTS, METRICS, constraint_label, metric_label

NAMES = {metric.name for metric in METRICS}


def test_names_are_unique_and_have_labels() -> None:
    assert len(NAMES) == len(METRICS)
    assert len({constraint.name for constraint in CONSTRAINTS}) == len(CONSTRAINTS)
    assert metric_label("bleed_cross") == "concept mixing" and metric_label("score") == "score"
    assert constraint_label("bleed_cross") == "concepts mixed" and constraint_label("no_such") == "no such"


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda constraint: constraint.name)
def test_a_constraint_names_metrics_that_exist(constraint: Constraint) -> None:
    placeholders = {name for _, name, _, _ in string.Formatter().parse(constraint.fault) if name}
    assert constraint.metric in NAMES and placeholders <= NAMES
    assert constraint.remedy and constraint.label


def test_no_two_constraints_have_the_same_gravity() -> None:
    assert len({constraint.gravity for constraint in CONSTRAINTS}) == len(CONSTRAINTS)
    assert len({constraint.remedy_rank or constraint.gravity for constraint in CONSTRAINTS}) == len(CONSTRAINTS)
