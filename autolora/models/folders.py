"""Looks at a model folder before anything is loaded: its kind, its weight files, their hash."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autolora.errors import ModelError

ENCODERS: dict[str, dict[str, str]] = {  # by family: the folders of text encoders, and of their tokenizers
    "sd1": {"text_encoder": "tokenizer"},
    "sd2": {"text_encoder": "tokenizer"},
    "sdxl": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    "sd3": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"},
    "flux": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    "z_image": {"text_encoder": "tokenizer"},
}
NAMES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "z_image": "Z-Image",
}
LARGE = {  # by family: the text encoder that single downloads often leave out, and what it is
    "sd3": ("text_encoder_3", "T5-XXL"),
    "flux": ("text_encoder_2", "T5-XXL"),
    "z_image": ("text_encoder", "Qwen3"),
}
TRANSFORMERS = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux", "ZImagePipeline": "z_image"}
AGAIN = "download or convert the model again"


def denoiser_of(family: str) -> str:
    """The part of a family that predicts noise or flow."""
    return "transformer" if family in TRANSFORMERS.values() else "unet"


def parts_of(family: str) -> tuple[str, ...]:
    """What a family's folder holds."""
    return ("model_index.json", denoiser_of(family), "vae", *ENCODERS[family], *ENCODERS[family].values(), "scheduler")


def expected(family: str) -> str:
    """The same in words."""
    names = ", ".join(_named(part, family) for part in parts_of(family))
    forms = "diffusers folder" if family in TRANSFORMERS.values() else "checkpoint (.safetensors) or diffusers folder"
    return f"expected a {NAMES[family]} {forms} ({names})"


def _named(part: str, family: str) -> str:
    """A part of a folder, and what it is where its name does not tell."""
    if "." in part:
        return part
    large, kind = LARGE.get(family, ("", ""))
    return f"{part}/ ({kind})" if part == large else f"{part}/"


def check_folder(path: Path, family: str) -> None:
    """Refuse a path that is no folder of this family.

    Raises:
        ModelError: what was found there, what was expected and what to do.
    """
    wanted = expected(family)
    if not path.is_dir():
        raise ModelError(f"model.path={path} does not exist{_closest(path)}; {wanted}")
    if not (path / "model_index.json").is_file():
        raise ModelError(f"model.path={path} has no model_index.json ({_describe_folder(path)}); {wanted}")
    kind = str(read_json(path / "model_index.json").get("_class_name", "an unnamed pipeline"))
    found = recognise(path, kind)
    if found is None:
        raise ModelError(f"model.path={path} holds a {kind}; {wanted}")
    if found != family:
        raise ModelError(f"model.path={path} is {article(found)} model ({kind}): set model.family={found}; {wanted}")
    missing = [part for part in parts_of(family) if not (path / part).exists()]
    if missing:
        raise ModelError(
            f"model.path={path} lacks {', '.join(_named(part, family) for part in missing)}; {wanted}: {AGAIN}"
        )
    denoiser, vae = (read_json(path / part / "config.json") for part in (denoiser_of(family), "vae"))
    packed = 4 if family == "flux" else 1  # latent cells that it takes as one
    if denoiser.get("in_channels", 4) != packed * vae.get("latent_channels", 4):
        raise ModelError(
            f"model.path={path} is an inpainting or other special model (its {denoiser_of(family)} takes "
            f"{denoiser.get('in_channels')} channels, its vae gives {vae.get('latent_channels')}); "
            "give a plain text-to-image model"
        )


def recognise(folder: Path, pipeline: str) -> str | None:
    """The family of a folder with that pipeline in its index, if any: SDXL by its text encoders, SD2 by its UNet."""
    if pipeline in TRANSFORMERS:
        return TRANSFORMERS[pipeline]
    if (folder / "text_encoder_2").exists() or "XL" in pipeline:
        return "sdxl" if pipeline.startswith("StableDiffusion") and "3" not in pipeline else None
    if not pipeline.startswith("StableDiffusion") or "3" in pipeline:
        return None
    config = folder / "unet" / "config.json"
    return "sd2" if config.is_file() and read_json(config).get("use_linear_projection") else "sd1"


def article(family: str) -> str:
    """A family with its article."""
    return f"an {NAMES[family]}" if family == "sdxl" else f"a {NAMES[family]}"


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


def folder_hash(folder: Path, parts: Sequence[str]) -> str:
    """SHA-256 (first 16 hex digits) over the names and bytes of the weight files that are loaded."""
    digest = hashlib.sha256()
    for part in parts:
        for path in weight_files(folder / part)[1]:
            digest.update(path.relative_to(folder).as_posix().encode())
            _feed(digest, path)
    return digest.hexdigest()[:16]


def file_hash(paths: Sequence[Path]) -> str:
    """SHA-256 (first 16 hex digits) over the bytes of files."""
    digest = hashlib.sha256()
    for path in paths:
        _feed(digest, path)
    return digest.hexdigest()[:16]


def _feed(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)


def _describe_folder(path: Path) -> str:
    """What the folder holds instead of a model."""
    inside = sorted(child.name for child in path.iterdir() if (child / "model_index.json").is_file())
    if inside:
        return f"but its subfolder {inside[0]} has: set model.path={path / inside[0]}"
    single = sorted(child for child in path.iterdir() if child.suffix in (".safetensors", ".ckpt"))
    if single:
        return f"but it holds {single[0].name}: set model.path={single[0]}"
    names = sorted(child.name for child in path.iterdir())
    return "found " + (", ".join([*names[:6], *["..."][: len(names) > 6]]) or "an empty folder")


def _closest(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" (nor does {parent})"
    near = difflib.get_close_matches(path.name, [child.name for child in parent.iterdir()], n=1)
    return f"; did you mean {parent / near[0]}" if near else ""
