"""The names that kohya's tools, ModelSpec and A1111 give to a base model's architecture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autolora.errors import ExportError
from autolora.models.base import BaseModel


@dataclass(frozen=True)
class Family:
    """The names of one architecture."""

    version: str  # kohya's `ss_base_model_version`
    spec: str  # ModelSpec's architecture
    webui: str  # A1111's `sd version`
    v2: bool = False  # kohya's `ss_v2`
    kohya_script: str | None = "train_network.py"  # of sd-scripts; None: a script whose arguments are not known here


FAMILIES: dict[str, Family] = {
    "sd1": Family("sd_v1", "stable-diffusion-v1", "SD1"),
    "sd1 v": Family("sd_v1_v", "stable-diffusion-v1", "SD1"),
    "sd2": Family("sd_v2", "stable-diffusion-v2-512", "SD2", v2=True),
    "sd2 v": Family("sd_v2_v", "stable-diffusion-v2-768-v", "SD2", v2=True),
    "sdxl": Family("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "SDXL", kohya_script="sdxl_train_network.py"),
    "sd3": Family("sd3", "stable-diffusion-3", "Unknown", kohya_script=None),
    "flux": Family("flux1", "flux-1", "Flux", kohya_script=None),
    "flux guidance": Family("flux1", "flux-1-dev", "Flux", kohya_script=None),
    "z_image": Family("z_image", "z-image", "Unknown", kohya_script=None),
}


def family_of(model: BaseModel) -> Family:
    """The names of a model's architecture; v-prediction and guidance-distilled models have other names.

    Raises:
        ExportError: the architecture has no names yet.
    """
    architecture = model.architecture
    variant = "v" if model.prediction_type == "v_prediction" else "guidance" if model.guidance_embeds else ""
    if f"{architecture} {variant}" in FAMILIES:
        return FAMILIES[f"{architecture} {variant}"]
    if architecture not in FAMILIES:
        raise ExportError(f"cannot export for architecture {architecture!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[architecture]


def has_zero_terminal_snr(model: BaseModel) -> bool:
    """Whether the last timestep of a noise schedule is pure noise; always false for flow matching."""
    last = torch.tensor([model.train_timesteps - 1])
    return model.prediction_type != "flow" and model.snr(last).item() == 0
