"""The verdict on a scorecard, and the remedy."""

from __future__ import annotations

import pytest

from autolora.scoring.diagnosis import REMEDIES, remedy, verdict
from autolora.scoring.intervals import Estimate
from autolora.scoring.settings import ScoringSettings

SETTINGS = ScoringSettings(outfit_prompts=("a", "b"), max_bleed=0.5)
NAMES = ("fidelity", "likeness", "editability", "bleed_class", "bleed_cross", "memorisation", "spread", "burn")
VERDICTS = {
    "bleed_class": "overcooked",
    "memorisation": "memorized",
    "burn": "oversaturated",
    "too_strong": "too strong",
    "bleed_cross": "concepts mixed",
    "undercooked": "undercooked",
    "editability": "inflexible",
    "spread": "diversity lost",
}


def verdict_on(*broken: str, bleed: float = 0.6) -> str:
    terms = {name: Estimate(0.4, 0.3, 0.5) for name in NAMES} | {"bleed_class": Estimate(bleed, 0.0, 0.9)}
    constraints = {"bleed_class": -0.1} | dict.fromkeys(broken, 0.1)
    return verdict(terms, constraints, {"0.7": 0.12, "1": 0.63}, SETTINGS)


@pytest.mark.parametrize("name", VERDICTS)
def test_every_constraint_has_a_verdict_and_a_remedy(name: str) -> None:
    assert verdict_on(name).startswith(VERDICTS[name])
    assert remedy({name: 0.1}) == REMEDIES[name]


def test_shares_are_printed_as_percentages() -> None:
    terms = {name: Estimate(-0.02, -0.1, 0.0) for name in NAMES}
    text = verdict(terms, {"bleed_class": -0.1, "undercooked": 0.1}, {"1": 0.0}, SETTINGS)
    assert "only 0% of the way" in text


def test_the_gravest_fault_is_named() -> None:
    assert verdict_on("undercooked", "bleed_class").startswith("overcooked")
    assert "63% at weight 1, 12% at weight 0.7" in verdict_on("bleed_class")


def test_bleed_that_is_only_possible_is_not_called_overcooked() -> None:
    assert verdict_on("bleed_class", bleed=0.4).startswith("bleed not ruled out")


def test_no_broken_constraint_is_good_and_needs_no_remedy() -> None:
    assert verdict_on().startswith("good")
    assert remedy({"bleed_class": -0.1}) == ""


def test_only_one_of_two_contradicting_remedies_is_given() -> None:
    assert remedy({"undercooked": 0.1, "editability": 0.1}) == REMEDIES["undercooked"]


def test_remedies_of_the_run_are_used_against_bleed_only() -> None:
    options = ["48 images", "stop after 800 images"]
    assert remedy({"bleed_class": 0.1}, options) == "48 images, or stop after 800 images"
    assert remedy({"burn": 0.1}, options) == REMEDIES["burn"]
