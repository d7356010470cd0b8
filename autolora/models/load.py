"""The table of families, and `load_model`, which loads the base model that the settings name."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from autolora.errors import ModelError
from autolora.files import expand_user
from autolora.models.base import BaseModel
from autolora.models.flow import FlowModel
from autolora.models.flow_parts import load_flow_parts
from autolora.models.flux import Flux
from autolora.models.folders import DOWNLOAD_AGAIN
from autolora.models.parts import load_parts, load_single_file, load_vae
from autolora.models.sd2 import StableDiffusion2
from autolora.models.sd3 import StableDiffusion3
from autolora.models.sdxl import StableDiffusionXL
from autolora.models.settings import ModelSettings
from autolora.models.sources import find_source
from autolora.models.stable_diffusion import StableDiffusion
from autolora.models.z_image import ZImage

FAMILIES: dict[str, type[StableDiffusion] | type[FlowModel]] = {
    "sd1": StableDiffusion,
    "sd2": StableDiffusion2,
    "sdxl": StableDiffusionXL,
    "sd3": StableDiffusion3,
    "flux": Flux,
    "z_image": ZImage,
}


def load_model(settings: ModelSettings) -> BaseModel:
    """Load the base model that the settings name, on the GPU if there is one.

    Raises:
        ModelError: the family is unknown, the model is missing or of another family, or its files are broken.
        ConfigError: the resolution, clip_skip or another setting does not fit the model.
    """
    if settings.family not in FAMILIES:
        raise ModelError(f"model.family={settings.family} is unknown; expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[settings.family]
    source = find_source(settings.path, settings.family)
    name = settings.name or (settings.path if settings.path == "paperdoll" else source.resolve().name)
    name = name.removesuffix(".safetensors")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        vae = load_vae(expand_user(settings.vae), settings.family) if settings.vae else None
        if issubclass(family, FlowModel):
            flow = load_flow_parts(source, settings, device)
            return family(flow.with_vae(*vae) if vae else flow, name, settings)
        parts = (load_single_file if source.is_file() else load_parts)(source, settings, device)
        return family(parts.with_vae(*vae) if vae else parts, name, settings)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.path={source} cannot be loaded ({reason}): {DOWNLOAD_AGAIN}") from error
