"""The ways of spoiling a LoRA, and when a case counts as judged right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autolora.data.concepts import DatasetSettings, load_dataset, without_triggers
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import Scorecard
from experiments.live.negative_controls import Judged, saturated, scrambled, swapped
from tests.data.folders import write_zorak

STATE = {
    "a.lora_down.weight": torch.arange(6.0).view(2, 3),
    "a.lora_up.weight": torch.arange(6.0).view(3, 2),
    "a.alpha": torch.tensor(2.0),
}


def card(score: float, **constraints: float) -> Scorecard:
    estimate = Estimate(score, score, score)
    return Scorecard(estimate, 1.0, {}, {}, constraints, {}, {}, "", {})


def test_a_random_lora_has_the_same_numbers_in_another_order() -> None:
    random_lora = scrambled(STATE)
    assert not torch.equal(random_lora["a.lora_up.weight"], STATE["a.lora_up.weight"])
    assert sorted(random_lora["a.lora_up.weight"].flatten()) == sorted(STATE["a.lora_up.weight"].flatten())
    assert random_lora["a.alpha"] == STATE["a.alpha"]


def test_captions_lose_their_triggers_or_swap_those_of_the_outfits(tmp_path: Path) -> None:
    dataset = load_dataset(DatasetSettings(path=str(write_zorak(tmp_path))))
    assert all("zorak" not in p.caption and "fit_" not in p.caption for p in without_triggers(dataset).pictures)
    for before, after in zip(dataset.concepts, swapped(dataset).concepts, strict=True):
        assert before.trigger in before.pictures[0].caption
        assert before.trigger not in after.pictures[0].caption
        assert "zorak" in after.pictures[0].caption and "fit_" in after.pictures[0].caption


def test_more_saturation_moves_colours_away_from_grey() -> None:
    image = np.full((1, 4, 4, 3), (140, 120, 120), np.uint8)
    prompt = EvalPrompt("trigger", "", "mona", "", (0,))
    red, green, _ = saturated({(prompt, 1.0): image})[prompt, 1.0][0, 0, 0]
    assert int(red) - int(green) == pytest.approx(30, abs=2)


def test_a_spoiled_lora_must_break_its_constraint_and_score_worse() -> None:
    good = Judged.of((), card(0.9, burn=-1.0, bleed_class=-1.0))
    assert good.right(good)
    assert Judged.of(("burn",), card(0.95, burn=0.5)).right(good)
    assert not Judged.of(("burn",), card(0.5, bleed_class=0.5)).right(good)
    assert not Judged.of(("burn",), card(0.5, burn=-0.5)).right(good)
    assert not Judged.of((), card(0.95, burn=0.5)).right(good)
