"""The warnings of diffusers while it loads a file. Diffusers does not pass its log on to pytest by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging

NO_TEXT_ENCODER = "No LoRA keys associated to CLIPTextModel"  # logged for every file that changes the UNet alone
_PIPELINES: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}  # untyped


@contextmanager
def diffusers_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Yield a list that holds diffusers' warnings and errors after the block."""
    messages: list[str] = []
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.enable_propagation()
    caplog.clear()
    try:
        with caplog.at_level(logging.WARNING):
            yield messages
    finally:
        diffusers_logging.disable_propagation()
        diffusers_logging.set_verbosity(level)
        messages += [record.getMessage() for record in caplog.records]


def warnings_at_loading(file: Path, base: Path, family: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings when a plain diffusers pipeline of `base` loads a file."""
    pipeline = _PIPELINES[family].from_pretrained(base, torch_dtype=torch.float32)
    with diffusers_warnings(caplog) as messages:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return [message for message in messages if not message.startswith(NO_TEXT_ENCODER)]
