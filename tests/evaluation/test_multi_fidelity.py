"""The ladder: what needs no render, and what the strongest weight settles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from autolora.evaluation.multi_fidelity import (
    MIN_RENDERED,
    can_stop_early,
    evaluate_progressively,
    predicted_undercooked,
)
from autolora.evaluation.result import CheckpointResult, unpromising_result
from autolora.scoring.diagnosis import remedy
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import BELOW, Scorecard, score
from autolora.scoring.settings import ScoringSettings
from tests.scoring.test_scorecard import made_up_scorer, renders

SETTINGS = ScoringSettings(outfit_prompts=("a", "b"), min_fidelity=0.4, max_bleed=0.6)


def rendered(loss: float, fidelity_high: float) -> CheckpointResult:
    by_weight = {"1": {"fidelity": {"value": 0.3, "low": 0.1, "high": fidelity_high}}}
    return CheckpointResult(100, 0.1, 0.1, [loss, loss], by_weight=by_weight)


FAITHFUL = [rendered(0.4 + 0.02 * i, 0.9) for i in range(MIN_RENDERED)]  # validation losses up to 0.48


@pytest.mark.parametrize(
    ("loss", "seen", "needless"),
    [
        (0.7, FAITHFUL, True),
        (0.49, FAITHFUL, False),  # not clearly beyond the worst that showed something
        (0.7, FAITHFUL[1:], False),  # too few to go by
        (0.7, [*FAITHFUL, rendered(0.68, 0.9)], False),  # one showed something at such a loss
        (0.7, [*FAITHFUL, rendered(0.68, 0.2)], True),  # that one did not
        (
            0.7,
            [*FAITHFUL, unpromising_result(CheckpointResult(100, 0.1, 0.1, [0.9, 0.9]), [], 0.4)],
            True,
        ),  # what was only predicted tells nothing
    ],
)
def test_validation_loss_speaks_only_beyond_what_was_rendered(
    loss: float, seen: list[CheckpointResult], needless: bool
) -> None:
    assert predicted_undercooked(loss, seen, SETTINGS) is needless


def card(value: Estimate, fidelity: Estimate, bleed: Estimate) -> Scorecard:
    terms = {"fidelity": fidelity, "bleed_class": bleed}
    return Scorecard(value, 1.0, terms, {"1": terms}, {}, {}, {}, "", {})


FAIR, HIGH, LOW = Estimate(0.5, 0.3, 0.7), Estimate(0.9, 0.8, 1.0), Estimate(0.1, 0.0, 0.2)


@pytest.mark.parametrize(
    ("terms", "enough"),
    [
        ((FAIR, HIGH, LOW), False),
        ((FAIR, LOW, LOW), True),  # surely undercooked
        ((FAIR, HIGH, HIGH), True),  # surely overcooked
        ((LOW, HIGH, LOW), True),  # cannot come near the best
    ],
)
def test_the_strongest_weight_settles_what_is_sure(terms: tuple[Estimate, Estimate, Estimate], enough: bool) -> None:
    best = CheckpointResult(100, 0.1, 0.1, [0.4], 0.6, {"value": 0.6, "low": 0.4, "high": 0.8})
    assert can_stop_early(card(*terms), best, SETTINGS) is enough


def test_an_infeasible_best_settles_nothing() -> None:
    best = CheckpointResult(
        100, 0.1, 0.1, [0.4], -0.1, {"value": 0.9, "low": 0.8, "high": 1.0}, constraints={"bleed_class": 0.1}
    )
    assert not can_stop_early(card(LOW, HIGH, LOW), best, SETTINGS)
    assert not can_stop_early(card(LOW, HIGH, LOW), None, SETTINGS)


BLANK = CheckpointResult(100, 0.1, 0.1, [0.9, 0.9])


@pytest.mark.parametrize(
    ("seen", "bleed", "weights"),
    [
        ([FAITHFUL[0]] * MIN_RENDERED, 0.0, []),  # its validation loss says enough
        ([], 1.0, [(1.0,)]),  # bleeds at the strongest weight
        ([], 0.0, [(1.0,), (0.7, 1.0)]),  # may be the best
    ],
)
def test_it_climbs_only_as_far_as_it_must(
    seen: list[CheckpointResult], bleed: float, weights: list[tuple[float, ...]]
) -> None:
    noise = np.random.default_rng(0)
    scorer, asked = made_up_scorer(noise), []
    everything = renders(scorer, noise, likeness=0.9, follows=0.9, bleed=bleed)

    def judge(at: Sequence[float]) -> Scorecard:
        asked.append(tuple(at))
        return score(scorer.at_weights(*at), everything)

    point = evaluate_progressively(BLANK, [], seen, scorer.settings, judge)
    assert asked == weights
    assert set(point.by_weight) == ({f"{weight:g}" for weight in weights[-1]} if weights else set())
    assert ("undercooked" in point.broken) == (not weights)
    assert ("bleed_class" in point.broken) == bool(bleed)


@pytest.mark.parametrize(
    ("before", "loss", "fault"),
    [
        ([], 0.9, "undercooked"),
        ([0.95], 0.9, "undercooked"),
        ([0.88], 0.9, "undercooked"),  # noise
        ([], 1.4, "collapsed"),
        ([0.6], 0.9, "collapsed"),  # it was nearer
        ([1.13, 0.84], 0.87, "collapsed"),  # it only comes back to where it began
    ],
)
def test_a_checkpoint_worse_than_the_base_model_or_its_own_past_has_collapsed(
    before: list[float], loss: float, fault: str
) -> None:
    own = [CheckpointResult(50, 0.1, 0.1, [past, past]) for past in before]
    point = unpromising_result(CheckpointResult(100, 0.1, 0.1, [loss, loss]), own, 0.4)
    assert point.broken == [fault]
    assert point.verdict.startswith(fault)
    assert point.objective == -BELOW
    assert ("lower learning rate" in remedy(point.constraints)) == (fault == "collapsed")
