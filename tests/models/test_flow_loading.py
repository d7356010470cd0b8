"""Loading of flow-matching models: which settings and folders are refused, and with which message."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import LoRA
from autolora.errors import ConfigError, ModelError
from autolora.models.flow import FlowModel
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from tests import tiny, tiny_flow

PIPELINE: Any = DiffusionPipeline
SCHEDULER: Any = FlowMatchEulerDiscreteScheduler
PROMPTS = ["1girl, Mona", "", "mona_(\u00e9), " * 7]
RENDER = RenderSettings(num_inference_steps=4, guidance_scale=3.0, scheduler="euler")


@pytest.fixture(params=tiny_flow.FAMILIES)
def model(request: pytest.FixtureRequest, tiny_flows: dict[str, FlowModel]) -> FlowModel:
    return tiny_flows[request.param]


def test_parts_are_frozen(model: FlowModel) -> None:
    encoders = {"sd3": {"text_encoder", "text_encoder_2"}, "flux": {"text_encoder"}, "z_image": set()}
    assert set(model.modules) == {"transformer", *encoders[model.architecture]}
    for part in (*model.modules.values(), *model.text_encoders.values(), model.vae):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


def test_a_text_encoder_that_lora_files_cannot_contain_is_not_adapted(tiny_flows: dict[str, FlowModel]) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.text_encoder=true: LoRA files for this model hold no text"):
        attach(tiny_flows["z_image"].modules, LoRA(text_encoder=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_skip": 2}, r"model\.clip_skip=2: .* has no such setting"),
        ({"prediction_type": "epsilon"}, r"model\.prediction_type=epsilon: .* has no such setting"),
        ({"zero_terminal_snr": True}, r"model\.zero_terminal_snr=True: .* has no such setting"),
        ({"dtype": "float16"}, r"model\.dtype=float16: .* exceeds the range of float16; set bfloat16 or float32"),
        ({"resolution": 36}, r"model\.resolution=36 must be a multiple of 8"),
        ({"render": RenderSettings()}, r"model\.render\.scheduler=ddim: .* renders with euler"),
        ({"render": replace(RENDER, guidance_rescale=0.5)}, r"model\.render\.guidance_rescale"),
    ],
)
def test_settings_of_other_families_are_refused(settings: dict[str, Any], message: str, model: FlowModel) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_flow.load_tiny_flow(Path(str(model.source)), model.architecture, **settings)


def test_settings_of_flow_matching_are_refused_elsewhere(tiny_model_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.timestep_shift=3\.0: a model with a noise schedule has no such setting"
    ):
        tiny.load_tiny(tiny_model_dir, timestep_shift=3.0)
    with pytest.raises(ConfigError, match=r"model\.timestep_sampling must be one of logit_normal, uniform or null"):
        ModelSettings(timestep_sampling="cosine")
    with pytest.raises(ConfigError, match=r"model\.timestep_shift must be above 0 or null, got 0"):
        ModelSettings(timestep_shift=0)


def test_a_negative_prompt_without_effect_is_refused(tiny_flows: dict[str, FlowModel]) -> None:
    with pytest.raises(ConfigError, match=r"model\.render\.negative"):
        tiny_flow.load_tiny_flow(
            Path(str(tiny_flows["flux"].source)), "flux", render=replace(RENDER, negative_prompt="red")
        )


def test_a_wrong_family_is_refused_with_the_right_one(model: FlowModel, tiny_model: StableDiffusion) -> None:
    with pytest.raises(ModelError, match=rf"set model\.family={model.architecture}; expected a Stable Diffusion 1\.x"):
        load_model(ModelSettings(path=str(model.source)))
    with pytest.raises(ModelError, match=r"set model\.family=sd1; expected a .* diffusers folder \(model_index\.json"):
        load_model(ModelSettings(family=model.architecture, path=str(tiny_model.source)))


def test_a_missing_or_unsupported_part_is_named(model: FlowModel, tmp_path: Path) -> None:
    folder = shutil.copytree(str(model.source), tmp_path / "model")
    last = sorted(model.text_encoders)[-1]
    shutil.rmtree(folder / last)
    with pytest.raises(ModelError, match=rf"lacks {last}/ \((T5-XXL|Qwen3)\); expected"):
        load_model(ModelSettings(family=model.architecture, path=str(folder)))
    folder = shutil.copytree(str(model.source), tmp_path / "special")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 99}))
    with pytest.raises(ModelError, match="its transformer has 99 input channels"):
        load_model(ModelSettings(family=model.architecture, path=str(folder)))


def test_the_vae_can_be_replaced(model: FlowModel, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        vae = tiny_flow.tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    replaced = tiny_flow.load_tiny_flow(Path(str(model.source)), model.architecture, vae=str(tmp_path / "vae"))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = (vae.encode(pixels).latent_dist.mean - 0.1) * 0.5
    torch.testing.assert_close(replaced.encode_images(pixels), expected, atol=1e-5, rtol=1e-4)
    assert replaced.base_hash != model.base_hash
    file = next((tmp_path / "vae").glob("*.safetensors"))
    with pytest.raises(ModelError, match=rf"for model\.family={model.architecture} give a diffusers VAE folder"):
        tiny_flow.load_tiny_flow(Path(str(model.source)), model.architecture, vae=str(file))
