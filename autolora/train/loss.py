"""The diffusion loss and the fixed validation grid."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from autolora.adapters.lora import AdapterSet
from autolora.data.concepts import Dataset
from autolora.models.base import BaseModel
from autolora.train.batches import LatentCache, PromptCache

VALIDATION_TIMESTEPS = 4  # evenly over the noise range


def diffusion_loss(
    model: BaseModel,
    predicted: Tensor,
    target: Tensor,
    timesteps: Tensor,
    min_snr_gamma: float | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Squared error per sample, (B,), weighted by Min-SNR (Hang et al. 2023) where gamma is given.

    The weight is min(snr, gamma) / snr for noise prediction and min(snr, gamma) / (snr + 1) for v-prediction.
    A mask, (B, 1, h, w) and nowhere negative, weighs the cells; its own size does not change the loss's.
    """
    squares = (predicted.float() - target.float()).square()
    if mask is not None:
        squares = squares * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    error = squares.mean(dim=(1, 2, 3))
    if min_snr_gamma is None:
        return error
    snr = model.snr(timesteps)
    divisor = snr + 1 if model.prediction_type == "v_prediction" else snr.clamp(min=1e-8)
    return error * snr.clamp(max=min_snr_gamma) / divisor


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
    for frame in dict.fromkeys(picture.frame for picture in dataset.held_out):
        pictures = [picture for picture in dataset.held_out if picture.frame == frame]
        clean = latents.latents(pictures).repeat_interleave(VALIDATION_TIMESTEPS, 0)
        captions = [p.caption for p in pictures for _ in range(VALIDATION_TIMESTEPS)]
        noise = torch.randn(clean.shape, generator=source).to(model.device)
        timesteps = grid.repeat(len(pictures)).to(model.device)
        with adapter.disabled() if slot is None else nullcontext():
            losses += _losses(model, clean, noise, timesteps, captions, prompts, adapter, slot)
    buckets = torch.cat(losses).reshape(-1, VALIDATION_TIMESTEPS).mean(0)
    return tuple(float(loss) for loss in buckets)


def _losses(
    model: BaseModel,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    captions: list[str],
    prompts: PromptCache,
    adapter: AdapterSet,
    slot: int | None,
) -> list[Tensor]:
    """Unweighted losses of one frame's pictures, in parts."""
    found = []
    for start in range(0, len(clean), 16):
        part = slice(start, start + 16)
        count, copies = len(clean[part]), adapter.slots  # a batch is one segment a slot; only this slot's counts
        own = slice((slot or 0) * count, ((slot or 0) + 1) * count)
        context = prompts.contexts(captions[part] * copies, adapter.touches_text_encoder)
        noisy = model.add_noise(clean[part], noise[part], timesteps[part]).repeat(copies, 1, 1, 1)
        predicted = model.predict(noisy, timesteps[part].repeat(copies), context)[own]
        target = model.target(clean[part], noise[part], timesteps[part])
        found.append(diffusion_loss(model, predicted, target, timesteps[part], None))
    return found
