"""Base models by family; nothing outside this package asks which family a model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from autolora.errors import ModelError
from autolora.models.base import BaseModel, Context, ModelSettings, RenderSettings
from autolora.models.folders import AGAIN
from autolora.models.parts import load_parts, load_single_file, load_vae
from autolora.models.sd2 import StableDiffusion2
from autolora.models.sdxl import StableDiffusionXL
from autolora.models.sources import find_source
from autolora.models.stable_diffusion import StableDiffusion

__all__ = [
    "FAMILIES",
    "BaseModel",
    "Context",
    "ModelSettings",
    "RenderSettings",
    "StableDiffusion",
    "StableDiffusion2",
    "StableDiffusionXL",
    "load_model",
]

FAMILIES: dict[str, type[StableDiffusion]] = {
    "sd1": StableDiffusion,
    "sd2": StableDiffusion2,
    "sdxl": StableDiffusionXL,
}


def load_model(settings: ModelSettings) -> StableDiffusion:
    """Load the base model that the settings name, on the GPU when there is one.

    Raises:
        ModelError: the family is unknown, the model is missing or of another kind, or its files are broken.
        ConfigError: the resolution or the layer to read does not suit the model.
    """
    if settings.family not in FAMILIES:
        raise ModelError(f"model.family={settings.family} is unknown; expected one of {', '.join(FAMILIES)}")
    source = find_source(settings.path, settings.family)
    name = settings.name or (settings.path if settings.path == "paperdoll" else source.resolve().name)
    name = name.removesuffix(".safetensors")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parts = (load_single_file if source.is_file() else load_parts)(source, settings, device)
        if settings.vae:
            vae, digest = load_vae(Path(settings.vae).expanduser(), settings.family)
            parts = replace(parts, vae=vae, base_hash=f"{parts.base_hash[:8]}{digest[:8]}")
        return FAMILIES[settings.family](parts, name, settings)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.path={source} cannot be loaded ({reason}): {AGAIN}") from error
