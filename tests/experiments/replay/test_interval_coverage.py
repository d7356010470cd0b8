"""Coverage of the score's interval: how sub-suites are drawn, and how often intervals of known width hold."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np

from autolora.scoring.scorer import Scorer
from experiments.replay.interval_coverage import TIMES, distinct, held, sub_suites
from tests.scoring.test_scorecard import made_up_scorer, renders


def pool_of(noise: np.random.Generator) -> Scorer:
    """The made-up scorer with ten times its prompts."""
    scorer = made_up_scorer(noise)
    copies = {probe: [replace(probe, prompt=f"{probe.prompt} {i}") for i in range(TIMES)] for probe in scorer.probes}
    many = tuple(copy for own in copies.values() for copy in own)
    back = {copy: probe for probe, own in copies.items() for copy in own}
    return replace(
        scorer,
        probes=many,
        base={copy: scorer.base[back[copy]] for copy in many},
        base_pictures={copy: scorer.base_pictures[back[copy]] for copy in many},
        texts={copy: scorer.texts[back[copy]] for copy in many},
    )


def test_prompts_are_distinct_and_the_same_every_time() -> None:
    found = distinct(random.Random(3), 40, True)
    assert len(set(found)) == 40
    assert found == distinct(random.Random(3), 40, True)


def test_a_sub_suite_is_a_tenth_of_every_group() -> None:
    pool = pool_of(np.random.default_rng(0))
    sizes = Counter(p.group for p in pool.probes)
    suites = list(sub_suites(pool, 20))
    for suite in suites:
        assert Counter(p.group for p in suite.probes) == {group: n // TIMES for group, n in sizes.items()}
    assert len({suite.probes for suite in suites}) == 20


def test_intervals_of_renders_at_random_hold_about_as_often_as_they_claim() -> None:
    noise = np.random.default_rng(0)
    pool = pool_of(noise)
    pictures = renders(pool, noise, 0.6, 0.9, 0.2)
    rates = held(pool, pictures, 40)
    assert 0.8 <= rates["likeness"] <= 1
    assert 0.7 <= rates["bleed_class"] <= 1
