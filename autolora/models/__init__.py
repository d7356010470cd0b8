"""Base models by family; nothing outside this package asks which family a model is."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from autolora.errors import ModelError
from autolora.models.base import BaseModel, Context, ModelSettings, RenderSettings
from autolora.models.folders import AGAIN, check_folder
from autolora.models.parts import load_parts
from autolora.models.sd2 import StableDiffusion2
from autolora.models.sdxl import StableDiffusionXL
from autolora.models.stable_diffusion import StableDiffusion
from autolora.paperdoll.weights import BASE

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
        ModelError: the family is unknown, the folder is missing or of another kind, or its files are broken.
        ConfigError: the resolution does not suit the model.
    """
    if settings.family not in FAMILIES:
        raise ModelError(f"model.family={settings.family} is unknown; expected one of {', '.join(FAMILIES)}")
    packaged = settings.path == "paperdoll"
    folder = BASE if packaged else Path(settings.path).expanduser()
    if packaged and not folder.is_dir():
        raise ModelError(f"the packaged paper-doll model is missing ({folder}): install autolora again")
    check_folder(folder, settings.family)
    name = settings.name or ("paperdoll" if packaged else folder.resolve().name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parts = load_parts(folder, settings, device)
        return FAMILIES[settings.family](parts, name, settings)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.path={folder} cannot be loaded ({reason}): {AGAIN}") from error
