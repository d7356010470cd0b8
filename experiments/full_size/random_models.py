"""Full-size base models of random weights, and a dataset to train them on: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from autolora.data.concepts import Dataset, DatasetSettings, load_dataset, with_buckets
from autolora.models.base import DTYPES
from autolora.models.configs import CONFIGS, PAD_TOKENS, SCHEDULER, clip_tokenizer
from autolora.models.load import FAMILIES
from autolora.models.parts import Parts, freeze
from autolora.models.settings import ModelSettings
from autolora.models.stable_diffusion import StableDiffusion

MODELS = {"sd15": ("sd1", 512), "sdxl": ("sdxl", 1024)}  # family, and pixels on a GPU
Fill = Callable[[nn.Module, torch.device, torch.dtype], nn.Module]


def random_model(
    family: str, pixels: int, dtype: str, device: torch.device, fill: Fill | None = None
) -> StableDiffusion:
    """Return a full-size model.

    Args:
        family: the model family, `sd1` or `sdxl`.
        pixels: the resolution.
        dtype: of the UNet and the text encoders.
        device: where the weights are made.
        fill: gives a part its weights; None: `random_weights`.
    """
    fill = fill or random_weights
    kind, configs = DTYPES[dtype], CONFIGS[family]
    encoders = [name for name in configs if name.startswith("text_encoder")]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs["unet"]), AutoencoderKL(**configs["vae"])
        texts = [
            (CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection)(CLIPTextConfig(**configs[name]))
            for name in encoders
        ]
    parts = Parts(
        unet=fill(unet, device, kind),
        vae=fill(vae, device, torch.float32),
        text_encoders={name: fill(text, device, kind) for name, text in zip(encoders, texts, strict=True)},
        tokenizers={name: clip_tokenizer(pad) for name, pad in PAD_TOKENS[family].items()},
        scheduler=DDIMScheduler(**SCHEDULER),
        base_hash="0" * 16,
    )
    make: Any = FAMILIES[family]
    model: StableDiffusion = make(parts, f"random-{family}", ModelSettings(family, resolution=pixels, dtype=dtype))
    return model


def empty_weights(part: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Freeze a part that has shapes only, on the `meta` device."""
    frozen: nn.Module = freeze(part.to(dtype), device, dtype)
    return frozen


@torch.no_grad()
def random_weights(part: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Give a part random weights that keep the scale of its activations; norms are 1, positions are numbered.

    Raises:
        ValueError: the part has a buffer with unknown content.
    """
    part = part.to(dtype).to_empty(device=device)
    for name, parameter in part.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.02 if "embedding.weight" in name else parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for name, buffer in part.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
        else:
            raise ValueError(f"unknown content of the buffer {name}")
    frozen: nn.Module = freeze(part, device, dtype)
    return frozen


def write_dataset(folder: Path, pixels: int, batch: int) -> Dataset:
    """Write square images of noise with captions, enough that one is a validation image, and load them."""
    inside = folder / "1_mona girl"
    inside.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(4 + batch):
        blocks = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(blocks.numpy()).resize((pixels, pixels)).save(inside / f"{number}.png")
        (inside / f"{number}.txt").write_text(f"1girl, mona, tag{number}", encoding="utf-8")
    settings = DatasetSettings(path=str(folder))
    return with_buckets(load_dataset(settings), settings, pixels)
