"""The replay bank: rows grow by recipe, and the ladder is replayed from them alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autolora.scoring.probes import SEARCH_GROUPS
from autolora.scoring.scorecard import score
from experiments.replay import bank
from experiments.replay.multi_fidelity import replay, seen_card
from tests.scoring.test_scorecard import made_up_scorer, renders


def test_rows_grow_by_recipe_and_a_recipe_measured_again_replaces_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "RESULTS", tmp_path)
    assert bank.rows_of(110) == []
    bank.write_rows(110, [{"number": 1, "step": s, "score": 0.5} for s in (200, 100)], {"base_losses": [0.1]})
    bank.write_rows(110, [{"number": 0, "step": 100, "score": 0.4, "cross": 0.2}], {"base_losses": [0.1]})
    bank.write_rows(110, [{"number": 1, "step": 100, "score": 0.7}], {"base_losses": [0.1]})
    found = [(row["number"], row["step"], row["score"], row["cross"]) for row in bank.rows_of(110)]
    assert found == [("0", "100", "0.4", "0.2"), ("1", "100", "0.7", "")]
    facts = json.loads((tmp_path / "110.json").read_text("utf-8"))
    assert facts["rows"] == 2 and facts["base_losses"] == [0.1]
    (tmp_path / "110.json").write_text(json.dumps(facts | {"weights": "of another model"}))
    assert bank.rows_of(110) == []


def row(number: int, bleed: float, objective: float, loss: float = 0.2) -> dict[str, str]:
    """A checkpoint's row with made-up renders on both rungs."""
    noise = np.random.default_rng(number)
    scorer = made_up_scorer(noise)
    everything = renders(scorer, noise, likeness=0.9, follows=0.9, bleed=bleed)
    facts: dict[str, Any] = {"number": number, "step": 100, "recipe": str(number), "train_loss": 0.1, "val_loss": loss}
    facts |= {"val_losses": json.dumps([loss, loss]), "objective": objective, "score": objective}
    names = [f"oracle_{name}{half}" for name in ("likeness", "accuracy", "bleed") for half in ("", "_a", "_b")]
    figures = dict.fromkeys([f"{name}@{weight}" for name in names for weight in ("0.7", "1")], 0.5)
    return {key: str(value) for key, value in {**facts, **bank.rungs(scorer, everything), **figures}.items()}


def test_a_rung_is_kept_as_the_ladder_sees_it() -> None:
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    everything = renders(scorer, noise, likeness=0.9, follows=0.9, bleed=1.0)
    kept = bank.rungs(scorer, everything)
    assert list(kept) == ["rung@1", "rung@0.7+1"]
    whole, found = score(scorer.only(*SEARCH_GROUPS), everything), seen_card(json.loads(kept["rung@0.7+1"]))
    assert found.broken == whole.broken and found.objective == pytest.approx(whole.objective, abs=1e-3)
    assert found.by_weight["1"]["bleed_class"].low == pytest.approx(whole.by_weight["1"]["bleed_class"].low, abs=1e-4)


def test_the_ladder_is_replayed_from_rows() -> None:
    noise = np.random.default_rng(0)
    settings = made_up_scorer(noise).settings
    facts = {"renders": {"search": 10, "deciding": 24, "whole": 30}, "base_losses": [0.4, 0.4]}
    bleeding = replay([row(0, 1.0, -0.5)], facts, settings)
    clean = replay([row(0, 0.0, 0.8)], facts, settings)
    assert clean.renders - bleeding.renders == 10  # bleeding at the strongest weight needs no render at the other
    assert bleeding.points[0].objective < 0 < clean.points[0].objective
    both = replay([row(0, 1.0, -0.5), row(1, 0.0, 0.8)], facts, settings)
    assert both.pick == 1 and both.full_renders == 2 * clean.full_renders
