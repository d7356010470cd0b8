"""A base model as diffusers' own pipeline: from a folder, or from a single file by configs that are built in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import CLIPTextConfig

from autolora.errors import ExportError
from autolora.models.base import BaseModel
from autolora.models.configs import CONFIGS, PAD_TOKENS, SCHEDULER, clip_tokenizer
from autolora.models.folders import ENCODERS, NAMES, TRANSFORMERS, denoiser_of, read_json, weight_files
from autolora.models.library_logging import silence_libraries
from autolora.models.settings import RenderSettings

_DIFFUSERS: Any = diffusers  # untyped libraries are called through Any
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    **{family: name for name, family in TRANSFORMERS.items()},
}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_PARTS: dict[str, tuple[str, str]] = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def open_pipeline(source: Path, family: str, dtype: torch.dtype, without: Iterable[str] = ()) -> Any:
    """The pipeline of a diffusers folder or of a checkpoint in a family's original layout, on the CPU.

    Some parts of a folder can be left out.
    """
    if source.is_file():
        with config_folder(family) as folder:
            return getattr(_DIFFUSERS, PIPELINES[family]).from_single_file(
                source, config=str(folder), torch_dtype=dtype, local_files_only=True
            )
    variant, _ = weight_files(source / denoiser_of(family))
    unused = (set(_UNUSED) & read_json(source / "model_index.json").keys()) | set(without)
    return _DIFFUSERS.DiffusionPipeline.from_pretrained(
        source, variant=variant, torch_dtype=dtype, local_files_only=True, **dict.fromkeys(unused)
    )


def convert_lora(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """A LoRA file of kohya's, ComfyUI's or another style in diffusers' names, by the pipeline's own conversion.

    Raises:
        ExportError: it knows no such file.
    """
    pipeline = getattr(_DIFFUSERS, PIPELINES[family])
    try:
        with silence_libraries():
            found = pipeline.lora_state_dict(dict(tensors))
    except (ValueError, KeyError, RuntimeError, NotImplementedError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"diffusers cannot convert it for {NAMES[family]} ({reason})") from error
    converted: dict[str, Tensor] = found[0] if isinstance(found, tuple) else found
    return converted


def guidance_arguments(model: BaseModel, settings: RenderSettings) -> dict[str, Any]:
    """How the pipeline of a model is told to guide as the settings say."""
    negative, strength = {"negative_prompt": settings.negative_prompt}, settings.guidance_scale
    if model.guidance_embeds:
        return {"guidance_scale": strength}
    if model.architecture == "flux":
        return {**negative, "true_cfg_scale": strength}
    if model.architecture == "z_image":  # it counts what is added to the prompted prediction
        return {**negative, "guidance_scale": strength - 1}
    if model.prediction_type == "flow":
        return {**negative, "guidance_scale": strength}
    return {**negative, "guidance_scale": strength, "guidance_rescale": settings.guidance_rescale}


@contextmanager
def config_folder(family: str) -> Iterator[Path]:
    """A diffusers folder of a family without weights, so that nothing has to be looked up on a hub."""
    with tempfile.TemporaryDirectory() as name:
        folder, encoders = Path(name), ENCODERS[family]
        parts = ("unet", "vae", "scheduler", *encoders, *encoders.values())
        index = {"_class_name": PIPELINES[family], **{part: _PARTS[part] for part in parts}}
        _write(folder / "model_index.json", index)
        for part in ("unet", "vae"):
            _write(folder / part / "config.json", {"_class_name": _PARTS[part][1], **CONFIGS[family][part]})
        _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULER})
        for encoder, tokenizer in encoders.items():
            CLIPTextConfig(**CONFIGS[family][encoder]).save_pretrained(folder / encoder)
            clip_tokenizer(PAD_TOKENS[family][encoder]).save_pretrained(folder / tokenizer)
        yield folder


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
