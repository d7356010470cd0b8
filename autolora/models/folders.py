"""Looks at a model folder before anything is loaded: its kind, its weight files, their hash."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from autolora.errors import ModelError

WEIGHT_PARTS = ("text_encoder", "unet", "vae")
PARTS = ("model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler")
EXPECTED = (
    "expected a diffusers Stable Diffusion 1.x folder "
    "(model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/)"
)
CONVERT = "convert it once: diffusers.StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
AGAIN = "download or convert the model again"


def check_sd1_folder(path: Path) -> None:
    """Refuse a path that is no Stable Diffusion 1.x folder.

    Raises:
        ModelError: what was found there, what was expected and what to do.
    """
    if path.is_file():
        raise ModelError(f"model.path={path} is {_describe_file(path)}")
    if not path.is_dir():
        raise ModelError(f"model.path={path} does not exist{_closest(path)}; {EXPECTED}")
    if not (path / "model_index.json").is_file():
        raise ModelError(f"model.path={path} has no model_index.json ({_describe_folder(path)}); {EXPECTED}")
    kind = str(read_json(path / "model_index.json").get("_class_name", "an unnamed pipeline"))
    if (path / "text_encoder_2").exists() or "XL" in kind:
        raise ModelError(f"model.path={path} is an SDXL model ({kind}), not supported yet; {EXPECTED}")
    if not kind.startswith("StableDiffusion") or "3" in kind:
        raise ModelError(f"model.path={path} holds a {kind}; {EXPECTED}")
    missing = [part for part in PARTS if not (path / part).exists()]
    if missing:
        raise ModelError(f"model.path={path} lacks {', '.join(missing)}; {EXPECTED}: {AGAIN}")
    unet, vae = read_json(path / "unet" / "config.json"), read_json(path / "vae" / "config.json")
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise ModelError(
            f"model.path={path} is an inpainting or other special model (its unet takes "
            f"{unet.get('in_channels')} channels, its vae gives {vae.get('latent_channels')}); "
            "give a plain text-to-image model"
        )
    if read_json(path / "text_encoder" / "config.json").get("hidden_size") == 1024:
        raise ModelError(f"model.path={path} is a Stable Diffusion 2 model, not supported yet; {EXPECTED}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: the file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: {AGAIN}")
    return content


def weight_files(part: Path) -> tuple[str | None, list[Path]]:
    """The variant to load and its safetensors files: the plain ones (`name.safetensors`), else `fp16`.

    Raises:
        ModelError: there are none.
    """
    found = sorted(part.glob("*.safetensors"))
    plain = [path for path in found if path.name.count(".") == 1]
    half = [path for path in found if path.name.split(".")[1] == "fp16"]
    if not (plain or half):
        raise ModelError(
            f"{part} holds no .safetensors weights (.bin and .ckpt files are not loaded, since they "
            "can run code): download that format, or save the pipeline again with diffusers"
        )
    return (None, plain) if plain else ("fp16", half)


def folder_hash(folder: Path, parts: Sequence[str] = WEIGHT_PARTS) -> str:
    """SHA-256 (first 16 hex digits) over the names and bytes of the weight files that are loaded."""
    digest = hashlib.sha256()
    for part in parts:
        for path in weight_files(folder / part)[1]:
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _describe_file(path: Path) -> str:
    """What kind of model file this is, and what to do with it."""
    if path.suffix != ".safetensors":
        return f"a file; {EXPECTED}: {CONVERT}"
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        return f"a broken .safetensors file ({error}); {EXPECTED}"
    if any("lora" in key.lower() or "hada_" in key or "lokr_" in key for key in keys):
        return f"a LoRA file, not a base model (`autolora score lora=FILE` takes LoRA files); {EXPECTED}"
    if any(key.startswith("conditioner.embedders.1") for key in keys):
        return f"a single-file SDXL checkpoint, which is not supported yet; {EXPECTED}"
    return f"a single .safetensors file, which is not supported yet; {EXPECTED}: {CONVERT}"


def _describe_folder(path: Path) -> str:
    """What the folder holds instead of a model."""
    inside = sorted(child.name for child in path.iterdir() if (child / "model_index.json").is_file())
    if inside:
        return f"but its subfolder {inside[0]} has: set model.path={path / inside[0]}"
    single = sorted(child for child in path.iterdir() if child.suffix in (".safetensors", ".ckpt"))
    if single:
        return f"it holds {single[0].name}, {_describe_file(single[0]).split(';')[0]}"
    names = sorted(child.name for child in path.iterdir())
    return "found " + (", ".join([*names[:6], *["..."][: len(names) > 6]]) or "an empty folder")


def _closest(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" (nor does {parent})"
    near = difflib.get_close_matches(path.name, [child.name for child in parent.iterdir()], n=1)
    return f"; did you mean {parent / near[0]}" if near else ""
