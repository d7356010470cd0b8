"""Flow-matching models with random weights, small enough for every test: transformers, T5 and Qwen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from tests import tiny

D: Any = diffusers  # untyped libraries are called through Any
FAMILIES = ("sd3", "flux", "z_image")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


T5_WIDTH = 96  # at least the sum of SD3's two CLIP encoders


def tiny_t5() -> dict[str, Any]:
    """Build a T5 with one layer and one token per character."""
    characters = [chr(i) for i in range(33, 127)] + ["\u00e9"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in characters)]
    config = T5Config(
        vocab_size=len(vocab),
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return {"encoder": T5EncoderModel(config), "tokenizer": T5Tokenizer(vocab=vocab, extra_ids=0)}


def tiny_qwen() -> dict[str, Any]:
    """Build a language model with two layers, one token per byte and a chat template."""
    vocab = {symbol: index for index, symbol in enumerate(tiny.byte_symbols())}
    vocab |= {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    config = Qwen3Config(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
    )
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT
    return {"encoder": Qwen3Model(config), "tokenizer": tokenizer}


def tiny_vae() -> Any:
    """Build a 4x VAE with 16 latent channels and a shift factor."""
    return D.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=tiny.RESOLUTION,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def tiny_transformer(family: str, guidance_embeds: bool = True) -> Any:
    """Build a transformer with two blocks of 32 channels; Flux takes the guidance scale as an input or not."""
    if family == "sd3":
        return D.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_projection_dim=32,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=tiny.WIDTH + tiny.WIDTH_2,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    if family == "flux":
        return D.FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=tiny.WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
    return D.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 32, 32],
    )


SCHEDULES: dict[str, dict[str, Any]] = {
    "sd3": {"shift": 3.0},
    "flux": {"shift": 3.0, "use_dynamic_shifting": True},
    "z_image": {"shift": 6.0},
}


def save_tiny_flow(folder: Path, family: str, seed: int = 0, guidance_embeds: bool = True, **schedule: Any) -> Path:
    """Write a family's pipeline folder, in half precision, and return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": tiny_transformer(family, guidance_embeds),
            "vae": tiny_vae(),
            "scheduler": D.FlowMatchEulerDiscreteScheduler(**{**SCHEDULES[family], **schedule}),
        }
        if family == "z_image":
            parts |= with_names("", tiny_qwen())
            pipeline = D.ZImagePipeline(**parts)
        elif family == "flux":
            clip = CLIPTextModel(tiny.tiny_text_config())
            parts |= with_names("", {"encoder": clip, "tokenizer": tiny.tiny_tokenizer()}) | with_names("_2", tiny_t5())
            pipeline = D.FluxPipeline(**parts)
        else:
            first, second = (CLIPTextModelWithProjection(tiny.tiny_text_config(w)) for w in (tiny.WIDTH, tiny.WIDTH_2))
            parts |= with_names("", {"encoder": first, "tokenizer": tiny.tiny_tokenizer()})
            parts |= with_names("_2", {"encoder": second, "tokenizer": tiny.tiny_tokenizer(pad_token="!")})
            pipeline = D.StableDiffusion3Pipeline(**parts, **with_names("_3", tiny_t5()))
        for parameter in pipeline.transformer.parameters():  # parameters of zero would hide the layers before them
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


def with_names(end: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Return a text encoder and its tokenizer by their names in a pipeline."""
    return {f"text_encoder{end}": parts["encoder"], f"tokenizer{end}": parts["tokenizer"]}


def load_tiny_flow(folder: Path, family: str, **settings: Any) -> Any:
    """Load a folder of `save_tiny_flow`."""
    render = RenderSettings(num_inference_steps=3, guidance_scale=3.0, batch_size=4, scheduler="euler")
    settings = {"resolution": tiny.RESOLUTION, "render": render, **settings}
    return load_model(ModelSettings(family=family, path=str(folder), name="tiny", **settings))
