"""The parts of a base model, from a diffusers folder or a single file, loaded and frozen."""

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
from autolora.models.folders import AGAIN, ENCODERS, file_hash, folder_hash, weight_files
from autolora.models.library_logging import silence_libraries
from autolora.models.pipelines import open_pipeline
from autolora.models.quantized import quantize
from autolora.models.settings import ModelSettings
from autolora.models.single_files import recognise_file

CPU = torch.device("cpu")
_DDIM: Any = DDIMScheduler  # untyped libraries are called through Any
_KINDS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@dataclass(frozen=True)
class Parts:
    """What a Stable Diffusion model is made of; text encoders, each with its tokenizer, by their names in a folder."""

    unet: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    scheduler: Any
    base_hash: str
    source: Path | None = None  # the folder or file where diffusers finds the same model

    def with_vae(self, vae: Any, digest: str) -> Parts:
        """The same with another VAE, of that hash."""
        return replace(self, vae=vae, base_hash=f"{self.base_hash[:8]}{digest[:8]}")


def load_parts(folder: Path, settings: ModelSettings, device: torch.device) -> Parts:
    """A folder's parts, frozen, of which only the UNet is on the device yet.

    The VAE stays in 32-bit floats: SDXL's overflows in 16, and latents are kept.

    Raises:
        ModelError: files are missing or broken.
    """
    dtype, encoders = DTYPES[settings.dtype], ENCODERS[settings.family]
    with silence_libraries():
        return Parts(
            unet=placed(load_part(_KINDS["unet"], folder / "unet", CPU, dtype), settings, device),
            vae=load_part(_KINDS["vae"], folder / "vae", CPU, torch.float32),
            text_encoders={name: load_part(_KINDS[name], folder / name, CPU, dtype) for name in encoders},
            tokenizers={
                name: CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
                for name, tokenizer in encoders.items()
            },
            scheduler=schedule(_DDIM.load_config(folder / "scheduler"), settings),
            base_hash=folder_hash(folder, (*sorted(encoders), "unet", "vae")),
            source=folder,
        )


def load_single_file(path: Path, settings: ModelSettings, device: torch.device) -> Parts:
    """The same of a checkpoint, by diffusers' own conversion.

    Raises:
        ModelError: tensors are missing.
    """
    dtype, encoders, found = DTYPES[settings.dtype], ENCODERS[settings.family], recognise_file(path)
    if found.guessed and settings.prediction_type is None:
        logging.getLogger(__name__).warning(
            "%s does not say what it predicts: taken for v, as most of its family do; where pictures are but noise, "
            "as of the 512 px base model, set model.prediction_type=epsilon",
            path,
        )
    said = replace(
        settings,
        prediction_type=settings.prediction_type or found.prediction_type,
        zero_terminal_snr=found.zero_terminal_snr if settings.zero_terminal_snr is None else settings.zero_terminal_snr,
    )
    with silence_libraries():
        pipeline = open_pipeline(path, settings.family, dtype)
        return Parts(
            unet=placed(freeze(_whole(pipeline.unet, path), CPU, dtype), settings, device),
            vae=freeze(_whole(pipeline.vae, path), CPU, torch.float32),
            text_encoders={name: freeze(_whole(getattr(pipeline, name), path), CPU, dtype) for name in encoders},
            tokenizers={name: getattr(pipeline, tokenizer) for name, tokenizer in encoders.items()},
            scheduler=schedule(pipeline.scheduler.config, said),
            base_hash=file_hash([path]),
            source=path,
        )


def _whole(part: Any, path: Path) -> Any:
    """A part without holes: tensors that the file lacks have no memory.

    Raises:
        ModelError: there are some.
    """
    missing = sorted(name for name, parameter in part.named_parameters() if parameter.is_meta)
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} tensors of {type(part).__name__} ({missing[0]} ...): {AGAIN}")
    return part


def load_vae(source: Path, family: str) -> tuple[Any, str]:
    """A VAE to use instead of a model's own, and its hash, from a diffusers folder (a whole model's, too) or a file.

    Raises:
        ModelError: there is none.
    """
    with silence_libraries():
        if source.is_file() and source.suffix == ".safetensors":
            if family not in CONFIGS:
                raise ModelError(f"model.vae={source}: for model.family={family} give a diffusers VAE folder")
            config = CONFIGS[family]["vae"]
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **config}))
                vae = _KINDS["vae"].from_single_file(source, config=folder, local_files_only=True)
            return freeze(_whole(vae, source), CPU, torch.float32), file_hash([source])
        folder_of = source / "vae" if (source / "vae").is_dir() else source
        if not (folder_of / "config.json").is_file():
            raise ModelError(f"model.vae={source} is neither a diffusers VAE folder nor a .safetensors file")
        vae = load_part(_KINDS["vae"], folder_of, CPU, torch.float32)
        return vae, file_hash(weight_files(folder_of)[1])


def schedule(config: Mapping[str, Any], settings: ModelSettings) -> Any:
    """A DDIM scheduler (Song et al. 2020) of a scheduler's config, as the settings correct it.

    As StableDiffusionPipeline mends outdated files, latents are never clipped and steps are offset by 1. With zero
    terminal SNR sampling must begin at the last timestep (Lin et al. 2023).
    """
    given = {"prediction_type": settings.prediction_type, "rescale_betas_zero_snr": settings.zero_terminal_snr}
    own = {key: value for key, value in config.items() if not key.startswith("_")}  # others are diffusers' bookkeeping
    mended = {**own, "clip_sample": False, "steps_offset": 1}
    mended |= {key: value for key, value in given.items() if value is not None}
    if mended.get("rescale_betas_zero_snr"):
        mended["timestep_spacing"] = "trailing"
    return _DDIM.from_config(mended)


def load_part(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """One frozen part of a library's class; channels last runs 17-26% faster on a CPU (paper-doll model).

    Raises:
        ModelError: the weights lack some of the model's tensors (libraries would fill them in at random).
    """
    variant, _ = weight_files(folder)
    half = {} if dtype == torch.float32 else {"torch_dtype": dtype}
    part, info = kind.from_pretrained(
        folder,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **half,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: the weights lack {len(missing)} tensors ({missing[0]} ...): {AGAIN}")
    return freeze(part, device, dtype)


def freeze(part: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A part as it is used: on its device, in evaluation mode, without gradients."""
    return part.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def placed(part: Any, settings: ModelSettings, device: torch.device) -> Any:
    """What denoises, on its device, quantized where that is asked for; the whole of it may be too large for there.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if settings.quantize:
        quantize(part, settings.quantize, device)
    return part.to(device)
