"""Coverage of the score's interval: how suites are drawn, and how often intervals of known width hold."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np

from autolora.scoring.scorer import Scorer
from experiments.replay.interval_coverage import TIMES, coverage, distinct_tags, sub_suites
from tests.scoring.test_scorecard import made_up_scorer, renders


def pool_of(noise: np.random.Generator) -> Scorer:
    """Return the made-up scorer with ten times its prompts."""
    scorer = made_up_scorer(noise)
    copies = {p: [replace(p, prompt=f"{p.prompt} {i}") for i in range(TIMES)] for p in scorer.prompts}
    many = tuple(copy for of_prompt in copies.values() for copy in of_prompt)
    original = {copy: prompt for prompt, of_prompt in copies.items() for copy in of_prompt}
    return replace(
        scorer,
        prompts=many,
        base_embeddings={copy: scorer.base_embeddings[original[copy]] for copy in many},
        base_renders={copy: scorer.base_renders[original[copy]] for copy in many},
        text_embeddings={copy: scorer.text_embeddings[original[copy]] for copy in many},
    )


def test_prompts_are_distinct_and_the_same_every_time() -> None:
    tags = distinct_tags(random.Random(3), 40, True)
    assert len(set(tags)) == 40
    assert tags == distinct_tags(random.Random(3), 40, True)


def test_a_drawn_suite_is_a_tenth_of_every_group() -> None:
    pool = pool_of(np.random.default_rng(0))
    sizes = Counter(p.group for p in pool.prompts)
    suites = list(sub_suites(pool, 20))
    for suite in suites:
        assert Counter(p.group for p in suite.prompts) == {group: n // TIMES for group, n in sizes.items()}
    assert len({suite.prompts for suite in suites}) == 20


def test_intervals_of_random_renders_hold_about_as_often_as_they_should() -> None:
    noise = np.random.default_rng(0)
    pool = pool_of(noise)
    pictures = renders(pool, noise, 0.6, 0.9, 0.2)
    rates = coverage(pool, pictures, 40)
    assert 0.8 <= rates["likeness"] <= 1
    assert 0.7 <= rates["bleed_class"] <= 1
