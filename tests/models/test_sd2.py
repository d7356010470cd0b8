"""Stable Diffusion 2: SD1's layout with linear projections; exported files state the base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_metadata
from autolora.export.metadata import ExportFacts
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from tests import tiny
from tests.export.world import dataset, random_state, run

pytestmark = pytest.mark.slow  # trains, renders or loads many models


@pytest.mark.parametrize(("prediction", "version"), [("epsilon", "sd_v2"), ("v_prediction", "sd_v2_v")])
def test_an_export_states_its_base_model(prediction: str, version: str, tmp_path: Path) -> None:
    path = tiny.save_tiny(tmp_path / "model", prediction, family="sd2")
    model, spec = tiny.load_tiny(path, "sd2"), LoRA(dim=2, alpha=1, text_encoder=True)
    state = random_state(model, spec)
    exported = export_lora(state, run(spec), dataset(), model, tmp_path, "sd2", facts=ExportFacts("a", 1.0, "b", 4))
    metadata = read_metadata(exported.path)
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, "True")
    assert metadata["ss_v_parameterization"] == str(prediction == "v_prediction")
    verify_deltas(state, exported.path, model)
    assert DiffusersReference(exported.path, path, model).verify_deltas(state).layers
    assert json.loads(exported.sidecar.read_text())["sd version"] == "SD2"
