"""Loads and freezes the parts of a flow-matching model from a diffusers folder, as diffusers' own pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from autolora.errors import ConfigError
from autolora.models.base import DTYPES
from autolora.models.folders import ENCODERS, NAMES, folder_hash
from autolora.models.library_logging import silence_libraries
from autolora.models.parts import CPU, load_part, place
from autolora.models.pipelines import PIPELINES
from autolora.models.settings import ModelSettings

_DIFFUSERS: Any = diffusers  # untyped libraries are called through Any
_TRANSFORMERS: Any = transformers
_TRANSFORMER_CLASSES = {
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
    "z_image": "ZImageTransformer2DModel",
}
_ENCODER_CLASSES = {
    "sd3": ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"),
    "flux": ("CLIPTextModel", "T5EncoderModel"),
    "z_image": ("Qwen3Model",),
}


@dataclass(frozen=True)
class FlowParts:
    """A pipeline of frozen parts, and the folder that diffusers can load the model from."""

    pipeline: Any
    base_hash: str
    source: Path

    def with_vae(self, vae: Any, digest: str) -> FlowParts:
        """Return the parts with another VAE, which has this hash."""
        self.pipeline.register_modules(vae=vae)
        return replace(self, base_hash=f"{self.base_hash[:8]}{digest[:8]}")


def load_flow_parts(folder: Path, settings: ModelSettings, device: torch.device) -> FlowParts:
    """Load a folder's parts; only the transformer is moved to the device here.

    The VAE stays in 32-bit floats, because latents are stored.

    Raises:
        ConfigError: a setting does not fit the family.
        ModelError: files are missing or broken.
    """
    _check_settings(settings)
    family, dtype = settings.family, DTYPES[settings.dtype]
    encoders, transformer = ENCODERS[family], getattr(_DIFFUSERS, _TRANSFORMER_CLASSES[family])
    with silence_libraries():
        parts = {
            "transformer": place(load_part(transformer, folder / "transformer", CPU, dtype), settings, device),
            "vae": load_part(_DIFFUSERS.AutoencoderKL, folder / "vae", CPU, torch.float32),
            "scheduler": _DIFFUSERS.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        }
        for (name, tokenizer), class_name in zip(encoders.items(), _ENCODER_CLASSES[family], strict=True):
            parts[name] = load_part(getattr(_TRANSFORMERS, class_name), folder / name, CPU, dtype)
            parts[tokenizer] = _TRANSFORMERS.AutoTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
        pipeline = getattr(_DIFFUSERS, PIPELINES[family])(**parts)
    return FlowParts(pipeline, folder_hash(folder, (*sorted(encoders), "transformer", "vae")), folder)


def _check_settings(settings: ModelSettings) -> None:
    """Refuse settings that a family does not have, before anything is loaded."""
    kind = NAMES[settings.family]
    settings.refuse(kind, "clip_skip", "prediction_type", "zero_terminal_snr")
    check_sampler(settings.render.scheduler, settings.family)
    if settings.render.guidance_rescale:
        raise ConfigError(f"model.render.guidance_rescale: {kind} has no guidance rescale; set it to 0")
    if settings.dtype == "float16":  # T5's and Qwen3's states go beyond 65504
        raise ConfigError(f"model.dtype=float16: {kind} exceeds the range of float16; set bfloat16 or float32")


def check_sampler(name: str, family: str) -> None:
    """Refuse schedulers that cannot sample flow-matching models.

    Raises:
        ConfigError: the name is not `euler`.
    """
    if name != "euler":
        raise ConfigError(f"model.render.scheduler={name}: {NAMES[family]} renders with euler")
