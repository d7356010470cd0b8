"""Prompts as CLIP text encoders read them: windows of 75 tokens, begun, ended and padded."""

from __future__ import annotations

from typing import Any

from autolora.models.base import MAX_CHUNKS

_COMMA_REACH = 20  # tokens


def prompt_windows(tokenizer: Any, prompt: str, room: int) -> list[list[int]]:
    """A prompt's token ids in windows of `room` of its own, cut after a comma where one is near a window's end.

    A1111 cuts at the last comma of a window's last 20 tokens, too, so that no tag is torn apart.
    """
    rest = tokenizer(prompt, add_special_tokens=False).input_ids
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1] if len(rest) > room else None
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    found: list[list[int]] = []
    while len(found) < MAX_CHUNKS and (rest or not found):
        cut = room
        if len(rest) > room:
            cut = next((i for i in range(room, room - _COMMA_REACH, -1) if rest[i - 1] == comma), room)
        own, rest = rest[:cut], rest[cut:]
        found.append([begin, *own, end, *[pad] * (room - len(own))])
    return found
