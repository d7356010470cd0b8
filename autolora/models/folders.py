"""Checks a model folder before it is loaded: its family, its weight files and their hash."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autolora.errors import ModelError

ENCODERS: dict[str, dict[str, str]] = {  # by family: the folders of the text encoders and of their tokenizers
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
LARGE_ENCODERS = {  # by family: the text encoder that downloads often leave out, and its name
    "sd3": ("text_encoder_3", "T5-XXL"),
    "flux": ("text_encoder_2", "T5-XXL"),
    "z_image": ("text_encoder", "Qwen3"),
}
TRANSFORMERS = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux", "ZImagePipeline": "z_image"}
DOWNLOAD_AGAIN = "download or convert the model again"


def denoiser_of(family: str) -> str:
    """Return the name of the folder with the model that denoises."""
    return "transformer" if family in TRANSFORMERS.values() else "unet"


def parts_of(family: str) -> tuple[str, ...]:
    """Return the files and folders that a family's model folder must have."""
    return ("model_index.json", denoiser_of(family), "vae", *ENCODERS[family], *ENCODERS[family].values(), "scheduler")


def expected(family: str) -> str:
    """Return a sentence that says which model is expected."""
    names = ", ".join(_named(part, family) for part in parts_of(family))
    forms = "diffusers folder" if family in TRANSFORMERS.values() else "checkpoint (.safetensors) or diffusers folder"
    return f"expected a {NAMES[family]} {forms} ({names})"


def _named(part: str, family: str) -> str:
    """Return the name of a part, with the name of the encoder if it is a large one."""
    if "." in part:
        return part
    large, kind = LARGE_ENCODERS.get(family, ("", ""))
    return f"{part}/ ({kind})" if part == large else f"{part}/"


def check_folder(path: Path, family: str) -> None:
    """Refuse a path that is not a model folder of this family.

    Raises:
        ModelError: says what the path is, what is expected and what to do.
    """
    expectation = expected(family)
    if not path.is_dir():
        raise ModelError(f"model.path={path} does not exist{_suggestion(path)}; {expectation}")
    if not (path / "model_index.json").is_file():
        raise ModelError(f"model.path={path} has no model_index.json ({_describe_folder(path)}); {expectation}")
    kind = str(read_json(path / "model_index.json").get("_class_name", "pipeline without a name"))
    recognized = recognize_folder(path, kind)
    if recognized is None:
        raise ModelError(f"model.path={path} contains a {kind}; {expectation}")
    if recognized != family:
        raise ModelError(
            f"model.path={path} is {with_article(recognized)} model ({kind}): set model.family={recognized}; "
            f"{expectation}"
        )
    missing = [part for part in parts_of(family) if not (path / part).exists()]
    if missing:
        raise ModelError(
            f"model.path={path} lacks {', '.join(_named(part, family) for part in missing)}; {expectation}: "
            f"{DOWNLOAD_AGAIN}"
        )
    denoiser, vae = (read_json(path / part / "config.json") for part in (denoiser_of(family), "vae"))
    packed = 4 if family == "flux" else 1  # latent cells per input position
    if denoiser.get("in_channels", 4) != packed * vae.get("latent_channels", 4):
        raise ModelError(
            f"model.path={path} is an inpainting model or another special model (its {denoiser_of(family)} has "
            f"{denoiser.get('in_channels')} input channels, its vae {vae.get('latent_channels')} latent channels); "
            "give a plain text-to-image model"
        )


def recognize_folder(folder: Path, pipeline: str) -> str | None:
    """Return the family of a folder with this pipeline class in its index; None: the family is not supported.

    SDXL is recognized by its second text encoder, SD2 by the config of its UNet.
    """
    if pipeline in TRANSFORMERS:
        return TRANSFORMERS[pipeline]
    if (folder / "text_encoder_2").exists() or "XL" in pipeline:
        return "sdxl" if pipeline.startswith("StableDiffusion") and "3" not in pipeline else None
    if not pipeline.startswith("StableDiffusion") or "3" in pipeline:
        return None
    config = folder / "unet" / "config.json"
    return "sd2" if config.is_file() and read_json(config).get("use_linear_projection") else "sd1"


def with_article(family: str) -> str:
    """Return a family's name with its indefinite article."""
    return f"an {NAMES[family]}" if family == "sdxl" else f"a {NAMES[family]}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): {DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object: {DOWNLOAD_AGAIN}")
    return content


def weight_files(part: Path) -> tuple[str | None, list[Path]]:
    """Return the variant to load and its safetensors files: `name.safetensors` if there are such, else `fp16`.

    Raises:
        ModelError: there are no such files.
    """
    files = sorted(part.glob("*.safetensors"))
    plain = [path for path in files if path.name.count(".") == 1]
    half = [path for path in files if path.name.split(".")[1] == "fp16"]
    if not (plain or half):
        raise ModelError(
            f"{part} has no .safetensors weights (.bin and .ckpt files are not loaded, because they "
            "can run code): download .safetensors files, or save the pipeline again with diffusers"
        )
    return (None, plain) if plain else ("fp16", half)


def folder_hash(folder: Path, parts: Sequence[str]) -> str:
    """Return the SHA-256 (first 16 hex digits) over the names and bytes of the weight files that are loaded."""
    digest = hashlib.sha256()
    for part in parts:
        for path in weight_files(folder / part)[1]:
            digest.update(path.relative_to(folder).as_posix().encode())
            _update(digest, path)
    return digest.hexdigest()[:16]


def file_hash(paths: Sequence[Path]) -> str:
    """Return the SHA-256 (first 16 hex digits) over the bytes of files."""
    digest = hashlib.sha256()
    for path in paths:
        _update(digest, path)
    return digest.hexdigest()[:16]


def _update(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)


def _describe_folder(path: Path) -> str:
    """Say what a folder contains instead of a model."""
    subfolders = sorted(child.name for child in path.iterdir() if (child / "model_index.json").is_file())
    if subfolders:
        return f"but its subfolder {subfolders[0]} has one: set model.path={path / subfolders[0]}"
    files = sorted(child for child in path.iterdir() if child.suffix in (".safetensors", ".ckpt"))
    if files:
        return f"but it contains {files[0].name}: set model.path={files[0]}"
    names = sorted(child.name for child in path.iterdir())
    return "it contains " + (", ".join([*names[:6], *["..."][: len(names) > 6]]) or "nothing")


def _suggestion(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" (its folder {parent} does not exist either)"
    near = difflib.get_close_matches(path.name, [child.name for child in parent.iterdir()], n=1)
    return f"; did you mean {parent / near[0]}" if near else ""
