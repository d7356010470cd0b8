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
    model: BaseModel, predicted: Tensor, target: Tensor, timesteps: Tensor, min_snr_gamma: float | None
) -> Tensor:
    """Squared error per sample, (B,), weighted by Min-SNR (Hang et al. 2023) where gamma is given.

    The weight is min(snr, gamma) / snr for noise prediction and min(snr, gamma) / (snr + 1) for v-prediction.
    """
    error = (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))
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
    clean = latents.latents(dataset.held_out).repeat_interleave(VALIDATION_TIMESTEPS, 0)
    captions = [p.caption for p in dataset.held_out for _ in range(VALIDATION_TIMESTEPS)]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    grid = (torch.arange(VALIDATION_TIMESTEPS) + 0.5) * model.train_timesteps / VALIDATION_TIMESTEPS
    timesteps = grid.long().repeat(len(dataset.held_out)).to(model.device)
    losses = []
    with adapter.disabled() if slot is None else nullcontext():
        for start in range(0, len(clean), 16):
            part = slice(start, start + 16)
            count, copies = len(clean[part]), adapter.slots  # a batch is one segment a slot; only this slot's counts
            own = slice((slot or 0) * count, ((slot or 0) + 1) * count)
            context = prompts.contexts(captions[part] * copies, adapter.touches_text_encoder)
            noisy = model.add_noise(clean[part], noise[part], timesteps[part]).repeat(copies, 1, 1, 1)
            predicted = model.predict(noisy, timesteps[part].repeat(copies), context)[own]
            target = model.target(clean[part], noise[part], timesteps[part])
            losses.append(diffusion_loss(model, predicted, target, timesteps[part], None))
    buckets = torch.cat(losses).reshape(-1, VALIDATION_TIMESTEPS).mean(0)
    return tuple(float(loss) for loss in buckets)
