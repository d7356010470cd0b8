"""The replay bank: rows are added by recipe, and progressive evaluation is replayed from rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autolora.scoring.eval_prompts import SEARCH_GROUPS
from autolora.scoring.scorecard import score
from experiments.replay import bank_rows
from experiments.replay.bank_measure import rungs
from experiments.replay.multi_fidelity import card_of, replay
from tests.scoring.test_scorecard import made_up_scorer, renders


def test_rows_are_added_by_recipe_and_replace_older_rows_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_rows, "BANK", tmp_path)
    assert bank_rows.rows_of(110) == []
    bank_rows.write_rows(110, [{"number": 1, "step": s, "score": 0.5} for s in (200, 100)], {"base_losses": [0.1]})
    bank_rows.write_rows(110, [{"number": 0, "step": 100, "score": 0.4, "cross": 0.2}], {"base_losses": [0.1]})
    bank_rows.write_rows(110, [{"number": 1, "step": 100, "score": 0.7}], {"base_losses": [0.1]})
    rows = [(row["number"], row["step"], row["score"], row["cross"]) for row in bank_rows.rows_of(110)]
    assert rows == [("0", "100", "0.4", "0.2"), ("1", "100", "0.7", "")]
    facts = json.loads((tmp_path / "110.json").read_text("utf-8"))
    assert facts["rows"] == 2 and facts["base_losses"] == [0.1]
    (tmp_path / "110.json").write_text(json.dumps(facts | {"weights": "of another model"}))
    assert bank_rows.rows_of(110) == []


def row(number: int, bleed: float, objective: float, loss: float = 0.2) -> dict[str, str]:
    """Return a checkpoint's row with made-up renders at one LoRA weight and at both."""
    noise = np.random.default_rng(number)
    scorer = made_up_scorer(noise)
    all_renders = renders(scorer, noise, likeness=0.9, follows=0.9, bleed=bleed)
    facts: dict[str, Any] = {"number": number, "step": 100, "recipe": str(number), "train_loss": 0.1, "val_loss": loss}
    facts |= {"val_losses": json.dumps([loss, loss]), "objective": objective, "score": objective}
    names = [f"oracle_{name}{half}" for name in ("likeness", "accuracy", "bleed") for half in ("", "_a", "_b")]
    figures = dict.fromkeys([f"{name}@{weight}" for name in names for weight in ("0.7", "1")], 0.5)
    return {key: str(value) for key, value in {**facts, **rungs(scorer, all_renders), **figures}.items()}


def test_a_rung_is_stored_as_the_search_sees_it() -> None:
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    all_renders = renders(scorer, noise, likeness=0.9, follows=0.9, bleed=1.0)
    columns = rungs(scorer, all_renders)
    assert list(columns) == ["rung@1", "rung@0.7+1"]
    whole, stored = score(scorer.only(*SEARCH_GROUPS), all_renders), card_of(json.loads(columns["rung@0.7+1"]))
    assert stored.broken == whole.broken and stored.objective == pytest.approx(whole.objective, abs=1e-3)
    assert stored.by_weight["1"]["bleed_class"].low == pytest.approx(whole.by_weight["1"]["bleed_class"].low, abs=1e-4)


def test_progressive_evaluation_is_replayed_from_rows() -> None:
    noise = np.random.default_rng(0)
    settings = made_up_scorer(noise).settings
    facts = {"renders": {"search": 10, "deciding": 24, "whole": 30}, "base_losses": [0.4, 0.4]}
    bleeding = replay([row(0, 1.0, -0.5)], facts, settings)
    clean = replay([row(0, 0.0, 0.8)], facts, settings)
    assert clean.renders - bleeding.renders == 10  # bleeding at the strongest weight needs no render at the other
    assert bleeding.points[0].objective < 0 < clean.points[0].objective
    both = replay([row(0, 1.0, -0.5), row(1, 0.0, 0.8)], facts, settings)
    assert both.pick == 1 and both.full_renders == 2 * clean.full_renders
