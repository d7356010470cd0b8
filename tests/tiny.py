"""Stable Diffusion models with random weights, small enough for every test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.models.stable_diffusion import StableDiffusion

RESOLUTION = 32  # pixels; latents are 4 channels of 8 x 8
TOKENS = 77
WIDTH = 32
WIDTH_2 = 48  # width of SDXL's second text encoder
_UNET: Any = UNet2DConditionModel  # untyped libraries are called through Any
_VAE: Any = AutoencoderKL
_DDIM: Any = DDIMScheduler
_EULER: Any = EulerDiscreteScheduler
_PIPELINE: Any = StableDiffusionPipeline
_PIPELINE_XL: Any = StableDiffusionXLPipeline


def byte_symbols() -> list[str]:
    """Return the 256 printable symbols that byte-level BPE (GPT-2) uses for bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {b: chr(b) for b in printable}, 0
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + extra)
            extra += 1
    return [symbols[b] for b in range(256)]


def tiny_tokenizer(**settings: Any) -> CLIPTokenizer:
    """Build a tokenizer with one token per byte: 256 symbols, 256 at a word's end, begin and end; no merges."""
    symbols = byte_symbols()
    entries = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS, **settings)


def tiny_unet(family: str = "sd1") -> Any:
    """Build a UNet with two levels of 32 and 64 channels and cross-attention at both; SD2's projections are linear."""
    return _UNET(
        use_linear_projection=family == "sd2",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def narrow_unet() -> Any:
    """Build a UNet with all layers of SD1's, but only 32 and 64 channels."""
    return _UNET(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def tiny_vae() -> Any:
    """Build a 4x VAE with 4 latent channels."""
    return _VAE(
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )


def tiny_unet_xl() -> Any:
    """Build a UNet with SDXL's layout, 32, 64 and 64 channels, and one and two transformer blocks."""
    return _UNET(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=WIDTH + WIDTH_2,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH_2 + 6 * 8,
        norm_num_groups=8,
    )


def tiny_text_config(width: int = WIDTH) -> CLIPTextConfig:
    """Return the config of a text encoder with two layers."""
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def tiny_text_encoder() -> CLIPTextModel:
    """Build a text encoder with two layers."""
    return CLIPTextModel(tiny_text_config())


def tiny_scheduler(prediction_type: str = "v_prediction") -> Any:
    """Build a scheduler: for v_prediction the packaged model's (zero terminal SNR), for epsilon SD1.5's."""
    velocity = prediction_type == "v_prediction"
    return _DDIM(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=velocity,
        timestep_spacing="trailing" if velocity else "leading",
        clip_sample=False,
        set_alpha_to_one=velocity,
        steps_offset=1,
    )


def save_tiny(
    folder: Path,
    prediction_type: str = "v_prediction",
    seed: int = 0,
    family: str = "sd1",
    unet: Callable[[], Any] | None = None,
) -> Path:
    """Write the model as a StableDiffusionPipeline folder, in half precision, and return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _PIPELINE(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(),
            tokenizer=tiny_tokenizer(),
            unet=unet() if unet else tiny_unet(family),
            scheduler=tiny_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


def save_tiny_xl(folder: Path, seed: int = 0) -> Path:
    """Write a StableDiffusionXLPipeline folder, with SDXL's own scheduler, in half precision, and return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _PIPELINE_XL(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(),
            text_encoder_2=CLIPTextModelWithProjection(tiny_text_config(WIDTH_2)),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(pad_token="!"),
            unet=tiny_unet_xl(),
            scheduler=_EULER(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                timestep_spacing="leading",
                steps_offset=1,
            ),
        )
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


def load_tiny(folder: Path, family: str = "sd1", **settings: Any) -> StableDiffusion:
    """Load a folder of `save_tiny` or, for family `sdxl`, of `save_tiny_xl`."""
    render = RenderSettings(num_inference_steps=3, guidance_scale=3.0, batch_size=4)
    return load_model(ModelSettings(family=family, path=str(folder), name="tiny", render=render, **settings))


@cache
def tiny_model() -> StableDiffusion:
    """Return the tiny model, loaded once per process from a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return load_tiny(save_tiny(Path(folder)))
