"""Loads and freezes the parts of a Stable Diffusion model from a diffusers folder or a single file."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from autolora.errors import ModelError
from autolora.models.base import DTYPES
from autolora.models.configs import CONFIGS
from autolora.models.folders import DOWNLOAD_AGAIN, ENCODERS, file_hash, folder_hash, weight_files
from autolora.models.library_logging import silence_libraries
from autolora.models.pipelines import open_pipeline
from autolora.models.quantized import quantize
from autolora.models.settings import ModelSettings
from autolora.models.single_files import recognize_file

CPU = torch.device("cpu")
_DDIM: Any = DDIMScheduler  # untyped libraries are called through Any
_CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@dataclass(frozen=True)
class Parts:
    """The parts of a Stable Diffusion model; text encoders and their tokenizers by the text encoder's folder name."""

    unet: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    scheduler: Any
    base_hash: str
    source: Path | None = None  # the folder or file that diffusers can load the model from

    def with_vae(self, vae: Any, digest: str) -> Parts:
        """Return the parts with another VAE, which has this hash."""
        return replace(self, vae=vae, base_hash=f"{self.base_hash[:8]}{digest[:8]}")


def load_parts(folder: Path, settings: ModelSettings, device: torch.device) -> Parts:
    """Load a folder's parts, frozen; only the UNet is moved to the device here.

    The VAE stays in 32-bit floats: SDXL's overflows in 16 bits, and latents are stored.

    Raises:
        ModelError: files are missing or broken.
    """
    dtype, encoders = DTYPES[settings.dtype], ENCODERS[settings.family]
    with silence_libraries():
        return Parts(
            unet=place(load_part(_CLASSES["unet"], folder / "unet", CPU, dtype), settings, device),
            vae=load_part(_CLASSES["vae"], folder / "vae", CPU, torch.float32),
            text_encoders={name: load_part(_CLASSES[name], folder / name, CPU, dtype) for name in encoders},
            tokenizers={
                name: CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
                for name, tokenizer in encoders.items()
            },
            scheduler=make_scheduler(_DDIM.load_config(folder / "scheduler"), settings),
            base_hash=folder_hash(folder, (*sorted(encoders), "unet", "vae")),
            source=folder,
        )


def load_single_file(path: Path, settings: ModelSettings, device: torch.device) -> Parts:
    """Load a checkpoint's parts, frozen, by diffusers' own conversion.

    Raises:
        ModelError: tensors are missing.
    """
    dtype, encoders, file = DTYPES[settings.dtype], ENCODERS[settings.family], recognize_file(path)
    if file.guessed and settings.prediction_type is None:
        logging.getLogger(__name__).warning(
            "%s does not state its prediction type; v_prediction is used, as in most files of its family. If renders "
            "are only noise, as with the 512 px base model, set model.prediction_type=epsilon",
            path,
        )
    scheduler_settings = replace(
        settings,
        prediction_type=settings.prediction_type or file.prediction_type,
        zero_terminal_snr=file.zero_terminal_snr if settings.zero_terminal_snr is None else settings.zero_terminal_snr,
    )
    with silence_libraries():
        pipeline = open_pipeline(path, settings.family, dtype)
        return Parts(
            unet=place(freeze(_check_complete(pipeline.unet, path), CPU, dtype), settings, device),
            vae=freeze(_check_complete(pipeline.vae, path), CPU, torch.float32),
            text_encoders={
                name: freeze(_check_complete(getattr(pipeline, name), path), CPU, dtype) for name in encoders
            },
            tokenizers={name: getattr(pipeline, tokenizer) for name, tokenizer in encoders.items()},
            scheduler=make_scheduler(pipeline.scheduler.config, scheduler_settings),
            base_hash=file_hash([path]),
            source=path,
        )


def _check_complete(part: Any, path: Path) -> Any:
    """Return a part if no tensor is missing; tensors that the file lacks are on the `meta` device.

    Raises:
        ModelError: tensors are missing.
    """
    missing = sorted(name for name, parameter in part.named_parameters() if parameter.is_meta)
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors of {type(part).__name__} ({missing[0]} ...): {DOWNLOAD_AGAIN}"
        )
    return part


def load_vae(source: Path, family: str) -> tuple[Any, str]:
    """Load a VAE that replaces a model's own; return it and its hash.

    Args:
        source: a diffusers VAE folder, a full model's folder or a .safetensors file.
        family: the base model's family.

    Raises:
        ModelError: the source has no VAE.
    """
    with silence_libraries():
        if source.is_file() and source.suffix == ".safetensors":
            if family not in CONFIGS:
                raise ModelError(f"model.vae={source}: for model.family={family} give a diffusers VAE folder")
            config = CONFIGS[family]["vae"]
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **config}))
                vae = _CLASSES["vae"].from_single_file(source, config=folder, local_files_only=True)
            return freeze(_check_complete(vae, source), CPU, torch.float32), file_hash([source])
        vae_folder = source / "vae" if (source / "vae").is_dir() else source
        if not (vae_folder / "config.json").is_file():
            raise ModelError(f"model.vae={source} is neither a diffusers VAE folder nor a .safetensors file")
        vae = load_part(_CLASSES["vae"], vae_folder, CPU, torch.float32)
        return vae, file_hash(weight_files(vae_folder)[1])


def make_scheduler(config: Mapping[str, Any], settings: ModelSettings) -> Any:
    """Return a DDIM scheduler (Song et al. 2020) from a scheduler's config, corrected by the settings.

    Latents are never clipped and steps are offset by 1, which is also what StableDiffusionPipeline changes in outdated
    files. With zero terminal SNR, sampling must begin at the last timestep (Lin et al. 2023).
    """
    corrections = {"prediction_type": settings.prediction_type, "rescale_betas_zero_snr": settings.zero_terminal_snr}
    # Keys that begin with "_" are diffusers' bookkeeping.
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    corrected = {**plain, "clip_sample": False, "steps_offset": 1}
    corrected |= {key: value for key, value in corrections.items() if value is not None}
    if corrected.get("rescale_betas_zero_snr"):
        corrected["timestep_spacing"] = "trailing"
    return _DDIM.from_config(corrected)


def load_part(part_class: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load one frozen part as a class of diffusers or transformers.

    Raises:
        ModelError: the weights lack some of the model's tensors, which the libraries would fill with random numbers.
    """
    variant, _ = weight_files(folder)
    half = {} if dtype == torch.float32 else {"torch_dtype": dtype}
    part, info = part_class.from_pretrained(
        folder,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **half,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: the weights lack {len(missing)} tensors ({missing[0]} ...): {DOWNLOAD_AGAIN}")
    return freeze(part, device, dtype)


def freeze(part: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move a part to its device, in evaluation mode and without gradients.

    The channels-last memory format is 17-26% faster on a CPU (paper-doll model).
    """
    return part.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def place(part: Any, settings: ModelSettings, device: torch.device) -> Any:
    """Quantize a denoiser if that is set, and move it to the device.

    It is quantized layer by layer, because the device may be too small for the weights before quantization.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if settings.quantize:
        quantize(part, settings.quantize, device)
    return part.to(device)
