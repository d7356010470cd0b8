"""The parameter that decides is the important one; too few trials weigh nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from autolora.study.results.importance import FEWEST, effects
from autolora.study.space import Range
from tests.study.results.test_comparison import point

SPACE = {"a": {"lr": Range("log", (1e-4, 1e-2)), "dim": Range("choice", (8, 16)), "fixed": Range("choice", (1,))}}
KINDS: dict[str, Any] = {
    "a/lr": FloatDistribution(1e-4, 1e-2, log=True),
    "a/dim": CategoricalDistribution([8, 16]),
    "a/fixed": CategoricalDistribution([1]),
}


def found(count: int) -> list[tuple[Any, Any]]:
    """Trials whose score is better the nearer the rate is to 1e-3."""
    turn, trials = random.Random(0), []
    for _ in range(count):
        power = turn.uniform(-4, -2)
        params = {"a/lr": 10**power, "a/dim": turn.choice([8, 16]), "a/fixed": 1}
        trial = create_trial(params=params, distributions=KINDS, value=0.0, user_attrs={"recipe": "a"})
        best = point(1 - abs(power + 3))
        trials.append((trial, SimpleNamespace(best_result=lambda b=best: b, best_objective=lambda b=best: b.objective)))
    return trials


def test_what_decides_is_important() -> None:
    lr, dim = effects(SPACE, found(24))
    assert (lr.name, dim.name) == ("lr", "dim")
    assert lr.importance and dim.importance
    assert lr.importance.low > dim.importance.value
    assert lr.log and not dim.log
    assert len(lr.values) == len(lr.scores) == 24


def test_too_few_trials_are_shown_but_not_weighed() -> None:
    assert [one.importance for one in effects(SPACE, found(FEWEST - 1))] == [None, None]
    assert effects(SPACE, found(1)) == ()
