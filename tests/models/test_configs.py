"""The built-in configs equal the released ones: sizes of the networks, and CLIP's vocabulary."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from autolora.models.configs import CONFIGS, PAD_TOKENS, clip_tokenizer

KINDS: dict[str, Any] = {
    "unet": lambda config: UNet2DConditionModel(**config),
    "vae": lambda config: AutoencoderKL(**config),
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
}
# Numbers of parameters in the released files.
RELEASED = {
    ("sd1", "unet"): 859_520_964,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "vae"): 83_653_863,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "vae"): 83_653_863,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}


@pytest.mark.parametrize(("family", "part"), [(family, part) for family in CONFIGS for part in CONFIGS[family]])
def test_networks_have_the_released_number_of_parameters(family: str, part: str) -> None:
    with torch.device("meta"):
        network: nn.Module = KINDS[part](CONFIGS[family][part])
    assert sum(parameter.numel() for parameter in network.parameters()) == RELEASED[family, part]


@pytest.mark.parametrize(("family", "part"), [(family, part) for family, pads in PAD_TOKENS.items() for part in pads])
def test_the_tokenizer_equals_open_clips(family: str, part: str) -> None:
    pad = PAD_TOKENS[family][part]
    tokenizer, reference = clip_tokenizer(pad), open_clip.get_tokenizer("ViT-L-14")
    # SD2's and SDXL's second tokenizer pad with `!`, so a `!` in a prompt differs from open_clip, in diffusers too.
    prompts = ["1girl, Mona_Taco, (é) :3 don't", "masterpiece, best quality, 東方 café  naïve ~~?", ""]
    for prompt in prompts:
        ids = tokenizer(prompt, padding="max_length").input_ids
        expected = reference(prompt)[0].tolist()
        end = expected.index(49407) + 1
        assert ids[:end] == expected[:end] and len(ids) == 77
        assert set(ids[end:]) == {tokenizer.convert_tokens_to_ids(pad)}
    assert tokenizer.pad_token_id == CONFIGS[family][part]["pad_token_id"]
