"""A recipe that was written down trains the same."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from autolora import config as cfg
from autolora.settings import build_run
from autolora.study.recipes import recipe_yaml, train_command

GIVEN = [
    ["recipe=doll-preserve", "optimizer.d_coef=1.53", "train.scale_weight_norms=1.0"],
    ["recipe=guide-lokr", "captions.absorb_tags=marks", "captions.drop_tags=[solo]", "train.min_snr_gamma=null"],
    ["recipe=guide-adamw", "optimizer=adafactor", "schedule=linear", "adapter.text_encoder=true"],
]


@pytest.mark.parametrize("overrides", GIVEN)
def test_the_file_composes_to_the_same_run(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run(cfg.compose("train", overrides))
    monkeypatch.chdir(tmp_path)
    cfg.RECIPES.mkdir(parents=True)
    (cfg.RECIPES / "mine.yaml").write_text(recipe_yaml(run, "mine"))
    read = build_run(cfg.compose("train", ["recipe=mine"]))
    assert read == replace(run, name="mine")


def test_the_command_composes_to_the_same_run() -> None:
    values = {"optimizer.d_coef": 1.53, "train.scale_weight_norms": None, "train.images_per_concept": 273}
    command = shlex.split(train_command("doll-preserve", values, "mona"))
    assert command[:2] == ["autolora", "train"]
    run = build_run(cfg.compose("train", command[2:]))
    assert run.optimizer.d_coef == 1.53 and run.train.images_per_concept == 273 and run.train.scale_weight_norms is None
    assert "dataset.path=mona" in command
