"""The two training loops that the benchmarks compare: a plain loop with diffusers and peft, and autolora's step.

Both train on the images of the packaged quickstart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn import functional as F

from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import LoRA
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset
from autolora.models.base import BaseModel, Context
from autolora.optim.optimizers import AdamW
from autolora.paperdoll.weights import QUICKSTART
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from autolora.train.step import train_step

SUFFIXES = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
Steps = Callable[[int], None]  # runs a number of optimizer steps
Inputs = Callable[[Tensor], tuple[Tensor, Context]]  # latents and contexts of the images with these numbers


def quickstart() -> Dataset:
    """Return the dataset that all loops train on."""
    return load_dataset(DatasetSettings(path=str(QUICKSTART)))


def stored(model: BaseModel, cache: Path) -> Inputs:
    """Return latents and contexts of the quickstart's images, encoded once."""
    pictures = quickstart().pictures
    contexts = PromptCache(model).contexts([picture.caption for picture in pictures], False)
    latents = LatentCache(model, cache).latents(pictures)

    def inputs(picks: Tensor) -> tuple[Tensor, Context]:
        pooled = None if contexts.pooled is None else contexts.pooled[picks]
        return latents[picks], Context(contexts.tokens[picks], pooled)

    return inputs


def plain_loop(model: Any, inputs: Inputs, dim: int, batch_size: int, compiled: bool = False) -> Steps:
    """Return the loop of diffusers' text-to-image example with peft, reduced to its arithmetic: one LoRA on a UNet.

    Args:
        model: its UNet is copied, so that no code of autolora runs in it.
        inputs: returns latents and contexts of images.
        dim: of the LoRA.
        batch_size: images per step.
        compiled: whether the UNet is compiled by torch.compile.
    """
    unet = copy.deepcopy(model.unet)
    config = LoraConfig(r=dim, lora_alpha=dim // 2, target_modules=SUFFIXES, init_lora_weights="gaussian")
    unet = inject_adapter_in_model(config, unet)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    scheduler, device = model.sampler(), model.device
    abar = scheduler.alphas_cumprod.to(device)
    velocity = scheduler.config.prediction_type == "v_prediction"
    run, pictures = torch.compile(unet) if compiled else unet, len(quickstart().pictures)
    side = model.resolution
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * batch_size, device=device)

    def steps(count: int) -> None:
        for _ in range(count):
            latents, context = inputs(torch.randint(0, pictures, (batch_size,)))
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (batch_size,), device=device)
            signal, sigma = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
            added = None if context.pooled is None else {"text_embeds": context.pooled, "time_ids": sizes}
            with nullcontext() if model.dtype == torch.float32 else torch.autocast(device.type, model.dtype):
                noisy = signal * latents + sigma * noise
                predicted = run(noisy, t, context.tokens, added_cond_kwargs=added, return_dict=False)[0]
            target = signal * noise - sigma * latents if velocity else noise
            loss = F.mse_loss(predicted.float(), target.float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def our_loop(model: BaseModel, cache: Path, dim: int, batch_size: int, slots: int = 1) -> Steps:
    """Return autolora's training step for several LoRAs at once on a copy of the model, with captions unchanged.

    Args:
        model: the base model.
        cache: the folder of latents.
        dim: of each LoRA.
        batch_size: images per step.
        slots: the number of LoRAs.
    """
    model, dataset, adapter = copy.deepcopy(model), quickstart(), LoRA(dim=dim, alpha=dim / 2)
    settings = TrainSettings(batch_size=batch_size, shuffle_caption=False, min_snr_gamma=None)
    attached = attach(model.modules, adapter, slots=slots)
    context = TrainingContext(model, attached, dataset, LatentCache(model, cache), PromptCache(model))
    recipes = [Run(f"speed {k}", adapter, AdamW(), train=replace(settings, seed=k)) for k in range(slots)]
    active = {k: TrainingSlot(k, Job(recipe), context) for k, recipe in enumerate(recipes)}

    def steps(count: int) -> None:
        for _ in range(count):
            train_step(context, active)

    return steps
