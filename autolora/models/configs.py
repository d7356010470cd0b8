"""Configs of the released architectures for diffusers and transformers, so that no download is needed."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
from transformers import CLIPTokenizer

Config = dict[str, Any]
MERGES = 48_894  # with 2 x 256 symbols and two specials, CLIP's 49,408 tokens

_DOWN, _CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
_SD1_UNET: Config = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
    "up_block_types": (_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_SD2_UNET: Config = {
    **_SD1_UNET,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
_SDXL_UNET: Config = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _CROSS_UP, _UP),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP: Config = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
_VIT_L: Config = {
    **_CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_VIT_H: Config = {  # without its last layer, which is never used
    **_CLIP,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "pad_token_id": 0,
}
_VIT_BIGG: Config = {
    **_CLIP,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "pad_token_id": 0,
}
SCHEDULER: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "clip_sample": False,
    "steps_offset": 1,
}
CONFIGS: dict[str, dict[str, Config]] = {
    "sd1": {"unet": _SD1_UNET, "vae": _VAE, "text_encoder": _VIT_L},
    "sd2": {"unet": _SD2_UNET, "vae": {**_VAE, "sample_size": 768}, "text_encoder": _VIT_H},
    "sdxl": {
        "unet": _SDXL_UNET,
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": _VIT_L,
        "text_encoder_2": _VIT_BIGG,
    },
}
PAD_TOKENS = {
    "sd1": {"text_encoder": "<|endoftext|>"},
    "sd2": {"text_encoder": "!"},
    "sdxl": {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"},
}


@cache
def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Build CLIP's tokenizer (Radford et al. 2021) from the vocabulary that is part of open_clip."""
    symbols, merges = _vocabulary()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge) for merge in merges)]
    entries = [*words, "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=77, pad_token=pad_token)


@cache
def _vocabulary() -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the 256 byte symbols in CLIP's order, and CLIP's merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = [*map(chr, printable), *(chr(256 + i) for i in range(len(hidden)))]
    path = Path(str(open_clip.__file__)).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [
            next(file) for _ in range(MERGES + 1)
        ]  # the first line is a title; the file has more merges than CLIP uses
    return symbols, [tuple(line.split()) for line in lines[1:]]
