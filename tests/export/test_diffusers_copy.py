"""A copy in diffusers' own format changes the model in diffusers as the adapter does in autolora."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autolora.adapters.deltas import distance
from autolora.adapters.formats import layer_weights
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.export.diffusers_copy import NAME, write_diffusers
from autolora.export.readers.diffusers import DiffusersReference
from autolora.models.stable_diffusion import StableDiffusion
from tests.export.diffusers_log import warnings_at_loading
from tests.export.test_kinds import KINDS, assert_predicts_as, export, trained

pytestmark = pytest.mark.slow  # trains, renders or loads many models


@pytest.mark.parametrize("kind", ["lora", "rslora", "locon", "dora", "dora-conv"])
def test_diffusers_reads_the_copy_without_a_warning(
    kind: str, tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, _ = trained(tiny_model, kind)
    path = write_diffusers(state, tmp_path, torch.float32)
    assert path.name == NAME
    assert all(".text_model." in key for key in load_file(path) if key.startswith("text_encoder."))
    assert distance(read_lora(path, tiny_model), state, layer_weights(tiny_model.modules)) < 1e-5
    reference = DiffusersReference(path, tiny_model_dir, tiny_model)
    assert reference.verify_deltas(state).delta_error < 1e-5
    assert_predicts_as(reference, tiny_model, KINDS[kind], state)
    assert warnings_at_loading(path, tiny_model_dir, "sd1", caplog) == []


@pytest.mark.parametrize("kind", ["lora", "locon", "dora", "dora-conv"])
def test_diffusers_reads_the_sdxl_copy_without_a_warning(
    kind: str, tiny_xl: StableDiffusion, tiny_xl_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, _ = trained(tiny_xl, kind)
    roots = {"unet", "text_encoder", "text_encoder_2"} if kind == "lora" else {"unet"}
    assert {key.partition(".")[0] for key in state} == roots
    path = write_diffusers(state, tmp_path, torch.float32)
    assert distance(read_lora(path, tiny_xl), state, layer_weights(tiny_xl.modules)) < 1e-5
    reference = DiffusersReference(path, tiny_xl_dir, tiny_xl)
    assert reference.verify_deltas(state).delta_error < 1e-5
    assert_predicts_as(reference, tiny_xl, KINDS[kind], state)
    assert warnings_at_loading(path, tiny_xl_dir, "sdxl", caplog) == []


@pytest.mark.parametrize("kind", ["lora", "locon"])
def test_diffusers_reads_sdxl_in_kohyas_names_without_a_warning(
    kind: str, tiny_xl: StableDiffusion, tiny_xl_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, _ = trained(tiny_xl, kind)
    path = export(tiny_xl, kind, state, tmp_path)
    assert DiffusersReference(path, tiny_xl_dir, tiny_xl).verify_deltas(state).layers
    assert warnings_at_loading(path, tiny_xl_dir, "sdxl", caplog) == []


def test_half_precision_is_verified(tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path) -> None:
    state, _ = trained(tiny_model, "dora")
    assert DiffusersReference(write_diffusers(state, tmp_path), tiny_model_dir, tiny_model).verify_deltas(state).layers
    trained_lora, _ = trained(tiny_model, "lora")
    wrong = {key: value * (1.1 if "lora_up" in key else 1) for key, value in trained_lora.items()}
    with pytest.raises(ExportError, match="in diffusers: the change of"):
        DiffusersReference(write_diffusers(wrong, tmp_path), tiny_model_dir, tiny_model).verify_deltas(trained_lora)


def test_a_kind_without_a_diffusers_format(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    state, _ = trained(tiny_model, "loha")
    with pytest.raises(ExportError, match="LoRA, LoCon and DoRA only"):
        write_diffusers(state, tmp_path)
    assert not list(tmp_path.iterdir())
