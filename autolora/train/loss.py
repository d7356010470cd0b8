"""The diffusion loss and the fixed validation grid."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from autolora.adapters.adapter_set import AdapterSet
from autolora.data.concepts import Dataset
from autolora.models.base import BaseModel
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.run import TrainSettings

VALIDATION_TIMESTEPS = 4  # evenly over the noise range
PLAIN = TrainSettings(min_snr_gamma=None)


def diffusion_loss(
    model: BaseModel,
    predicted: Tensor,
    target: Tensor,
    timesteps: Tensor,
    settings: TrainSettings,
    mask: Tensor | None = None,
) -> Tensor:
    """The error per sample, (B,), weighted by its timestep.

    Huber is 2d (sqrt(e^2 + d^2) - d): e^2 where small, 2d |e| where large (Charbonnier et al. 1994; for diffusion
    Khrapov et al. 2024). Min-SNR (Hang et al. 2023) is min(snr, gamma) / snr for noise prediction and
    min(snr, gamma) / (snr + 1) for v-prediction. Debiased (Yu et al. 2024) is 1 / sqrt(snr), snr held to 1000, and
    for v-prediction 1 / (snr + 1), as sd-scripts has it. For flow matching both weigh the error of the noise that it
    means, which is 1 - s times that of the flow; they are off in the settings of such models, as timesteps are drawn
    where they matter instead.
    A mask, (B, 1, h, w) and nowhere negative, weighs the cells; its own size does not change the loss's.
    """
    errors = (predicted.float() - target.float()).square()
    if settings.loss_type == "huber":
        delta = settings.huber_delta
        errors = 2 * delta * ((errors + delta**2).sqrt() - delta)
    if mask is not None:
        errors = errors * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return errors.mean(dim=(1, 2, 3)) * timestep_weights(model, timesteps, settings)


def timestep_weights(model: BaseModel, timesteps: Tensor, settings: TrainSettings) -> Tensor:
    """(B,) what a sample's error counts at its timestep."""
    if not settings.debiased_estimation_loss and settings.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr, velocity = model.snr(timesteps), model.prediction_type == "v_prediction"
    if settings.debiased_estimation_loss:
        held = snr.clamp(1e-8, 1000)
        weights = 1 / (held + 1) if velocity else held.rsqrt()
    else:
        divisor = snr + 1 if velocity else snr.clamp(min=1e-8)
        weights = snr.clamp(max=settings.min_snr_gamma) / divisor
    if model.prediction_type == "flow":
        signal = snr.sqrt() / (1 + snr.sqrt())  # 1 - s, as snr is ((1 - s) / s)^2
        weights = weights * signal.square()
    return weights


@torch.no_grad()
def validation_losses(
    model: BaseModel,
    dataset: Dataset,
    latents: LatentCache,
    prompts: PromptCache,
    adapter: AdapterSet,
    slot: int | None = None,
) -> tuple[float, ...]:
    """Unweighted losses on held-out pictures over a fixed grid of noise, one a timestep bucket, low noise first.

    Args:
        slot: whose adapter; None for the base model alone.
    """
    grid = ((torch.arange(VALIDATION_TIMESTEPS) + 0.5) * model.train_timesteps / VALIDATION_TIMESTEPS).long()
    source = torch.Generator().manual_seed(0)
    losses = []
    for frame in dict.fromkeys(picture.bucket for picture in dataset.validation):
        pictures = [picture for picture in dataset.validation if picture.bucket == frame]
        clean = latents.latents(pictures).repeat_interleave(VALIDATION_TIMESTEPS, 0)
        captions = [p.caption for p in pictures for _ in range(VALIDATION_TIMESTEPS)]
        noise = torch.randn(clean.shape, generator=source).to(model.device)
        timesteps = grid.repeat(len(pictures)).to(model.device)
        with adapter.only(slot or 0), adapter.disabled() if slot is None else nullcontext():
            sizes = latents.sizes(pictures).repeat_interleave(VALIDATION_TIMESTEPS, 0)
            losses += _losses(model, clean, noise, timesteps, captions, sizes, prompts, adapter)
    buckets = torch.cat(losses).reshape(-1, VALIDATION_TIMESTEPS).mean(0)
    return tuple(float(loss) for loss in buckets)


def _losses(
    model: BaseModel,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    captions: list[str],
    sizes: Tensor,
    prompts: PromptCache,
    adapter: AdapterSet,
) -> list[Tensor]:
    """Unweighted losses of one frame's pictures, in parts."""
    found = []
    for start in range(0, len(clean), 16):
        part = slice(start, start + 16)
        context = replace(prompts.contexts(captions[part], adapter.touches_text_encoder), sizes=sizes[part])
        noisy = model.add_noise(clean[part], noise[part], timesteps[part])
        predicted = model.predict(noisy, timesteps[part], context)
        target = model.target(clean[part], noise[part], timesteps[part])
        found.append(diffusion_loss(model, predicted, target, timesteps[part], PLAIN))
    return found
