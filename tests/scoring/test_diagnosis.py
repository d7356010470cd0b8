"""What is said of a scorecard, and what is advised."""

from __future__ import annotations

import pytest

from autolora.scoring.diagnosis import REMEDIES, remedy, verdict
from autolora.scoring.intervals import Estimate
from autolora.scoring.settings import ScoringSettings

SETTINGS = ScoringSettings(outfit_prompts=("a", "b"), max_bleed=0.5)
NAMES = ("fidelity", "likeness", "editability", "bleed_class", "bleed_cross", "memorisation", "spread", "burn")
SAID = {
    "bleed_class": "overcooked",
    "memorisation": "copied",
    "burn": "burnt",
    "too_strong": "too strong",
    "bleed_cross": "mixed up",
    "undercooked": "undercooked",
    "editability": "stiff",
    "spread": "narrowed",
}


def said(*broken: str, bleed: float = 0.6) -> str:
    terms = {name: Estimate(0.4, 0.3, 0.5) for name in NAMES} | {"bleed_class": Estimate(bleed, 0.0, 0.9)}
    constraints = {"bleed_class": -0.1} | dict.fromkeys(broken, 0.1)
    return verdict(terms, constraints, {"0.7": 0.12, "1": 0.63}, SETTINGS)


@pytest.mark.parametrize("name", SAID)
def test_every_constraint_has_words_and_a_remedy(name: str) -> None:
    assert said(name).startswith(SAID[name])
    assert remedy({name: 0.1}) == REMEDIES[name]


def test_shares_are_said_as_shares() -> None:
    terms = {name: Estimate(-0.02, -0.1, 0.0) for name in NAMES}
    words = verdict(terms, {"bleed_class": -0.1, "undercooked": 0.1}, {"1": 0.0}, SETTINGS)
    assert "only 0% of the way" in words


def test_the_gravest_fault_is_named() -> None:
    assert said("undercooked", "bleed_class").startswith("overcooked")
    assert "63% at weight 1, 12% at weight 0.7" in said("bleed_class")


def test_bleed_that_only_may_be_is_not_called_overcooked() -> None:
    assert said("bleed_class", bleed=0.4).startswith("bleed not ruled out")


def test_nothing_broken_is_good_and_needs_no_remedy() -> None:
    assert said().startswith("good")
    assert remedy({"bleed_class": -0.1}) == ""


def test_advice_does_not_contradict_itself() -> None:
    assert remedy({"undercooked": 0.1, "editability": 0.1}) == REMEDIES["undercooked"]


def test_what_is_known_of_the_run_is_advised_against_bleed_and_nothing_else() -> None:
    known = ["48 pictures", "stop at step 800"]
    assert remedy({"bleed_class": 0.1}, known) == "48 pictures, or stop at step 800"
    assert remedy({"burn": 0.1}, known) == REMEDIES["burn"]
