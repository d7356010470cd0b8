"""The converted text encoder computes the same as the original."""

from __future__ import annotations

import open_clip
import torch

from autolora.paperdoll.networks import CLIP_CONFIG, text_encoder_of
from autolora.paperdoll.tokenizer import build_tokenizer


def test_the_text_encoder_equals_the_text_tower_of_the_clip() -> None:
    tokenizer = build_tokenizer()
    text_config = {**CLIP_CONFIG["text_cfg"], "vocab_size": len(tokenizer)}  # type: ignore[dict-item]
    clip = open_clip.CLIP(**{**CLIP_CONFIG, "text_cfg": text_config}, quick_gelu=False).eval()
    ids = tokenizer(
        ["1girl, red hair, banin", "night sky"], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        hidden = text_encoder_of(clip.state_dict()).eval()(ids).last_hidden_state
        pooled = hidden[torch.arange(2), ids.argmax(1)] @ clip.text_projection
        expected = clip.encode_text(ids)
    assert torch.allclose(pooled, expected, atol=1e-5)
