"""The comparison of remedies: bleed at equal likeness, its interval and the verdict."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.common.scores import mean_interval
from experiments.live.remedies import KNOWN_WORD, LEVELS, REMEDIES, bleed_at, difference, run_of, table, verdict


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"likeness": likeness, "bleed": bleed} for likeness, bleed in points]


def test_bleed_is_read_where_a_likeness_is_first_reached() -> None:
    bleed = bleed_at(curve((0.4, 0.2), (0.3, 0.9), (0.6, 0.4)))
    at = dict(zip(np.round(LEVELS, 3), bleed, strict=True))
    assert at[0.2] == pytest.approx(0.1)
    assert at[0.4] == pytest.approx(0.2)
    assert at[0.5] == pytest.approx(0.65)  # half way between a bleed of .9 and one of .4
    assert np.isnan(at[0.7])


def test_training_runs_are_compared_at_levels_that_both_reach() -> None:
    none, better = curve((0.4, 0.2), (0.8, 0.6)), curve((0.4, 0.1), (0.6, 0.3))
    assert difference(none, none) == 0
    assert -0.15 < difference(better, none) < -0.04
    assert np.isnan(difference(curve((0.1, 0.0)), none))


def test_the_interval_is_by_students_t_over_characters() -> None:
    mean, low, high = mean_interval({1: [-0.1, -0.3, float("nan")], 2: [0.0, 0.2], 3: [-0.1]})
    assert mean == pytest.approx(-0.2 / 3)
    assert high - mean == mean - low == pytest.approx(4.303 * 0.1528 / 3**0.5, rel=1e-3)
    assert verdict(low, high) == "no difference shown"
    assert verdict(*mean_interval({1: [-0.2], 2: [-0.2]})[1:]) == "cannot be compared"  # two characters are too few
    assert verdict(-0.3, -0.1) == "less bleed" and verdict(0.1, 0.3) == "more bleed"
    assert verdict(*mean_interval({1: [float("nan")]})[1:]) == "cannot be compared"


@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_is_one_change(remedy: str) -> None:
    run, none = run_of(remedy, 3), run_of("none", 3)
    assert run.train.seed == 3 and run.captions.absorb_tags == "all"
    assert (run == none) == (remedy in ("none", KNOWN_WORD))


def test_the_table_compares_each_remedy_with_none() -> None:
    none, better = curve((0.4, 0.4), (0.8, 0.8)), curve((0.4, 0.0), (0.9, 0.1))
    judged = [
        {"remedy": remedy, "character": character, "seed": seed, "curve": points}
        for remedy, points in (("none", none), ("max norm", better))
        for character in (155, 157, 158)
        for seed in (0, 1)
    ]
    text = table(judged)
    assert "| none |  |  | 80% | 80% | 6 |" in text
    assert "less bleed | 90% | 10% | 6 |" in text and "Prodigy" not in text
