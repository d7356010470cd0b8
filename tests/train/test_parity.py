"""The loss of a training step equals that of diffusers' components with the same images, noise and timesteps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F

from autolora.data.crops import size_ids
from autolora.errors import ModelError
from autolora.models.flow import FlowModel
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train.batches import Stream
from autolora.train.slot import Job, TrainingSlot
from autolora.train.step import train_step
from tests import tiny, tiny_flow
from tests.train.test_families import RUN, folder, make_context, run_of  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PIPELINE: Any = DiffusionPipeline
DDPM: Any = DDPMScheduler
FLOW: Any = FlowMatchEulerDiscreteScheduler
PLAIN = replace(RUN, train=replace(RUN.train, min_snr_gamma=None, prior_preservation_ratio=0.0, batch_size=3))


@dataclass(frozen=True)
class Kind:
    """A family, what it predicts, and whether its last timestep is pure noise."""

    family: str
    prediction: str
    terminal: bool


KINDS = {
    "sd1": Kind("sd1", "epsilon", False),
    "sd1 v": Kind("sd1", "v_prediction", True),
    "sd2": Kind("sd2", "epsilon", False),
    "sd2 v": Kind("sd2", "v_prediction", False),
    "sdxl": Kind("sdxl", "epsilon", False),
    "sdxl v": Kind("sdxl", "v_prediction", True),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def saved(kind: Kind, path: Path) -> Path:
    if kind.family == "sdxl":
        return tiny.save_tiny_xl(path)
    return tiny.save_tiny(path, "epsilon", family=kind.family)


def load(kind: Kind, path: Path) -> StableDiffusion:
    """Load the model with the kind's settings, although its files say epsilon."""
    return tiny.load_tiny(path, kind.family, prediction_type=kind.prediction, zero_terminal_snr=kind.terminal)


def test_the_loss_equals_that_of_diffusers(kind: Kind, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    path = saved(kind, tmp_path / "model")
    context = make_context(load(kind, path), folder, tmp_path)
    try:
        slot = TrainingSlot(0, Job(PLAIN), context)
        train_step(context, {0: slot})
    finally:
        context.adapter.detach()
    batch = Stream(PLAIN, context.dataset, context.model).next_batch()
    assert len(batch.pictures) > 1

    pipeline = PIPELINE.from_pretrained(path, torch_dtype=torch.float32)
    scheduler = DDPM.from_config(
        pipeline.scheduler.config, prediction_type=kind.prediction, rescale_betas_zero_snr=kind.terminal
    )
    clean = context.latents.latents(batch.pictures, batch.flips)
    noisy = scheduler.add_noise(clean, batch.noise, batch.timesteps)
    prompts, more = list(batch.captions), {}
    if kind.family == "sdxl":
        tokens, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
        sizes = torch.tensor([size_ids(p, f) for p, f in zip(batch.pictures, batch.flips, strict=True)])
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    else:
        tokens = pipeline.encode_prompt(prompts, "cpu", 1, False)[0]
    with torch.no_grad():
        predicted = pipeline.unet(noisy, batch.timesteps, tokens, **more).sample
    velocity = kind.prediction == "v_prediction"
    target = scheduler.get_velocity(clean, batch.noise, batch.timesteps) if velocity else batch.noise
    expected = float(F.mse_loss(predicted, target))
    assert float(slot.losses[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_the_loss_of_flow_matching_equals_that_of_diffusers(
    family: str,
    tiny_flows: dict[str, FlowModel],
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = tiny_flows[family]
    run = replace(run_of(model), train=PLAIN.train)
    context = make_context(model, folder, tmp_path)
    try:
        slot = TrainingSlot(0, Job(run), context)
        train_step(context, {0: slot})
    finally:
        context.adapter.detach()
    batch = Stream(run, context.dataset, model).next_batch()
    assert len(batch.pictures) > 1

    pipeline = PIPELINE.from_pretrained(model.source, torch_dtype=torch.float32)
    clean, times = context.latents.latents(batch.pictures, batch.flips), batch.timesteps
    scheduler = FLOW()
    scheduler.set_timesteps(timesteps=times.tolist(), sigmas=(times / 1000).tolist())
    noisy, prompts = scheduler.scale_noise(clean, times, batch.noise), list(batch.captions)
    with torch.no_grad():
        predicted = predicted_by(pipeline, family, noisy, times, prompts)
    expected = float(F.mse_loss(predicted, batch.noise - clean))
    assert float(slot.losses[0]) == pytest.approx(expected, rel=1e-5)


def predicted_by(pipeline: Any, family: str, noisy: Tensor, times: Tensor, prompts: list[str]) -> Tensor:
    """Return the prediction of a pipeline's transformer, called as the pipeline calls it."""
    more: dict[str, Any] = {"return_dict": False}
    if family == "z_image":
        embeddings, _ = pipeline.encode_prompt(prompts, "cpu", do_classifier_free_guidance=False)
        predicted = pipeline.transformer(list(noisy.unsqueeze(2)), (1000 - times) / 1000, embeddings, **more)[0]
        return -torch.stack(predicted).squeeze(2)
    if family == "sd3":
        tokens, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
        predicted = pipeline.transformer(noisy, tokens, pooled, times, **more)[0]
        return predicted
    tokens, pooled, text_ids = pipeline.encode_prompt(prompts)
    count, channels, height, width = noisy.shape
    packed = pipeline.transformer(
        pipeline._pack_latents(noisy, count, channels, height, width),
        tokens,
        pooled,
        times / 1000,
        pipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32),
        text_ids,
        torch.ones(count),
        **more,
    )[0]
    return pipeline._unpack_latents(packed, 4 * height, 4 * width, 4)


def test_renders_with_zero_terminal_snr_start_at_pure_noise(kind: Kind, tmp_path: Path) -> None:
    model = load(kind, saved(kind, tmp_path / "model"))
    sampler = model.sampler()
    sampler.set_timesteps(4)
    assert (float(model.snr(torch.tensor([model.train_timesteps - 1]))) == 0) == kind.terminal
    assert (int(sampler.timesteps[0]) == model.train_timesteps - 1) == kind.terminal
    assert sampler.config.prediction_type == kind.prediction


def test_noise_cannot_be_predicted_from_pure_noise(tmp_path: Path) -> None:
    path = tiny.save_tiny(tmp_path / "model", "epsilon")
    with pytest.raises(ModelError, match=r"set model\.prediction_type=v_prediction, or model\.zero_terminal_snr=false"):
        tiny.load_tiny(path, zero_terminal_snr=True)
