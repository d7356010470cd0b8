"""What diffusers says while it loads a file: it keeps its log to itself, so that an assertion on it must ask for it."""

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

NO_TEXT_ENCODER = "No LoRA keys associated to CLIPTextModel"  # its note on every file that changes the UNet alone
_PIPELINES: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}  # untyped


@contextmanager
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """A list that after the block has diffusers' warnings and errors."""
    found: list[str] = []
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.enable_propagation()
    caplog.clear()
    try:
        with caplog.at_level(logging.WARNING):
            yield found
    finally:
        diffusers_logging.disable_propagation()
        diffusers_logging.set_verbosity(level)
        found += [record.getMessage() for record in caplog.records]


def warnings_at_loading(file: Path, base: Path, family: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What it warns of when a pipeline of `base`, with nothing of autolora's, loads a file."""
    pipeline = _PIPELINES[family].from_pretrained(base, torch_dtype=torch.float32)
    with heard(caplog) as found:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return [words for words in found if not words.startswith(NO_TEXT_ENCODER)]
