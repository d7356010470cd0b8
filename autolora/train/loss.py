"""The diffusion loss, and the validation loss on a fixed grid of noise."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from autolora.adapters.adapter_set import AdapterSet
from autolora.data.concepts import Dataset
from autolora.models.base import BaseModel
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.run import TrainSettings

VALIDATION_TIMESTEPS = 4  # evenly spaced
VALIDATION_BATCH = 16  # images at once, where the memory allows
PLAIN = TrainSettings(min_snr_gamma=None)


def diffusion_loss(
    model: BaseModel,
    predicted: Tensor,
    target: Tensor,
    timesteps: Tensor,
    settings: TrainSettings,
    mask: Tensor | None = None,
) -> Tensor:
    """Return each sample's loss, (B,), multiplied by `timestep_weights`.

    Huber is 2d (sqrt(e^2 + d^2) - d), about e^2 for small errors and 2d |e| for large ones (Charbonnier et al. 1994;
    for diffusion Khrapov et al. 2024).

    Args:
        model: the base model.
        predicted: its prediction, (B, C, h, w).
        target: the target, of the same shape.
        timesteps: (B,).
        settings: which loss, and the weights of timesteps.
        mask: weights of the latent's cells, (B, 1, h, w), not negative; they are divided by their mean.
    """
    errors = (predicted.float() - target.float()).square()
    if settings.loss_type == "huber":
        delta = settings.huber_delta
        errors = 2 * delta * ((errors + delta**2).sqrt() - delta)
    if mask is not None:
        errors = errors * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return errors.mean(dim=(1, 2, 3)) * timestep_weights(model, timesteps, settings)


def timestep_weights(model: BaseModel, timesteps: Tensor, settings: TrainSettings) -> Tensor:
    """Return the weight of each sample's loss at its timestep, (B,).

    Min-SNR (Hang et al. 2023) is min(snr, gamma) / snr for noise prediction and min(snr, gamma) / (snr + 1) for
    v-prediction. Debiased (Yu et al. 2024) is 1 / sqrt(snr), with snr at most 1000, and 1 / (snr + 1) for v-prediction,
    as in sd-scripts. For flow matching both weigh the error of the noise, which is 1 - s times that of the flow; the
    settings of such models turn them off, because their timesteps are already drawn where they matter.
    """
    if not settings.debiased_estimation_loss and settings.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr, velocity = model.snr(timesteps), model.prediction_type == "v_prediction"
    if settings.debiased_estimation_loss:
        limited = snr.clamp(1e-8, 1000)
        weights = 1 / (limited + 1) if velocity else limited.rsqrt()
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
    """Return the unweighted losses on the validation images at fixed noise, one per timestep, low noise first.

    Args:
        model: the base model.
        dataset: its validation images are used.
        latents: the cache of their latents.
        prompts: the cache of their captions' embeddings.
        adapter: the adapter set.
        slot: the slot to evaluate; None: the base model without an adapter.
    """
    grid = ((torch.arange(VALIDATION_TIMESTEPS) + 0.5) * model.train_timesteps / VALIDATION_TIMESTEPS).long()
    source = torch.Generator().manual_seed(0)
    losses = []
    for bucket in dict.fromkeys(picture.bucket for picture in dataset.validation):
        pictures = [picture for picture in dataset.validation if picture.bucket == bucket]
        clean = latents.latents(pictures).repeat_interleave(VALIDATION_TIMESTEPS, 0)
        captions = [p.caption for p in pictures for _ in range(VALIDATION_TIMESTEPS)]
        noise = torch.randn(clean.shape, generator=source).to(model.device)
        timesteps = grid.repeat(len(pictures)).to(model.device)
        with adapter.only(slot or 0), adapter.disabled() if slot is None else nullcontext():
            sizes = latents.sizes(pictures).repeat_interleave(VALIDATION_TIMESTEPS, 0)
            losses += _losses(model, clean, noise, timesteps, captions, sizes, prompts, adapter)
    by_timestep = torch.cat(losses).reshape(-1, VALIDATION_TIMESTEPS).mean(0)
    return tuple(float(loss) for loss in by_timestep)


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
    """Return the unweighted losses of images of one bucket resolution, computed in parts of 16.

    Where the GPU's memory is too small for a part, the next ones are half as large.
    """
    losses: list[Tensor] = []
    start, size = 0, VALIDATION_BATCH
    while start < len(clean):
        part = slice(start, start + size)
        try:
            conditioning = replace(prompts.contexts(captions[part], adapter.touches_text_encoder), sizes=sizes[part])
            noisy = model.add_noise(clean[part], noise[part], timesteps[part])
            predicted = model.predict(noisy, timesteps[part], conditioning)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            continue
        target = model.target(clean[part], noise[part], timesteps[part])
        losses.append(diffusion_loss(model, predicted, target, timesteps[part], PLAIN))
        start += size
    return losses
