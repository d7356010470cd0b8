"""The flow-matching families compared with diffusers' own pipelines, from prompts to an exported LoRA."""

from __future__ import annotations

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
from autolora.errors import ConfigError
from autolora.export.metadata import ExportFacts
from autolora.export.write import export_lora
from autolora.models.base import Context, stack_contexts
from autolora.models.flow import FlowModel
from autolora.models.settings import RenderSettings
from autolora.sampling import RenderRequest, render
from autolora.train.loss import timestep_weights
from autolora.train.run import TrainSettings
from tests import tiny_flow
from tests.adapters.test_contract import move
from tests.export.world import dataset, run

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PIPELINE: Any = DiffusionPipeline
SCHEDULER: Any = FlowMatchEulerDiscreteScheduler
PROMPTS = ["1girl, Mona", "", "mona_(\u00e9), " * 7]
RENDER = RenderSettings(num_inference_steps=4, guidance_scale=3.0, scheduler="euler")


@pytest.fixture(params=tiny_flow.FAMILIES)
def model(request: pytest.FixtureRequest, tiny_flows: dict[str, FlowModel]) -> FlowModel:
    return tiny_flows[request.param]


@pytest.fixture
def pipeline(model: FlowModel) -> Any:
    pipeline = PIPELINE.from_pretrained(model.source, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def adapter(model: FlowModel) -> Iterator[AdapterSet]:
    spec = spec_of(model)
    adapter_set = attach(model.modules, spec)
    adapter_set.start(0, spec, torch.Generator().manual_seed(0))
    move(adapter_set, size=0.05)
    yield adapter_set
    adapter_set.detach()


def spec_of(model: FlowModel) -> LoRA:
    return LoRA(dim=4, alpha=2, text_encoder=len(model.modules) > 1)


def noisy_of(model: FlowModel, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(3))


def encoded(pipeline: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Encode prompts with a family's pipeline."""
    if type(pipeline).__name__.startswith("Flux"):
        tokens, pooled, _ = pipeline.encode_prompt(prompts, device="cpu")
        return tokens, pooled
    if type(pipeline).__name__.startswith("ZImage"):
        (tokens,), _ = pipeline.encode_prompt(prompts, "cpu", do_classifier_free_guidance=False)
        return tokens[None], None
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device="cpu", do_classifier_free_guidance=False)
    return tokens, pooled


def test_prompts_encode_as_in_diffusers(model: FlowModel, pipeline: Any) -> None:
    contexts = model.encode_prompts(PROMPTS)
    assert len(contexts) == 3
    for row, prompt in zip(contexts.rows(), PROMPTS, strict=True):
        tokens, pooled = encoded(pipeline, [prompt])
        row_tokens = row.tokens if row.mask is None else row.tokens[:, row.mask[0]]
        torch.testing.assert_close(row_tokens, tokens, atol=1e-4, rtol=1e-4)
        if pooled is None:
            assert row.pooled is None
        else:
            assert row.pooled is not None
            torch.testing.assert_close(row.pooled, pooled, atol=1e-5, rtol=1e-4)
    rows = model.encode_prompts(["a red hat", "a red cap"]).rows()
    assert not torch.allclose(*(row.tokens for row in rows), atol=1e-3)


def test_latents_are_shifted_and_scaled(model: FlowModel, pipeline: Any) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.encode_images(pixels)
    config = pipeline.vae.config
    expected = (pipeline.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    assert tuple(latents.shape[1:]) == model.latent_shape == (16, 8, 8)
    back = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    torch.testing.assert_close(model.decode_latents(latents), back, atol=1e-5, rtol=1e-4)


def test_a_render_equals_diffusers(model: FlowModel, pipeline: Any) -> None:
    prompts, seeds = ["1girl, mona", "b"], [7, 8]
    negative = "" if model.guidance_embeds else "red"
    requests = [RenderRequest(prompt, seed, 0.0) for prompt, seed in zip(prompts, seeds, strict=True)]
    images = render(model, requests, replace(RENDER, negative_prompt=negative))
    guidance = RENDER.guidance_scale - (model.architecture == "z_image")
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": 4, "generator": generator, "guidance_scale": guidance}
        expected = pipeline(prompt, negative_prompt=negative, height=32, width=32, **options).images[0]
        assert np.abs(image.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    plain = render(model, requests, replace(RENDER, negative_prompt=negative, guidance_scale=1.0))
    assert np.abs(plain.astype(int) - images.astype(int)).mean() > 0.01


def test_flux_takes_the_guidance_scale_as_an_input_and_needs_no_second_prediction(
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
    without = predict(noisy, steps, context)
    assert torch.equal(without, predict(noisy, steps, replace(context, guidance=torch.ones(1))))
    assert not torch.allclose(without, predict(noisy, steps, replace(context, guidance=torch.full((1,), 4.0))))


def test_flux_without_guidance_input_is_guided_by_two_predictions(tmp_path: Path) -> None:
    folder = tiny_flow.save_tiny_flow(
        tmp_path / "schnell", "flux", shift=1.0, use_dynamic_shifting=False, guidance_embeds=False
    )
    model = tiny_flow.load_tiny_flow(folder, "flux")
    pipeline = PIPELINE.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = render(model, [RenderRequest("1girl", 7, 0.0)], replace(RENDER, negative_prompt="red"))[0]
    options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(7), "true_cfg_scale": 3.0}
    expected = pipeline("1girl", negative_prompt="red", height=32, width=32, **options).images[0]
    assert np.abs(image.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_prompt_does_not_depend_on_the_prompts_that_it_is_stacked_with(model: FlowModel) -> None:
    contexts = [model.encode_prompts([prompt]) for prompt in ("a", "a much longer prompt, of many words")]
    noisy, steps = noisy_of(model, 2), torch.tensor([100.0, 600.0])
    together = model.predict(noisy, steps, stack_contexts(contexts))
    alone = [model.predict(noisy[i : i + 1], steps[i : i + 1], contexts[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_latents_of_other_buckets_are_predicted(model: FlowModel) -> None:
    noisy = torch.randn(1, 16, 12, 6, generator=torch.Generator().manual_seed(0))
    assert model.predict(noisy, torch.tensor([500.0]), model.encode_prompts(["a"])).shape == noisy.shape


def test_latents_that_cannot_be_divided_into_tokens_are_refused(model: FlowModel) -> None:
    noisy = torch.zeros(1, 16, 8, 7)
    with pytest.raises(
        ConfigError, match=r"a bucket of 28x32 px: dataset\.buckets\.bucket_reso_steps must be a multiple of 8"
    ):
        model.predict(noisy, torch.tensor([500.0]), model.encode_prompts(["a"]))


def test_trials_in_one_batch_do_not_influence_each_other(model: FlowModel) -> None:
    """Attention joins the tokens of prompt and image, but not those of different images."""
    spec, noisy, steps = LoRA(dim=4, alpha=2), noisy_of(model, 4), torch.tensor([100.0, 300.0, 600.0, 900.0])
    prompts = ["a", "a longer prompt", "b", ""]
    predictions = []
    for slots in (1, 2):
        adapter = attach(model.modules, spec, slots=slots)
        try:
            for slot in range(slots):
                adapter.start(slot, spec, torch.Generator().manual_seed(0))
                with torch.no_grad():
                    for i, parameter in enumerate(adapter.parameters(slot)):
                        source = torch.Generator().manual_seed(i + 1000 * (slot + 2 - slots))
                        parameter.add_(torch.randn(parameter.shape, generator=source) * 0.2)
            parts = [slice(2, 4)] if slots == 1 else [slice(0, 4)]
            predictions += [model.predict(noisy[p], steps[p], model.encode_prompts(prompts[p])) for p in parts]
        finally:
            adapter.detach()
    alone, together = predictions
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[:2], model.predict(noisy[:2], steps[:2], model.encode_prompts(prompts[:2])))


def test_noise_and_target_equal_the_schedulers(model: FlowModel) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(5, *model.latent_shape, generator=generator) for _ in range(2))
    timesteps = model.sample_timesteps(5, model.latent_shape, generator)
    scheduler = SCHEDULER()
    scheduler.set_timesteps(timesteps=timesteps.tolist(), sigmas=(timesteps / 1000).tolist())
    expected = scheduler.scale_noise(latents, timesteps, noise)
    noised = model.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noised, expected, atol=1e-5, rtol=1e-5)
    level = (timesteps / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(noised - level * model.target(latents, noise, timesteps), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.snr(timesteps), ((1 - level) / level).square().flatten(), atol=1e-5, rtol=1e-4)


def test_timesteps_are_shifted_as_by_the_models_scheduler(model: FlowModel, pipeline: Any) -> None:
    """The median of the symmetric distribution, one half, is shifted to where the scheduler puts it."""
    shape = (16, 32, 16)
    timesteps = model.sample_timesteps(20_001, shape, torch.Generator().manual_seed(0))
    config, mu = pipeline.scheduler.config, None
    if config.use_dynamic_shifting:
        tokens = shape[1] * shape[2] // 4
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    pipeline.scheduler.set_timesteps(sigmas=[0.5], mu=mu)
    assert float(timesteps.median()) == pytest.approx(float(pipeline.scheduler.timesteps[0]), rel=0.02)
    assert float(timesteps.min()) > 0 and float(timesteps.max()) < 1000


def test_timestep_settings_are_applied(model: FlowModel) -> None:
    path = str(model.source)
    settings = {"timestep_shift": 1.0, "timestep_sampling": "uniform"}
    plain = tiny_flow.load_tiny_flow(Path(path), model.architecture, **settings)
    timesteps = plain.sample_timesteps(20_000, plain.latent_shape, torch.Generator().manual_seed(0))
    shares = torch.histc(timesteps, 10, 0, 1000) / len(timesteps)
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)
    normal = tiny_flow.load_tiny_flow(Path(path), model.architecture, timestep_shift=1.0)
    timesteps = normal.sample_timesteps(20_000, plain.latent_shape, torch.Generator().manual_seed(0)) / 1000
    assert float(timesteps.logit().std()) == pytest.approx(1, abs=0.02)


def test_timestep_weights_follow_from_the_noise_level(model: FlowModel) -> None:
    """Min-SNR is min(snr, gamma) times the squared error of the image, which is s squared times that of the flow."""
    level = torch.tensor([0.05, 0.2, 0.5, 0.9])
    weights = timestep_weights(model, level * 1000, TrainSettings(min_snr_gamma=5.0))
    snr = ((1 - level) / level).square()
    torch.testing.assert_close(weights, snr.clamp(max=5) * level.square(), atol=1e-6, rtol=1e-4)
    debiased = timestep_weights(model, level * 1000, TrainSettings(min_snr_gamma=None, debiased_estimation_loss=True))
    torch.testing.assert_close(debiased, level * (1 - level), atol=1e-6, rtol=1e-4)


def test_the_exported_lora_predicts_the_same_in_diffusers(
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
    """Return the flow that a pipeline predicts in one step."""
    flows: list[torch.Tensor] = []

    class Watched(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, flow: torch.Tensor, *args: Any, **more: Any) -> Any:
            flows.append(flow)
            return super().step(flow, *args, **more)

    scheduler = pipeline.scheduler
    pipeline.scheduler = Watched()
    packed = noisy_of(model, 1)
    if model.architecture == "flux":
        packed = pipeline._pack_latents(packed, 1, 16, 8, 8)
    options = {"guidance_scale": 0.0 if model.architecture == "z_image" else 1.0, "sigmas": [0.6]}
    pipeline("1girl", latents=packed, height=32, width=32, num_inference_steps=1, output_type="latent", **options)
    pipeline.scheduler = scheduler
    flow = flows[0]
    return pipeline._unpack_latents(flow, 32, 32, 4) if model.architecture == "flux" else flow


def test_tokens_exclude_special_tokens(model: FlowModel) -> None:
    assert "".join(model.tokens("ab c")).replace("\u2581", "\u0120").lstrip("\u0120") == "ab\u0120c"
    limits = {"sd3": 255, "flux": 511, "z_image": 493}
    assert model.window_tokens == model.max_prompt_tokens == limits[model.architecture]
