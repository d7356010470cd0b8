"""Recognizes a single `.safetensors` checkpoint by its keys before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from autolora.errors import ModelError

_UNSUPPORTED_KEYS = (  # parts of keys that only files of unsupported kinds have
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
_FAMILY_PREFIXES = (
    ("conditioner.embedders.1.model.", "sdxl"),
    ("cond_stage_model.model.", "sd2"),
    ("cond_stage_model.transformer.", "sd1"),
)
_UNET, _FIRST = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model."


@dataclass(frozen=True)
class SingleFile:
    """What the keys and metadata of a checkpoint state; None: they do not state it."""

    family: str
    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None
    guessed: bool = False  # the file does not state prediction_type; it is the one of most files of the family


def recognize_file(path: Path) -> SingleFile:
    """Return a checkpoint's family, and its prediction type as far as the file states it.

    Fine-tuned SDXL models that predict v have keys `v_pred` and `ztsnr`; ModelSpec metadata has `prediction_type`. SD2
    files state nothing: most of them predict v, but the 512 px base model predicts epsilon.

    Raises:
        ModelError: it is not a checkpoint of a supported family; the message says what it is.
    """
    if path.suffix != ".safetensors":
        raise ModelError(
            f"model.path={path} is a {path.suffix or 'nameless'} file: such files can run code and are not loaded; "
            "give a .safetensors checkpoint or a diffusers folder"
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys, metadata = list(file.keys()), dict(file.metadata() or {})
            inputs = file.get_slice(_FIRST).get_shape()[1] if _FIRST in keys else None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model.path={path} is a broken .safetensors file ({error}): download it again") from error
    for part, kind in _UNSUPPORTED_KEYS:
        if any(part in key for key in keys):
            raise ModelError(f"model.path={path} is {kind}")
    if inputs is None:
        raise ModelError(
            f"model.path={path} is not a checkpoint: it has no {_FIRST} (its keys are {', '.join(keys[:3])} ...)"
        )
    if inputs != 4:
        raise ModelError(
            f"model.path={path} is an inpainting model or another special model ({inputs} input channels); "
            "give a plain text-to-image model"
        )
    family = next((family for prefix, family in _FAMILY_PREFIXES if any(key.startswith(prefix) for key in keys)), None)
    if family is None:
        refiner = any(key.startswith("conditioner.embedders.0.model.") for key in keys)
        what = "an SDXL refiner" if refiner else "a UNet without its text encoders"
        raise ModelError(f"model.path={path} is {what}; give a full checkpoint of a text-to-image model")
    if not any(key.startswith(_VAE) for key in keys):
        raise ModelError(f"model.path={path} has no VAE; give a full checkpoint")
    stated = {"v": "v_prediction", "epsilon": "epsilon"}.get(metadata.get("modelspec.prediction_type", ""))
    stated = "v_prediction" if "v_pred" in keys else stated
    default = "v_prediction" if family == "sd2" else None
    return SingleFile(
        family,
        prediction_type=stated or default,
        zero_terminal_snr=True if "ztsnr" in keys else None,
        guessed=stated is None and default is not None,
    )
