"""The flow-matching families against diffusers' own pipelines, from prompts to an exported LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.kinds import LoRA
from autolora.errors import ConfigError, ModelError
from autolora.export.metadata import ExportFacts
from autolora.export.write import export_lora
from autolora.models.base import Context, stack_contexts
from autolora.models.flow import FlowModel
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.sampling import RenderRequest, render
from autolora.train.loss import timestep_weights
from autolora.train.run import TrainSettings
from tests import tiny, tiny_flow
from tests.adapters.test_contract import move
from tests.export.world import dataset, run

PIPELINE: Any = DiffusionPipeline
SCHEDULER: Any = FlowMatchEulerDiscreteScheduler
PROMPTS = ["1girl, Mona", "", "mona_(\u00e9), " * 7]
RENDER = RenderSettings(num_inference_steps=4, guidance_scale=3.0, scheduler="euler")


@pytest.fixture(params=tiny_flow.FAMILIES)
def model(request: pytest.FixtureRequest, tiny_flows: dict[str, FlowModel]) -> FlowModel:
    return tiny_flows[request.param]


@pytest.fixture
def pipeline(model: FlowModel) -> Any:
    found = PIPELINE.from_pretrained(model.source, torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def adapter(model: FlowModel) -> Iterator[AdapterSet]:
    spec = spec_of(model)
    made = attach(model.modules, spec)
    made.start(0, spec, torch.Generator().manual_seed(0))
    move(made, size=0.05)
    yield made
    made.detach()


def spec_of(model: FlowModel) -> LoRA:
    return LoRA(dim=4, alpha=2, text_encoder=len(model.modules) > 1)


def noisy_of(model: FlowModel, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(3))


def encoded(pipeline: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a family's pipeline makes of prompts."""
    if type(pipeline).__name__.startswith("Flux"):
        tokens, pooled, _ = pipeline.encode_prompt(prompts, device="cpu")
        return tokens, pooled
    if type(pipeline).__name__.startswith("ZImage"):
        (tokens,), _ = pipeline.encode_prompt(prompts, "cpu", do_classifier_free_guidance=False)
        return tokens[None], None
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device="cpu", do_classifier_free_guidance=False)
    return tokens, pooled


def test_prompts_encode_as_in_diffusers(model: FlowModel, pipeline: Any) -> None:
    found = model.encode_prompts(PROMPTS)
    assert len(found) == 3
    for row, prompt in zip(found.rows(), PROMPTS, strict=True):
        tokens, pooled = encoded(pipeline, [prompt])
        read = row.tokens if row.mask is None else row.tokens[:, row.mask[0]]
        torch.testing.assert_close(read, tokens, atol=1e-4, rtol=1e-4)
        if pooled is None:
            assert row.pooled is None
        else:
            assert row.pooled is not None
            torch.testing.assert_close(row.pooled, pooled, atol=1e-5, rtol=1e-4)
    other = model.encode_prompts(["a red hat", "a red cap"]).rows()
    assert not torch.allclose(*(row.tokens for row in other), atol=1e-3)


