"""Base models by family; nothing outside this package asks which family a model is."""

from __future__ import annotations

from collections.abc import Callable

from autolora.errors import ModelError
from autolora.models.base import BaseModel, ModelSettings, RenderSettings
from autolora.models.sd1 import StableDiffusion, load_sd1

__all__ = [
    "FAMILIES",
    "BaseModel",
    "ModelSettings",
    "RenderSettings",
    "StableDiffusion",
    "load_model",
    "load_sd1",
]

FAMILIES: dict[str, Callable[[ModelSettings], BaseModel]] = {"sd1": load_sd1}


def load_model(settings: ModelSettings) -> BaseModel:
    """Load the base model that the settings name.

    Raises:
        ModelError: the family is unknown or the folder cannot be loaded.
    """
    if settings.family not in FAMILIES:
        raise ModelError(f"model.family={settings.family} is unknown; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[settings.family](settings)
