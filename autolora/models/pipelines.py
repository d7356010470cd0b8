"""Opens a base model as diffusers' own pipeline: from a folder, or from a single file with built-in configs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTokenizer

from autolora.models.base import BaseModel
from autolora.models.configs import CONFIGS, PAD_TOKENS, SCHEDULER, clip_tokenizer
from autolora.models.folders import ENCODERS, TRANSFORMERS, denoiser_of, read_json, weight_files
from autolora.models.settings import RenderSettings

_DIFFUSERS: Any = diffusers  # untyped libraries are called through Any
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    **{family: name for name, family in TRANSFORMERS.items()},
}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_PART_CLASSES: dict[str, tuple[str, str]] = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def open_pipeline(source: Path, family: str, dtype: torch.dtype, without: Iterable[str] = ()) -> Any:
    """Open a diffusers folder, or a checkpoint in the family's original layout, as a pipeline on the CPU.

    Args:
        source: the folder or the file.
        family: the model's family.
        dtype: of the weights.
        without: parts of a folder that are not loaded.
    """
    if source.is_file():
        with config_folder(family) as folder:
            return getattr(_DIFFUSERS, PIPELINES[family]).from_single_file(
                source, config=str(folder), torch_dtype=dtype, local_files_only=True, **_tokenizers(family)
            )
    variant, _ = weight_files(source / denoiser_of(family))
    unused = (set(_UNUSED) & read_json(source / "model_index.json").keys()) | set(without)
    return _DIFFUSERS.DiffusionPipeline.from_pretrained(
        source, variant=variant, torch_dtype=dtype, local_files_only=True, **dict.fromkeys(unused)
    )


def guidance_arguments(model: BaseModel, settings: RenderSettings) -> dict[str, Any]:
    """Return the arguments that make a model's pipeline guide as the settings say."""
    negative, scale = {"negative_prompt": settings.negative_prompt}, settings.guidance_scale
    if model.guidance_embeds:
        return {"guidance_scale": scale}
    if model.architecture == "flux":
        return {**negative, "true_cfg_scale": scale}
    if model.architecture == "z_image":  # its scale is the factor of what is added to the conditional prediction
        return {**negative, "guidance_scale": scale - 1}
    if model.prediction_type == "flow":
        return {**negative, "guidance_scale": scale}
    return {**negative, "guidance_scale": scale, "guidance_rescale": settings.guidance_rescale}


@contextmanager
def config_folder(family: str) -> Iterator[Path]:
    """Provide a diffusers folder of a family without weights, so that nothing is looked up on the hub."""
    with tempfile.TemporaryDirectory() as name:
        folder, encoders = Path(name), ENCODERS[family]
        parts = ("unet", "vae", "scheduler", *encoders, *encoders.values())
        index = {"_class_name": PIPELINES[family], **{part: _PART_CLASSES[part] for part in parts}}
        _write(folder / "model_index.json", index)
        for part in ("unet", "vae"):
            _write(folder / part / "config.json", {"_class_name": _PART_CLASSES[part][1], **CONFIGS[family][part]})
        _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULER})
        for encoder in encoders:
            CLIPTextConfig(**CONFIGS[family][encoder]).save_pretrained(folder / encoder)
        yield folder


def _tokenizers(family: str) -> dict[str, CLIPTokenizer]:
    """Return a family's tokenizers by their names in a pipeline."""
    return {tokenizer: clip_tokenizer(PAD_TOKENS[family][encoder]) for encoder, tokenizer in ENCODERS[family].items()}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