def test_latents_are_shifted_and_scaled(model: FlowModel, pipeline: Any) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.encode_images(pixels)
    config = pipeline.vae.config
    expected = (pipeline.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    assert tuple(latents.shape[1:]) == model.latent_shape == (16, 8, 8)
    back = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    torch.testing.assert_close(model.decode_latents(latents), back, atol=1e-5, rtol=1e-4)


def test_a_render_is_the_one_of_diffusers(model: FlowModel, pipeline: Any) -> None:
    prompts, seeds = ["1girl, mona", "b"], [7, 8]
    negative = "" if model.guidance_embeds else "red"
    shots = [RenderRequest(prompt, seed, 0.0) for prompt, seed in zip(prompts, seeds, strict=True)]
    pictures = render(model, shots, replace(RENDER, negative_prompt=negative))
    guidance = RENDER.guidance_scale - (model.architecture == "z_image")
    for picture, prompt, seed in zip(pictures, prompts, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        told = {"num_inference_steps": 4, "generator": generator, "guidance_scale": guidance}
        expected = pipeline(prompt, negative_prompt=negative, height=32, width=32, **told).images[0]
        assert np.abs(picture.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    plain = render(model, shots, replace(RENDER, negative_prompt=negative, guidance_scale=1.0))
    assert np.abs(plain.astype(int) - pictures.astype(int)).mean() > 0.01


def test_what_guidance_is_told_changes_flux_and_nothing_else_doubles_its_batch(
    tiny_flows: dict[str, FlowModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = tiny_flows["flux"], []
    predict = model.predict

    def watched(noisy: torch.Tensor, timesteps: torch.Tensor, context: Context) -> torch.Tensor:
        sizes.append((len(noisy), None if context.guidance is None else context.guidance.tolist()))
        return predict(noisy, timesteps, context)

    monkeypatch.setattr(model, "predict", watched)
    render(model, [RenderRequest("a", 0, 0.0)], RENDER)
    assert sizes == [(1, [3.0])] * 4
    context, noisy, steps = model.encode_prompts(["a"]), noisy_of(model, 1), torch.tensor([400.0])
    untold = predict(noisy, steps, context)
    assert torch.equal(untold, predict(noisy, steps, replace(context, guidance=torch.ones(1))))
    assert not torch.allclose(untold, predict(noisy, steps, replace(context, guidance=torch.full((1,), 4.0))))


def test_flux_without_told_guidance_is_guided_by_two_predictions(tmp_path: Path) -> None:
    folder = tiny_flow.save_tiny_flow(tmp_path / "schnell", "flux", shift=1.0, use_dynamic_shifting=False, told=False)
    model = tiny_flow.load_tiny_flow(folder, "flux")
    pipeline = PIPELINE.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = render(model, [RenderRequest("1girl", 7, 0.0)], replace(RENDER, negative_prompt="red"))[0]
    told = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(7), "true_cfg_scale": 3.0}
    expected = pipeline("1girl", negative_prompt="red", height=32, width=32, **told).images[0]
    assert np.abs(picture.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_prompt_does_not_depend_on_what_it_is_stacked_with(model: FlowModel) -> None:
    contexts = [model.encode_prompts([prompt]) for prompt in ("a", "a much longer prompt, of many words")]
    noisy, steps = noisy_of(model, 2), torch.tensor([100.0, 600.0])
    together = model.predict(noisy, steps, stack_contexts(contexts))
    alone = [model.predict(noisy[i : i + 1], steps[i : i + 1], contexts[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_pictures_of_other_frames_are_predicted(model: FlowModel) -> None:
    noisy = torch.randn(1, 16, 12, 6, generator=torch.Generator().manual_seed(0))
    assert model.predict(noisy, torch.tensor([500.0]), model.encode_prompts(["a"])).shape == noisy.shape


def test_pictures_that_are_not_of_whole_tokens_are_refused(model: FlowModel) -> None:
    noisy = torch.zeros(1, 16, 8, 7)
    with pytest.raises(
        ConfigError, match=r"a bucket of 28x32 px: dataset\.buckets\.bucket_reso_steps must be a multiple of 8"
    ):
        model.predict(noisy, torch.tensor([500.0]), model.encode_prompts(["a"]))


def test_trials_that_train_at_once_do_not_mix(model: FlowModel) -> None:
    """Queries of prompt and picture are joined in attention, not in the batch."""
    spec, noisy, steps = LoRA(dim=4, alpha=2), noisy_of(model, 4), torch.tensor([100.0, 300.0, 600.0, 900.0])
    prompts = ["a", "a longer prompt", "b", ""]
    found = []
    for slots in (1, 2):
        made = attach(model.modules, spec, slots=slots)
        try:
            for slot in range(slots):
                made.start(slot, spec, torch.Generator().manual_seed(0))
                with torch.no_grad():
                    for i, parameter in enumerate(made.parameters(slot)):
                        source = torch.Generator().manual_seed(i + 1000 * (slot + 2 - slots))
                        parameter.add_(torch.randn(parameter.shape, generator=source) * 0.2)
            parts = [slice(2, 4)] if slots == 1 else [slice(0, 4)]
            found += [model.predict(noisy[p], steps[p], model.encode_prompts(prompts[p])) for p in parts]
        finally:
            made.detach()
    alone, together = found
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[:2], model.predict(noisy[:2], steps[:2], model.encode_prompts(prompts[:2])))


def test_noise_and_target_are_the_schedulers(model: FlowModel) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(5, *model.latent_shape, generator=generator) for _ in range(2))
    timesteps = model.sample_timesteps(5, model.latent_shape, generator)
    scheduler = SCHEDULER()
    scheduler.set_timesteps(timesteps=timesteps.tolist(), sigmas=(timesteps / 1000).tolist())
    expected = scheduler.scale_noise(latents, timesteps, noise)
    found = model.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    level = (timesteps / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(found - level * model.target(latents, noise, timesteps), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.snr(timesteps), ((1 - level) / level).square().flatten(), atol=1e-5, rtol=1e-4)


def test_timesteps_are_drawn_where_the_models_own_scheduler_samples(model: FlowModel, pipeline: Any) -> None:
    """The median of a symmetric distribution, one half, comes to lie where the scheduler puts it."""
    shape = (16, 32, 16)
    drawn = model.sample_timesteps(20_001, shape, torch.Generator().manual_seed(0))
    config, mu = pipeline.scheduler.config, None
    if config.use_dynamic_shifting:
        tokens = shape[1] * shape[2] // 4
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    pipeline.scheduler.set_timesteps(sigmas=[0.5], mu=mu)
    assert float(drawn.median()) == pytest.approx(float(pipeline.scheduler.timesteps[0]), rel=0.02)
    assert float(drawn.min()) > 0 and float(drawn.max()) < 1000


def test_timesteps_follow_their_settings(model: FlowModel) -> None:
    path = str(model.source)
    settings = {"timestep_shift": 1.0, "timestep_sampling": "uniform"}
    plain = tiny_flow.load_tiny_flow(Path(path), model.architecture, **settings)
    drawn = plain.sample_timesteps(20_000, plain.latent_shape, torch.Generator().manual_seed(0))
    shares = torch.histc(drawn, 10, 0, 1000) / len(drawn)
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)
    normal = tiny_flow.load_tiny_flow(Path(path), model.architecture, timestep_shift=1.0)
    drawn = normal.sample_timesteps(20_000, plain.latent_shape, torch.Generator().manual_seed(0)) / 1000
    assert float(drawn.logit().std()) == pytest.approx(1, abs=0.02)


def test_weights_of_timesteps_are_those_of_the_noise(model: FlowModel) -> None:
    """Min-SNR is min(snr, gamma) times the squared error of the picture, which is s times that of the flow."""
    level = torch.tensor([0.05, 0.2, 0.5, 0.9])
    found = timestep_weights(model, level * 1000, TrainSettings(min_snr_gamma=5.0))
    snr = ((1 - level) / level).square()
    torch.testing.assert_close(found, snr.clamp(max=5) * level.square(), atol=1e-6, rtol=1e-4)
    debiased = timestep_weights(model, level * 1000, TrainSettings(min_snr_gamma=None, debiased_estimation_loss=True))
    torch.testing.assert_close(debiased, level * (1 - level), atol=1e-6, rtol=1e-4)


def test_the_loaded_lora_predicts_as_the_trained_one(
    model: FlowModel, pipeline: Any, adapter: AdapterSet, tmp_path: Path
) -> None:
    state = adapter.state(0)
    path = export_lora(
        state,
        run(spec_of(model)),
        dataset(),
        model,
        tmp_path,
        "a",
        facts=ExportFacts("a", 1.0, "b", 4),
        dtype=torch.float32,
    ).path
    before = pipeline_flow(pipeline, model)
    pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    theirs = pipeline_flow(pipeline, model)
    ours = model.predict(noisy_of(model, 1), torch.tensor([600.0]), model.encode_prompts(["1girl"]))
    assert not torch.allclose(before, theirs, atol=1e-3)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def pipeline_flow(pipeline: Any, model: FlowModel) -> torch.Tensor:
    """One step of a pipeline from noise of one size, as the flow that it follows there."""
    flows: list[torch.Tensor] = []

    class Watched(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, flow: torch.Tensor, *args: Any, **more: Any) -> Any:
            flows.append(flow)
            return super().step(flow, *args, **more)

    own = pipeline.scheduler
    pipeline.scheduler = Watched()
    packed = noisy_of(model, 1)
    if model.architecture == "flux":
        packed = pipeline._pack_latents(packed, 1, 16, 8, 8)
    told = {"guidance_scale": 0.0 if model.architecture == "z_image" else 1.0, "sigmas": [0.6]}
    pipeline("1girl", latents=packed, height=32, width=32, num_inference_steps=1, output_type="latent", **told)
    pipeline.scheduler = own
    flow = flows[0]
    return pipeline._unpack_latents(flow, 32, 32, 4) if model.architecture == "flux" else flow


def test_parts_are_frozen(model: FlowModel) -> None:
    encoders = {"sd3": {"text_encoder", "text_encoder_2"}, "flux": {"text_encoder"}, "z_image": set()}
    assert set(model.modules) == {"transformer", *encoders[model.architecture]}
    for part in (*model.modules.values(), *model.text_encoders.values(), model.vae):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


def test_tokens_are_the_prompts_own(model: FlowModel) -> None:
    assert "".join(model.tokens("ab c")).replace("\u2581", "\u0120").lstrip("\u0120") == "ab\u0120c"
    rooms = {"sd3": 255, "flux": 511, "z_image": 493}
    assert model.window_tokens == model.max_prompt_tokens == rooms[model.architecture]


def test_a_text_encoder_that_no_file_holds_is_not_adapted(tiny_flows: dict[str, FlowModel]) -> None:
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


def test_a_negative_prompt_that_nothing_reads_is_refused(tiny_flows: dict[str, FlowModel]) -> None:
    with pytest.raises(ConfigError, match=r"model\.render\.negative"):
        tiny_flow.load_tiny_flow(
            Path(str(tiny_flows["flux"].source)), "flux", render=replace(RENDER, negative_prompt="red")
        )


def test_a_wrong_choice_is_refused_with_what_was_found(model: FlowModel, tiny_model: StableDiffusion) -> None:
    with pytest.raises(ModelError, match=rf"set model\.family={model.architecture}; expected a Stable Diffusion 1\.x"):
        load_model(ModelSettings(path=str(model.source)))
    with pytest.raises(ModelError, match=r"set model\.family=sd1; expected a .* diffusers folder \(model_index\.json"):
        load_model(ModelSettings(family=model.architecture, path=str(tiny_model.source)))


def test_what_a_folder_lacks_is_named(model: FlowModel, tmp_path: Path) -> None:
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


def test_another_vae_takes_the_place_of_its_own(model: FlowModel, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        other = tiny_flow.tiny_vae()
    other.save_pretrained(tmp_path / "vae")
    found = tiny_flow.load_tiny_flow(Path(str(model.source)), model.architecture, vae=str(tmp_path / "vae"))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = (other.encode(pixels).latent_dist.mean - 0.1) * 0.5
    torch.testing.assert_close(found.encode_images(pixels), expected, atol=1e-5, rtol=1e-4)
    assert found.base_hash != model.base_hash
    file = next((tmp_path / "vae").glob("*.safetensors"))
    with pytest.raises(ModelError, match=rf"for model\.family={model.architecture} give a diffusers VAE folder"):
        tiny_flow.load_tiny_flow(Path(str(model.source)), model.architecture, vae=str(file))
