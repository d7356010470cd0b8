"""Rendering: against diffusers' pipeline, in any batch, at any LoRA weight; and the cache of base renders."""

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

PIPELINE: Any = StableDiffusionPipeline
EULER: Any = EulerDiscreteScheduler
DPM: Any = DPMSolverMultistepScheduler
SCHEDULERS = {
    "ddim": DDIMScheduler.from_config,
    "euler": EULER.from_config,
    "dpmpp_2m": lambda config: DPM.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=True),
}
SETTINGS = RenderSettings(num_inference_steps=4, guidance_scale=3.0, batch_size=4)
SHOTS = [
    RenderRequest(p, s, w)
    for s, (p, w) in enumerate([("1girl", 0.0), ("mona", 1.0), ("mona", 0.7), ("x y", 1.0), ("", 0.0)])
]


def apart(one: Images, other: Images) -> int:
    """The largest difference, in levels of 256."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def fill(adapter: AdapterSet, strength: float = 0.3) -> AdapterSet:
    """A LoRA that changes pictures visibly."""
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
def test_a_render_is_the_one_of_diffusers(
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
    pictures = render(
        tiny.load_tiny(folder, family), [RenderRequest("1girl, mona", 7, 0.0), RenderRequest("b", 8, 0.0)], settings
    )
    pipeline = PIPELINE.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler](pipeline.scheduler.config)
    for picture, prompt, seed in zip(pictures, ["1girl, mona", "b"], [7, 8], strict=True):
        expected = pipeline(
            prompt,
            negative_prompt="red",
            num_inference_steps=5,
            guidance_scale=guidance,
            guidance_rescale=rescale,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert apart(picture, np.asarray(expected)) <= 1
        assert np.mean(picture != np.asarray(expected)) < 0.02
    assert apart(pictures[:1], pictures[1:]) > 20


def test_the_packaged_schedule_starts_from_pure_noise(tiny_model: StableDiffusion) -> None:
    sampler = tiny_model.sampler()
    sampler.set_timesteps(12)
    assert int(sampler.timesteps[0]) == tiny_model.train_timesteps - 1
    assert float(sampler.alphas_cumprod[-1]) == 0
    assert float(sampler.final_alpha_cumprod) == 1


def test_a_picture_does_not_depend_on_its_batch(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    together = render(tiny_model, SHOTS, SETTINGS, adapter)
    alone = np.concatenate([render(tiny_model, [shot], SETTINGS, adapter) for shot in SHOTS])
    backwards = render(tiny_model, SHOTS[::-1], dataclasses.replace(SETTINGS, batch_size=3), adapter)[::-1]
    assert apart(together, alone) <= 1
    assert apart(together, backwards) <= 1


def test_weight_zero_is_the_base_in_any_company(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    shots = [dataclasses.replace(shot, weight=0.0) for shot in SHOTS]
    among = render(tiny_model, SHOTS, SETTINGS, adapter)
    switched_off = render(tiny_model, shots, SETTINGS, adapter)
    adapter.detach()
    bare = render(tiny_model, shots, SETTINGS)
    assert apart(switched_off, bare) <= 1
    base = [i for i, shot in enumerate(SHOTS) if shot.weight == 0]
    changed = [i for i, shot in enumerate(SHOTS) if shot.weight != 0]
    assert apart(among[base], bare[base]) <= 1
    assert min(apart(among[i], bare[i]) for i in changed) > 20


def test_a_weight_scales_the_update(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    weighted = render(tiny_model, [RenderRequest("mona", 3, 0.4), RenderRequest("mona", 3, 1.0)], SETTINGS, adapter)
    with torch.no_grad():
        for layer in adapter.deltas:
            layer.up.mul_(0.4)
    scaled = render(tiny_model, [RenderRequest("mona", 3, 1.0)], SETTINGS, adapter)
    assert apart(weighted[:1], scaled) <= 1
    assert apart(weighted[1:], scaled) > 5


def test_an_adapter_is_in_unet_and_text_encoder_as_if_loaded(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
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
    beside = RenderRequest("mona", 3, 0.0)  # encoded under its own weight
    assert (
        apart(render(tiny_model, [RenderRequest("mona", 3, 1.0), beside], SETTINGS, adapter)[0], np.asarray(expected))
        <= 1
    )


def test_the_adapter_is_left_at_its_own_weight(
    tiny_model: StableDiffusion, adapter: AdapterSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, steps = Context(torch.zeros(2, tiny.TOKENS, tiny.WIDTH)), torch.full((2,), 500)
    noisy = torch.ones(2, *tiny_model.latent_shape)
    with torch.no_grad():
        before = tiny_model.predict(noisy, steps, context)
        render(tiny_model, SHOTS, SETTINGS, adapter)
        assert torch.equal(tiny_model.predict(noisy, steps, context), before)
        with monkeypatch.context() as patch:
            patch.setattr(tiny_model, "sampler", interrupt)
            with pytest.raises(KeyboardInterrupt):
                render(tiny_model, SHOTS, SETTINGS, adapter)
        assert torch.equal(tiny_model.predict(noisy, steps, context), before)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_rendering_reports_progress_and_takes_nothing(tiny_model: StableDiffusion) -> None:
    done: list[int] = []
    shots = [RenderRequest("a", seed, 0.0) for seed in range(5)]
    assert render(tiny_model, shots, SETTINGS, advance=done.append).dtype == np.uint8
    assert done == [4, 1]
    assert render(tiny_model, [], SETTINGS).shape == (0, 32, 32, 3)


def test_silently_wrong_calls_are_refused(tiny_model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="need an adapter"):
        render(tiny_model, [RenderRequest("a", 0, 1.0)], SETTINGS)
    for slots, given, message in ((1, False, "an adapter is attached"), (2, True, "one slot, got 2")):
        attached = attach(tiny_model.modules, LoRA(dim=2), slots=slots)
        try:
            with pytest.raises(ValueError, match=message):
                render(tiny_model, [RenderRequest("a", 0, 0.0)], SETTINGS, attached if given else None)
        finally:
            attached.detach()


def test_render_settings_name_every_mistake() -> None:
    with pytest.raises(
        ConfigError, match=r"num_inference_steps must be .* got 0; .*guidance_scale .* got 0\.5; .*batch_size .* got 0"
    ):
        RenderSettings(num_inference_steps=0, guidance_scale=0.5, batch_size=0)
    with pytest.raises(ConfigError, match=r"search_inference_steps must be at least 1 or null, got 0"):
        RenderSettings(search_inference_steps=0)
    with pytest.raises(ConfigError, match=r"size must be at least 1 pixel or null, got 0"):
        RenderSettings(size=0)


def test_a_search_takes_its_own_steps_but_never_more_than_the_real_ones() -> None:
    assert RenderSettings(
        num_inference_steps=12, search_inference_steps=8, guidance_scale=3.0
    ).search == RenderSettings(8, 8, guidance_scale=3.0)
    assert RenderSettings(num_inference_steps=6, search_inference_steps=8).search.num_inference_steps == 6
    assert RenderSettings(num_inference_steps=6).search.num_inference_steps == 6


def test_probes_may_be_smaller_than_what_is_trained_on(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    half = tiny_model.resolution // 2
    small = dataclasses.replace(SETTINGS, size=half)
    assert render(tiny_model, SHOTS[:1], dataclasses.replace(small, guidance_scale=1.0)).shape == (1, half, half, 3)
    first = BaseRenders(tiny_model, small, tmp_path).render([("1girl", 0)])
    assert BaseRenders(tiny_model, SETTINGS, tmp_path).render([("1girl", 0)]).shape[1] == tiny_model.resolution
    assert apart(BaseRenders(tiny_model, small, tmp_path).render([("1girl", 0)]), first) == 0  # its own file, read back
    larger = dataclasses.replace(SETTINGS, size=2 * tiny_model.resolution)
    assert larger.side(tiny_model.resolution) == tiny_model.resolution


def test_base_renders_are_read_back(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [("a", 1), ("b", 2), ("a", 1)]
    done: list[int] = []
    first = BaseRenders(tiny_model, SETTINGS, tmp_path).render(wanted, done.append)
    assert sum(done) == 3
    assert apart(first, render(tiny_model, [RenderRequest(p, s, 0.0) for p, s in wanted], SETTINGS)) <= 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png", ".png"]  # no temporary files
    monkeypatch.setattr(tiny_model, "predict", interrupt)
    assert np.array_equal(BaseRenders(tiny_model, SETTINGS, tmp_path).render(wanted, done.append), first)
    assert sum(done) == 6


def test_the_cache_key_holds_what_decides_a_picture(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    def place(settings: RenderSettings, prompt: str = "a", seed: int = 1) -> Path:
        return BaseRenders(tiny_model, settings, tmp_path).path(prompt, seed)

    changes: list[dict[str, Any]] = [{"num_inference_steps": 5}, {"guidance_scale": 2.0}, {"negative_prompt": "b"}]
    changes += [{"prompt_prefix": "b"}, {"scheduler": "euler"}, {"guidance_rescale": 0.5}]
    other = [dataclasses.replace(SETTINGS, **change) for change in changes]
    assert place(SETTINGS) == place(dataclasses.replace(SETTINGS, batch_size=9))
    assert len({place(SETTINGS), place(SETTINGS, "b"), place(SETTINGS, seed=2), *map(place, other)}) == 9


def test_the_cache_key_holds_how_the_model_is_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    models = [tiny.load_tiny(tiny_model_dir, **own) for own in ({}, {"dtype": "bfloat16"}, {"clip_skip": 2})]
    assert len({BaseRenders(model, SETTINGS, tmp_path).path("a", 1) for model in models}) == 3


def test_the_cache_key_is_the_same_in_every_process(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = BaseRenders(tiny_model, SETTINGS, tmp_path).path("a", 1)
    sampler = tiny_model.sampler()
    changed = {**sampler.config, "_use_default_values": ["any", "order"], "_diffusers_version": "9"}
    monkeypatch.setattr(type(sampler), "config", changed)
    monkeypatch.setattr(tiny_model, "sampler", lambda *_: sampler)
    assert BaseRenders(tiny_model, SETTINGS, tmp_path).path("a", 1) == key


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_broken_cache_file_is_rendered_again(
    content: bytes | str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    renders = BaseRenders(tiny_model, SETTINGS, tmp_path)
    good, path = renders.render([("a", 1)]), renders.path("a", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert np.array_equal(BaseRenders(tiny_model, SETTINGS, tmp_path).render([("a", 1)]), good)
    assert path.read_bytes() == whole


def test_finished_batches_outlive_an_interrupt(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wanted = [("a", seed) for seed in range(6)]
    with pytest.raises(KeyboardInterrupt):
        BaseRenders(tiny_model, SETTINGS, tmp_path).render(wanted, stop_at_once_after_the_second)
    assert len(list(tmp_path.glob("*.png"))) == 4


def stop_at_once_after_the_second(ready: int) -> None:
    if ready == 2:
        raise KeyboardInterrupt


def test_base_renders_switch_an_attached_adapter_off(
    tiny_model: StableDiffusion, adapter: AdapterSet, tmp_path: Path
) -> None:
    wanted = [("mona", 1)]
    with pytest.raises(ValueError, match="an adapter is attached"):
        BaseRenders(tiny_model, SETTINGS, tmp_path / "refused").render(wanted)
    worn = BaseRenders(tiny_model, SETTINGS, tmp_path / "worn").render(wanted, adapter=adapter)
    adapter.detach()
    assert apart(worn, BaseRenders(tiny_model, SETTINGS, tmp_path / "bare").render(wanted)) <= 1


def test_fewer_pictures_at_once_where_memory_is_full(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = [RenderRequest("1girl", seed, 0.0) for seed in range(7)]
    settings = RenderSettings(num_inference_steps=2, batch_size=6)
    sizes: list[int] = []
    told: list[int] = []
    plain, own = render(tiny_model, shots, settings), tiny_model.predict

    def small(noisy: Tensor, timesteps: Tensor, context: Context, room: int = 4) -> Tensor:
        if len(noisy) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(noisy))
        return own(noisy, timesteps, context)

    monkeypatch.setattr(tiny_model, "predict", small)
    found = render(tiny_model, shots, settings, advance=told.append)
    assert np.abs(found.astype(int) - plain).max() <= 1  # rounding
    assert max(sizes) == 4 and told == [2, 2, 2, 1]
    monkeypatch.setattr(tiny_model, "predict", partial(small, room=1))
    with pytest.raises(torch.OutOfMemoryError):
        render(tiny_model, shots, settings)
