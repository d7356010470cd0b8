"""A study from its pictures to its exported LoRA on every family of base models, as small as one can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autolora.cli import main
from autolora.models.load import FAMILIES
from autolora.paperdoll.world import write_dataset
from tests import tiny, tiny_flow
from tests.original import save_both_forms

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

FORMS = [*((family, "folder") for family in FAMILIES), *((family, "file") for family in ("sd1", "sd2", "sdxl"))]
STUDY = """# @package _global_
defaults: [override /model: paperdoll, override /scoring: paperdoll]
study:
  name: tiny
  final_seeds: 0
  n_finalists: 1
  average_checkpoints: false
  try_lora_scales: false
  recipes:
    doll-adamw: {adapter.dim: {choice: [2, 4]}}
adapter: {dim: 2, alpha: 2}
train: {epochs: 1, images_per_concept: 8, min_character_images: 0, prior_preservation_ratio: 0.5}
"""
SMALL = (
    "budget.n_trials=1",
    "model.num_class_images=4",
    "model.render.num_inference_steps=1",
    "model.render.search_inference_steps=1",
    "model.render.scheduler=euler",
    "scoring.weights=[1.0]",
    "scoring.seeds_per_class_prompt=1",
    "scoring.num_class_renders=2",
    "scoring.trigger_prompts=[smile]",
    "scoring.outfit_prompts=[hat,glasses]",
    "scoring.class_prompts=[]",
    "scoring.unrelated_prompts=[city]",
    "scoring.num_negative_renders=8",
    "scoring.n_bootstrap=20",
    "scoring.second_encoder=null",
    "scoring.tagger=null",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures") / "doll"
    write_dataset(out, seed=1, outfits=1, images_per_outfit=8, size=32)
    return out


def saved(family: str, form: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A model of random weights."""
    if form == "file":
        pair = save_both_forms(family, folder)
        pair.replace_configs(patch)
        return pair.file
    if family in tiny_flow.FAMILIES:
        return tiny_flow.save_tiny_flow(folder / "model", family)
    return tiny.save_tiny_xl(folder / "model") if family == "sdxl" else tiny.save_tiny(folder / "model", family=family)


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_a_study_scores_and_exports(
    family: str, form: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY)
    path, run = saved(family, form, tmp_path, monkeypatch), tmp_path / "run"
    places = [f"dataset.path={pictures}", f"out={run}", f"cache={tmp_path / 'cache'}"]
    base = [f"model.family={family}", f"model.path={path}", f"model.resolution={tiny.RESOLUTION}"]
    code = main(["tune", str(tmp_path / "tiny.yaml"), *places, *base, *SMALL])
    result = json.loads((run / "result.json").read_text("utf-8"))
    assert code == 0 and result["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert result["best"]["verdict"].startswith("undercooked") and "fidelity" in result["best"]["terms"]
    assert len(result["sweep"]) > 1 and "unrelated" in " ".join(result["best"]["terms"])  # the finals were held
    (latest,) = (run / "trials").glob("*/latest.pt")
    assert latest.stat().st_size > 0 and (run / "report" / "index.html").is_file()
    exported = load_file(result["export"])
    assert exported and all(torch.isfinite(tensor).all() for tensor in exported.values())
