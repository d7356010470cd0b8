"""Rendering compared with diffusers' pipeline, in any batch and at any LoRA weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from torch import Tensor

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.kinds import LoRA
from autolora.errors import ConfigError
from autolora.models.base import Context
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.sampling import BaseRenders, Images, RenderRequest, render
from tests import tiny

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PIPELINE: Any = StableDiffusionPipeline
EULER: Any = EulerDiscreteScheduler
DPM: Any = DPMSolverMultistepScheduler
SCHEDULERS = {
    "ddim": DDIMScheduler.from_config,
    "euler": EULER.from_config,
    "dpmpp_2m": lambda config: DPM.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=True),
}
SETTINGS = RenderSettings(num_inference_steps=4, guidance_scale=3.0, batch_size=4)
REQUESTS = [
    RenderRequest(p, s, w)
    for s, (p, w) in enumerate([("1girl", 0.0), ("mona", 1.0), ("mona", 0.7), ("x y", 1.0), ("", 0.0)])
]


def difference(first: Images, second: Images) -> int:
    """Return the largest difference of two images in levels of 256."""
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second.astype(int)).max())


def fill(adapter: AdapterSet, strength: float = 0.3) -> AdapterSet:
    """Fill an adapter with weights that change images visibly."""
    spec = LoRA(dim=2, alpha=2.0, text_encoder=adapter.touches_text_encoder)
    generator = torch.Generator().manual_seed(0)
    adapter.start(0, spec, generator)
    with torch.no_grad():
        for layer in adapter.deltas:
            layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * strength)
    return adapter


@pytest.fixture(params=[False, True], ids=["unet", "unet+text"])
def adapter(request: pytest.FixtureRequest, tiny_model: StableDiffusion) -> Iterator[AdapterSet]:
    attached = attach(tiny_model.modules, LoRA(dim=2, alpha=2.0, text_encoder=request.param))
    yield fill(attached)
    attached.detach()


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize(
    ("family", "guidance", "rescale", "sampler"),
    [
        ("sd1", 1.0, 0.0, "ddim"),
        ("sd1", 3.0, 0.0, "ddim"),
        ("sd1", 6.0, 0.7, "ddim"),
        ("sd1", 3.0, 0.0, "euler"),
        ("sd1", 3.0, 0.0, "dpmpp_2m"),
        ("sd2", 3.0, 0.0, "ddim"),
    ],
)
def test_a_render_equals_diffusers(
    prediction: str, family: str, guidance: float, rescale: float, sampler: str, tmp_path: Path
) -> None:
    folder = tiny.save_tiny(tmp_path / "model", prediction, family=family)
    settings = RenderSettings(
        num_inference_steps=5,
        guidance_scale=guidance,
        negative_prompt="red",
        guidance_rescale=rescale,
        scheduler=sampler,
    )
    images = render(
        tiny.load_tiny(folder, family), [RenderRequest("1girl, mona", 7, 0.0), RenderRequest("b", 8, 0.0)], settings
    )
    pipeline = PIPELINE.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler](pipeline.scheduler.config)
    for image, prompt, seed in zip(images, ["1girl, mona", "b"], [7, 8], strict=True):
        expected = pipeline(
            prompt,
            negative_prompt="red",
            num_inference_steps=5,
            guidance_scale=guidance,
            guidance_rescale=rescale,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert difference(image, np.asarray(expected)) <= 1
        assert np.mean(image != np.asarray(expected)) < 0.02
    assert difference(images[:1], images[1:]) > 20


def test_the_packaged_schedule_starts_from_pure_noise(tiny_model: StableDiffusion) -> None:
    sampler = tiny_model.sampler()
    sampler.set_timesteps(12)
    assert int(sampler.timesteps[0]) == tiny_model.train_timesteps - 1
    assert float(sampler.alphas_cumprod[-1]) == 0
    assert float(sampler.final_alpha_cumprod) == 1


def test_an_image_does_not_depend_on_its_batch(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    together = render(tiny_model, REQUESTS, SETTINGS, adapter)
    alone = np.concatenate([render(tiny_model, [request], SETTINGS, adapter) for request in REQUESTS])
    backwards = render(tiny_model, REQUESTS[::-1], dataclasses.replace(SETTINGS, batch_size=3), adapter)[::-1]
    assert difference(together, alone) <= 1
    assert difference(together, backwards) <= 1


def test_weight_0_renders_the_base_model_in_any_batch(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    requests = [dataclasses.replace(request, weight=0.0) for request in REQUESTS]
    mixed = render(tiny_model, REQUESTS, SETTINGS, adapter)
    switched_off = render(tiny_model, requests, SETTINGS, adapter)
    adapter.detach()
    bare = render(tiny_model, requests, SETTINGS)
    assert difference(switched_off, bare) <= 1
    base = [i for i, request in enumerate(REQUESTS) if request.weight == 0]
    changed = [i for i, request in enumerate(REQUESTS) if request.weight != 0]
    assert difference(mixed[base], bare[base]) <= 1
    assert min(difference(mixed[i], bare[i]) for i in changed) > 20


def test_the_weight_scales_the_delta(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    weighted = render(tiny_model, [RenderRequest("mona", 3, 0.4), RenderRequest("mona", 3, 1.0)], SETTINGS, adapter)
    with torch.no_grad():
        for layer in adapter.deltas:
            layer.up.mul_(0.4)
    scaled = render(tiny_model, [RenderRequest("mona", 3, 1.0)], SETTINGS, adapter)
    assert difference(weighted[:1], scaled) <= 1
    assert difference(weighted[1:], scaled) > 5


def test_an_attached_adapter_works_in_diffusers_pipeline(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    pipeline = PIPELINE(
        vae=tiny_model.vae,
        text_encoder=tiny_model.text_encoder,
        tokenizer=tiny_model.tokenizer,
        unet=tiny_model.unet,
        scheduler=tiny_model.sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    expected = pipeline("mona", num_inference_steps=4, guidance_scale=3.0, generator=generator).images[0]
    base = RenderRequest("mona", 3, 0.0)  # is encoded at its own weight
    assert (
        difference(
            render(tiny_model, [RenderRequest("mona", 3, 1.0), base], SETTINGS, adapter)[0], np.asarray(expected)
        )
        <= 1
    )


def test_the_adapter_keeps_its_weight_after_rendering(
    tiny_model: StableDiffusion, adapter: AdapterSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, steps = Context(torch.zeros(2, tiny.TOKENS, tiny.WIDTH)), torch.full((2,), 500)
    noisy = torch.ones(2, *tiny_model.latent_shape)
    with torch.no_grad():
        before = tiny_model.predict(noisy, steps, context)
        render(tiny_model, REQUESTS, SETTINGS, adapter)
        assert torch.equal(tiny_model.predict(noisy, steps, context), before)
        with monkeypatch.context() as patch:
            patch.setattr(tiny_model, "sampler", interrupt)
            with pytest.raises(KeyboardInterrupt):
                render(tiny_model, REQUESTS, SETTINGS, adapter)
        assert torch.equal(tiny_model.predict(noisy, steps, context), before)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_rendering_reports_progress_and_accepts_no_requests(tiny_model: StableDiffusion) -> None:
    done: list[int] = []
    requests = [RenderRequest("a", seed, 0.0) for seed in range(5)]
    assert render(tiny_model, requests, SETTINGS, advance=done.append).dtype == np.uint8
    assert done == [4, 1]
    assert render(tiny_model, [], SETTINGS).shape == (0, 32, 32, 3)


def test_calls_that_would_render_something_else_are_refused(tiny_model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="need an adapter"):
        render(tiny_model, [RenderRequest("a", 0, 1.0)], SETTINGS)
    for slots, passed, message in ((1, False, "an adapter is attached"), (2, True, "one slot, got 2")):
        attached = attach(tiny_model.modules, LoRA(dim=2), slots=slots)
        try:
            with pytest.raises(ValueError, match=message):
                render(tiny_model, [RenderRequest("a", 0, 0.0)], SETTINGS, attached if passed else None)
        finally:
            attached.detach()


def test_render_settings_report_every_mistake() -> None:
    with pytest.raises(
        ConfigError, match=r"num_inference_steps must be .* got 0; .*guidance_scale .* got 0\.5; .*batch_size .* got 0"
    ):
        RenderSettings(num_inference_steps=0, guidance_scale=0.5, batch_size=0)
    with pytest.raises(ConfigError, match=r"search_inference_steps must be at least 1 or null, got 0"):
        RenderSettings(search_inference_steps=0)
    with pytest.raises(ConfigError, match=r"size must be at least 1 pixel or null, got 0"):
        RenderSettings(size=0)


def test_the_search_has_its_own_steps_but_never_more_than_the_finals() -> None:
    assert RenderSettings(
        num_inference_steps=12, search_inference_steps=8, guidance_scale=3.0
    ).search == RenderSettings(8, 8, guidance_scale=3.0)
    assert RenderSettings(num_inference_steps=6, search_inference_steps=8).search.num_inference_steps == 6
    assert RenderSettings(num_inference_steps=6).search.num_inference_steps == 6


def test_renders_may_be_smaller_than_training_images(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    half = tiny_model.resolution // 2
    small = dataclasses.replace(SETTINGS, size=half)
    assert render(tiny_model, REQUESTS[:1], dataclasses.replace(small, guidance_scale=1.0)).shape == (1, half, half, 3)
    first = BaseRenders(tiny_model, small, tmp_path).render([("1girl", 0)])
    assert BaseRenders(tiny_model, SETTINGS, tmp_path).render([("1girl", 0)]).shape[1] == tiny_model.resolution
    assert (
        difference(BaseRenders(tiny_model, small, tmp_path).render([("1girl", 0)]), first) == 0
    )  # it has its own file, which is read back
    larger = dataclasses.replace(SETTINGS, size=2 * tiny_model.resolution)
    assert larger.side(tiny_model.resolution) == tiny_model.resolution


def test_batches_are_halved_if_memory_is_full(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [RenderRequest("1girl", seed, 0.0) for seed in range(7)]
    settings = RenderSettings(num_inference_steps=2, batch_size=6)
    sizes: list[int] = []
    progress: list[int] = []
    plain, predict = render(tiny_model, requests, settings), tiny_model.predict

    def small(noisy: Tensor, timesteps: Tensor, context: Context, room: int = 4) -> Tensor:
        if len(noisy) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(noisy))
        return predict(noisy, timesteps, context)

    monkeypatch.setattr(tiny_model, "predict", small)
    images = render(tiny_model, requests, settings, advance=progress.append)
    assert np.abs(images.astype(int) - plain).max() <= 1  # rounding
    assert max(sizes) == 4 and progress == [2, 2, 2, 1]
    monkeypatch.setattr(tiny_model, "predict", partial(small, room=1))
    with pytest.raises(torch.OutOfMemoryError):
        render(tiny_model, requests, settings)
