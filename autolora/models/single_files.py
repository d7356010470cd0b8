"""Looks at a single `.safetensors` checkpoint before it is loaded: what it is, by its keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from autolora.errors import ModelError

_MARKS = (  # keys that only one kind of file has, the most telling first
    ("lora_down", "a LoRA file, not a base model (`autolora score lora=FILE` takes LoRA files)"),
    ("lora_up", "a LoRA file, not a base model (`autolora score lora=FILE` takes LoRA files)"),
    ("lora_A", "a LoRA file, not a base model (`autolora score lora=FILE` takes LoRA files)"),
    ("lora_te", "a LoRA file, not a base model (`autolora score lora=FILE` takes LoRA files)"),
    ("hada_w1", "a LoHa file, not a base model (`autolora score lora=FILE` takes LoRA files)"),
    ("lokr_w", "a LoKr file, not a base model (`autolora score lora=FILE` takes LoRA files)"),
    ("double_blocks.", "a Flux checkpoint: give a diffusers folder or hub id of it (model=flux)"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint: give a diffusers folder or hub id of it (model=sd3)"),
    ("context_refiner.", "a Z-Image checkpoint: give a diffusers folder or hub id of it (model=z_image)"),
    ("control_model.", "a ControlNet, not a base model"),
)
_FAMILIES = (
    ("conditioner.embedders.1.model.", "sdxl"),
    ("cond_stage_model.model.", "sd2"),
    ("cond_stage_model.transformer.", "sd1"),
)
_UNET, _FIRST = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model."


@dataclass(frozen=True)
class SingleFile:
    """What a checkpoint's keys and metadata say; None where they do not."""

    family: str
    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None
    guessed: bool = False  # what it predicts is what most files of its family do, as it does not say


def recognise_file(path: Path) -> SingleFile:
    """A checkpoint's family, and what it predicts as far as it says.

    Fine-tuned SDXL models that predict v have keys `v_pred` and `ztsnr`, ModelSpec has `prediction_type`. Those of SD2
    say nothing; most of them predict v, its 512 px base model does not.

    Raises:
        ModelError: it is no checkpoint of a family that is known, with what it is.
    """
    if path.suffix != ".safetensors":
        raise ModelError(
            f"model.path={path} is a {path.suffix or 'nameless'} file: those can run code and are not loaded; give a "
            ".safetensors checkpoint or a diffusers folder"
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys, metadata = list(file.keys()), dict(file.metadata() or {})
            inputs = file.get_slice(_FIRST).get_shape()[1] if _FIRST in keys else None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model.path={path} is a broken .safetensors file ({error}): download it again") from error
    for mark, kind in _MARKS:
        if any(mark in key for key in keys):
            raise ModelError(f"model.path={path} is {kind}")
    if inputs is None:
        raise ModelError(f"model.path={path} is no checkpoint: it has no {_FIRST} (found {', '.join(keys[:3])} ...)")
    if inputs != 4:
        raise ModelError(
            f"model.path={path} is an inpainting or other special model (its unet takes {inputs} channels); give a "
            "plain text-to-image model"
        )
    family = next((family for mark, family in _FAMILIES if any(key.startswith(mark) for key in keys)), None)
    if family is None:
        refiner = any(key.startswith("conditioner.embedders.0.model.") for key in keys)
        what = "an SDXL refiner" if refiner else "a UNet without its text encoders"
        raise ModelError(f"model.path={path} is {what}; give a whole checkpoint of a text-to-image model")
    if not any(key.startswith(_VAE) for key in keys):
        raise ModelError(f"model.path={path} has no VAE; give a whole checkpoint")
    said = {"v": "v_prediction", "epsilon": "epsilon"}.get(metadata.get("modelspec.prediction_type", ""))
    said = "v_prediction" if "v_pred" in keys else said
    usual = "v_prediction" if family == "sd2" else None
    return SingleFile(
        family,
        prediction_type=said or usual,
        zero_terminal_snr=True if "ztsnr" in keys else None,
        guessed=said is None and usual is not None,
    )
