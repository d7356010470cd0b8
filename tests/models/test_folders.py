"""Every wrong model path gets a message of one line that says what the path is and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autolora.errors import ModelError
from autolora.models.flow import FlowModel
from autolora.models.sources import find_source

Spoil = Callable[[Path], Path | None]  # spoils a good model folder, or returns another path


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_tensor(path: Path, key: str) -> Path:
    save_file({key: torch.zeros(1)}, path)
    return path


def unet_file(path: Path, channels: int, *keys: str) -> Path:
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3)}
    save_file({**first, **{key: torch.zeros(1) for key in keys}}, path)
    return path


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def without(path: Path, *parts: str) -> None:
    for part in parts:
        shutil.rmtree(path / part)


def rewrite(path: Path, content: str) -> None:
    path.write_text(content)


def empty(path: Path) -> Path:
    path.mkdir()
    return path


def folder_with_file(path: Path, key: str) -> Path:
    path.mkdir()
    one_tensor(path / "mona.safetensors", key)
    return path


CASES: dict[str, tuple[Spoil, str]] = {
    "missing": (
        lambda p: p.parent / "modle",
        r"does not exist; did you mean .*model\b.*expected a Stable Diffusion 1\.x checkpoint",
    ),
    "missing parent": (
        lambda p: p.parent / "no" / "model",
        r"does not exist \(its folder .*no does not exist either\)",
    ),
    "subfolder": (lambda p: p.parent, r"its subfolder model has one: set model\.path="),
    "no index": (lambda p: (p / "model_index.json").unlink(), r"no model_index\.json \(it contains scheduler, "),
    "empty": (lambda p: empty(p.parent / "empty"), "it contains nothing"),
    "sdxl": (lambda p: (p / "text_encoder_2").mkdir(), "is an SDXL model"),
    "sdxl by name": (
        lambda p: edit(p / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "is an SDXL",
    ),
    "another": (lambda p: edit(p / "model_index.json", _class_name="WanPipeline"), "contains a WanPipeline"),
    "bad index": (lambda p: rewrite(p / "model_index.json", "{"), "cannot be read as JSON"),
    "index is a list": (lambda p: rewrite(p / "model_index.json", "[]"), "is not a JSON object"),
    "parts": (
        lambda p: without(p, "vae", "scheduler"),
        r"lacks vae/, scheduler/; expected",
    ),
    "inpainting": (
        lambda p: edit(p / "unet" / "config.json", in_channels=9),
        "inpainting .* has 9 input channels",
    ),
    "sd2": (
        lambda p: edit(p / "unet" / "config.json", use_linear_projection=True),
        r"is a Stable Diffusion 2\.x model .*: set model\.family=sd2",
    ),
    "lora file": (
        lambda p: one_tensor(p.parent / "a.safetensors", "lora_unet_x.lora_down.weight"),
        "is a LoRA file",
    ),
    "lora in folder": (
        lambda p: folder_with_file(p.parent / "x", "lora_te_x.alpha"),
        r"but it contains mona\.safetensors: set model\.path=.*mona\.safetensors",
    ),
    "no checkpoint": (
        lambda p: one_tensor(p.parent / "a.safetensors", "some.weight"),
        r"is not a checkpoint: it has no model\.diffusion_model\.input_blocks\.0\.0\.weight \(its keys are some",
    ),
    "flux checkpoint": (
        lambda p: one_tensor(p.parent / "a.safetensors", "double_blocks.0.img_attn.qkv.weight"),
        "is a Flux checkpoint",
    ),
    "unet alone": (lambda p: unet_file(p.parent / "a.safetensors", 4), "is a UNet without its text encoders"),
    "inpainting checkpoint": (lambda p: unet_file(p.parent / "a.safetensors", 9), "9 input channels"),
    "refiner": (
        lambda p: unet_file(p.parent / "a.safetensors", 4, "conditioner.embedders.0.model.ln_final.bias"),
        "is an SDXL refiner",
    ),
    "no vae": (
        lambda p: unet_file(p.parent / "a.safetensors", 4, "cond_stage_model.transformer.x"),
        "has no VAE",
    ),
    "broken file": (
        lambda p: write(p.parent / "a.safetensors", b"hello"),
        r"broken \.safetensors file",
    ),
    "ckpt": (
        lambda p: write(p.parent / "a.ckpt", b"x"),
        r"is a \.ckpt file: such files can run code",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_path_is_refused(case: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    spoil, message = CASES[case]
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    assert find_source(str(folder), "sd1") == folder
    with pytest.raises(ModelError, match=message) as error:
        find_source(str(spoil(folder) or folder), "sd1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "part", "kind"),
    [("sd3", "text_encoder_3", "T5-XXL"), ("flux", "text_encoder_2", "T5-XXL"), ("z_image", "text_encoder", "Qwen3")],
)
def test_a_missing_large_text_encoder_is_named(
    family: str, part: str, kind: str, tiny_flows: dict[str, FlowModel], tmp_path: Path
) -> None:
    folder = shutil.copytree(str(tiny_flows[family].source), tmp_path / "model")
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=rf"lacks {part}/ \({kind}\); expected .*{part}/ \({kind}\)"):
        find_source(str(folder), family)
