"""Splits prompts into windows of 75 tokens for CLIP text encoders."""

from __future__ import annotations

from typing import Any

from autolora.models.base import MAX_CHUNKS

_COMMA_REACH = 20  # tokens at a window's end in which a comma is searched


def prompt_windows(tokenizer: Any, prompt: str, room: int) -> list[list[int]]:
    """Split a prompt's token ids into windows with begin, end and padding tokens.

    A window ends after the last comma among its last 20 tokens, if there is one, so that no tag is split. A1111 does
    the same.

    Args:
        tokenizer: CLIP's tokenizer.
        prompt: the text.
        room: the prompt's own tokens per window.
    """
    rest = tokenizer(prompt, add_special_tokens=False).input_ids
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1] if len(rest) > room else None
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    windows: list[list[int]] = []
    while len(windows) < MAX_CHUNKS and (rest or not windows):
        cut = room
        if len(rest) > room:
            cut = next((i for i in range(room, room - _COMMA_REACH, -1) if rest[i - 1] == comma), room)
        tokens, rest = rest[:cut], rest[cut:]
        windows.append([begin, *tokens, end, *[pad] * (room - len(tokens))])
    return windows
