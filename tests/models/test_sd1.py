"""The SD1 model compared with diffusers' own pipeline and schedulers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from autolora.errors import ConfigError, ModelError
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from tests import tiny

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PIPELINE: Any = StableDiffusionPipeline


@pytest.fixture(params=["v_prediction", "epsilon"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> StableDiffusion:
    return tiny.load_tiny(tiny.save_tiny(tmp_path / "model", request.param))


def test_noise_target_and_snr_equal_the_schedulers(model: StableDiffusion) -> None:
    scheduler = tiny.tiny_scheduler(model.prediction_type)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(4, *model.latent_shape, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 250, 998, 999])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(model.add_noise(latents, noise, timesteps), noisy, atol=1e-5, rtol=1e-5)
    velocity = model.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    torch.testing.assert_close(model.target(latents, noise, timesteps), target, atol=1e-5, rtol=1e-5)
    abar = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(model.snr(timesteps), abar / (1 - abar))


def test_the_last_timestep_of_the_v_model_is_pure_noise(tiny_model: StableDiffusion) -> None:
    last = torch.tensor([tiny_model.train_timesteps - 1])
    latents, noise = torch.full((1, *tiny_model.latent_shape), 5.0), torch.ones(1, *tiny_model.latent_shape)
    assert float(tiny_model.snr(last)) == 0
    assert torch.equal(tiny_model.add_noise(latents, noise, last), noise)
    assert torch.equal(tiny_model.target(latents, noise, last), -latents)


def test_parts_are_frozen_and_in_single_precision(tiny_model: StableDiffusion) -> None:
    assert set(tiny_model.modules) == {"unet", "text_encoder"}
    for part in (*tiny_model.modules.values(), tiny_model.vae):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())
    assert (tiny_model.name, tiny_model.architecture, tiny_model.resolution) == (
        "tiny",
        "sd1",
        tiny.RESOLUTION,
    )
    latents = tiny_model.encode_images(torch.zeros(2, 3, tiny.RESOLUTION, tiny.RESOLUTION))
    assert tuple(latents.shape) == (2, *tiny_model.latent_shape)
    assert tuple(tiny_model.decode_latents(latents).shape) == (2, 3, tiny.RESOLUTION, tiny.RESOLUTION)


def test_latents_are_the_scaled_mode_of_the_posterior(tiny_model: StableDiffusion, tiny_model_dir: Path) -> None:
    pipeline = PIPELINE.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(tiny_model.encode_images(pixels), expected, atol=1e-5, rtol=1e-4)


def test_prompts_encode_as_in_diffusers(tiny_model: StableDiffusion, tiny_model_dir: Path) -> None:
    pipeline = PIPELINE.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    prompts = ["1girl, Mona", "", "mona_(é), " * 7]  # the last one just fits; diffusers cuts longer ones
    expected = torch.cat([pipeline.encode_prompt(p, "cpu", 1, False)[0] for p in prompts])
    torch.testing.assert_close(tiny_model.encode_prompts(prompts).tokens, expected, atol=1e-5, rtol=1e-4)


def test_tokens_exclude_special_tokens(tiny_model: StableDiffusion) -> None:
    for prompt in ("1girl, Mona_Taco", "", "mona " * 90):  # the last one exceeds the window
        ids = tiny_model.tokenizer(prompt).input_ids
        assert tiny_model.tokenizer.convert_tokens_to_ids(tiny_model.tokens(prompt)) == ids[1:-1]
    assert tiny_model.tokens("Ab c") == ["a", "b</w>", "c</w>"]
    assert tiny_model.window_tokens == tiny.TOKENS - 2


def test_prompt_encoding_passes_gradients(tiny_model: StableDiffusion) -> None:
    table = tiny_model.text_encoder.get_input_embeddings().weight
    table.requires_grad_(True)
    try:
        assert tiny_model.encode_prompts(["mona"]).tokens.requires_grad
    finally:
        table.requires_grad_(False)


@torch.no_grad()
def test_a_fixed_context_changes_no_prediction(tiny_model: StableDiffusion) -> None:
    noisy = torch.randn(2, *tiny_model.latent_shape, generator=torch.Generator().manual_seed(0))
    contexts = [tiny_model.encode_prompts(["a", "b"]), tiny_model.encode_prompts(["c", "d"])]
    order = [(contexts[0], 900), (contexts[0], 500), (contexts[1], 500), (contexts[0], 100)]
    expected = [tiny_model.predict(noisy, torch.full((2,), t), context) for context, t in order]
    projections = [m for n, m in tiny_model.unet.named_modules() if n.endswith("attn2.to_k")]
    original, calls = projections[0].forward, []

    def counting(x: torch.Tensor) -> Any:
        calls.append(1)
        return original(x)

    projections[0].forward = counting
    try:
        with tiny_model.fixed_context():
            for (context, t), prediction in zip(order, expected, strict=True):
                assert torch.equal(tiny_model.predict(noisy, torch.full((2,), t), context), prediction)
        assert len(calls) == 3
        tiny_model.predict(noisy, torch.full((2,), 100), contexts[0])
        assert len(calls) == 4
    finally:
        del projections[0].forward
    assert not any("forward" in vars(m) for m in projections)


def test_the_hash_depends_on_the_weights(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    same, different = tiny.save_tiny(tmp_path / "same"), tiny.save_tiny(tmp_path / "other", seed=1)
    assert tiny.load_tiny(same).base_hash == tiny_model.base_hash
    assert tiny.load_tiny(different).base_hash != tiny_model.base_hash
    assert len(tiny_model.base_hash) == 16


def test_half_precision_variants_load(tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model_dir, tmp_path / "half")
    for path in list(copy.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    loaded = tiny.load_tiny(copy)
    assert torch.equal(loaded.unet.conv_in.weight, tiny_model.unet.conv_in.weight)


def test_outdated_scheduler_files_are_corrected_as_by_the_pipeline(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model_dir, tmp_path / "old")
    path = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config.update(_class_name="PNDMScheduler", skip_prk_steps=True, steps_offset=0, clip_sample=True)
    path.write_text(json.dumps(config))
    sampler = tiny.load_tiny(copy).sampler()
    assert (type(sampler).__name__, sampler.config.clip_sample, sampler.config.steps_offset) == (
        "DDIMScheduler",
        False,
        1,
    )


def test_the_resolution_can_be_set(tiny_model_dir: Path) -> None:
    assert load_model(ModelSettings(path=str(tiny_model_dir), resolution=64)).latent_shape == (4, 16, 16)
    with pytest.raises(ConfigError, match=r"model\.resolution=36 must be a multiple of 8"):
        load_model(ModelSettings(path=str(tiny_model_dir), resolution=36))
    with pytest.raises(ConfigError, match=r"model\.render\.size=20 must be a multiple of 8"):
        load_model(ModelSettings(path=str(tiny_model_dir), render=RenderSettings(size=20)))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.family=sd9 is unknown; expected one of sd1"):
        load_model(ModelSettings(family="sd9"))


def test_an_unknown_prediction_type_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "model", "sample")
    with pytest.raises(ModelError, match="prediction_type=sample is not supported"):
        tiny.load_tiny(folder)


def test_weights_that_lack_a_tensor_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    for part, key in (("unet", "conv_in.weight"), ("text_encoder", None)):
        copy = shutil.copytree(tiny_model_dir, tmp_path / part)
        path = next((copy / part).glob("*.safetensors"))
        tensors = load_file(path)
        tensors.pop(key or sorted(tensors)[0])
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(ModelError, match="the weights lack 1 tensors"):
            tiny.load_tiny(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_truncated_weight_file_has_an_error_of_one_line(part: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model_dir, tmp_path / "cut")
    path = next((copy / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        tiny.load_tiny(copy)
    assert "\n" not in str(error.value)
