"""The metadata and sidecars of exported files, and that a file is complete or does not exist."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from autolora import files
from autolora.adapters.base import State
from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_lora, read_metadata
from autolora.data.caption_recipe import CaptionRecipe
from autolora.errors import ExportError, StorageError
from autolora.export.diffusers_copy import write_diffusers
from autolora.export.metadata import ExportFacts, hashes
from autolora.export.write import ExportedFiles, export_lora, file_stem
from autolora.files import atomic_files
from autolora.models.stable_diffusion import StableDiffusion
from tests.export.world import dataset, random_state, run

SPEC = LoRA(dim=4, alpha=3.3)
FACTS = ExportFacts(
    "1girl, zorak, röd", 0.7, "mona at her best", step=24, notes="bleed 0.04", metadata={"score": "0.91"}
)
CREATED_AT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def state(tiny_model: StableDiffusion) -> State:
    return random_state(tiny_model, SPEC)


def export(state: State, model: StableDiffusion, folder: Path, preview: Image.Image | None = None) -> ExportedFiles:
    return export_lora(
        state, run(SPEC), dataset(), model, folder, "mona", facts=FACTS, preview=preview, created_at=CREATED_AT
    )


@pytest.fixture(scope="module")
def exported(state: State, tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> ExportedFiles:
    return export(state, tiny_model, tmp_path_factory.mktemp("best"), Image.new("RGB", (512, 512), "teal"))


def test_the_three_files_of_an_export(exported: ExportedFiles) -> None:
    names = sorted(path.name for path in exported.path.parent.iterdir())
    assert names == ["mona.json", "mona.png", "mona.safetensors"]
    assert exported.size == exported.path.stat().st_size


def test_factors_are_half_precision_and_alphas_exact(exported: ExportedFiles) -> None:
    tensors = safetensors.torch.load_file(exported.path)
    assert {t.dtype for key, t in tensors.items() if not key.endswith("alpha")} == {torch.float16}
    assert {float(t) for key, t in tensors.items() if key.endswith("alpha")} == {float(torch.tensor(3.3))}
    assert sum(key.endswith("alpha") for key in tensors) == exported.layers


def test_metadata_that_programs_read(exported: ExportedFiles, tiny_model: StableDiffusion) -> None:
    metadata = read_metadata(exported.path)
    expected = {
        "ss_output_name": "mona",
        "ss_base_model_version": "sd_v1_v",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "3.3",
        "ss_sd_model_name": "tiny",
        "ss_clip_skip": "None",
        "ss_v_parameterization": "True",
        "ss_zero_terminal_snr": "True",
        "ss_resolution": "(32, 32)",
        "ss_num_train_images": "20",
        "ss_num_batches_per_epoch": "5",
        "ss_max_train_steps": "10",
        "ss_steps": "6",
        "ss_epoch": "2",
        "ss_seed": "0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "mona",
        "modelspec.resolution": "32x32",
        "modelspec.prediction_type": "v",
        "modelspec.trigger_phrase": "1girl, zorak, röd",
        "modelspec.tags": "1girl, zorak, fit_a, fit_b",
        "modelspec.date": "2030-01-02T03:04:05+00:00",
        "autolora.score": "0.91",
        "autolora.recipe": "guide-adamw",
        "autolora.step": "24",
        "autolora.base_hash": tiny_model.base_hash,
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert float(metadata["ss_training_started_at"]) == CREATED_AT.timestamp()
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_json_metadata(exported: ExportedFiles) -> None:
    metadata = read_metadata(exported.path)
    assert json.loads(metadata["ss_network_args"]) == {}
    assert json.loads(metadata["ss_dataset_dirs"])["2_zorak fit_a"] == {"n_repeats": 2, "img_count": 4}
    tags = json.loads(metadata["ss_tag_frequency"])["2_zorak fit_b"]
    assert tags == {"1girl": 4, "fit_b": 4, "röd \\(x\\)": 4, "zorak": 4}
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [32, 32], "count": 20}
    assert json.loads(metadata["autolora.settings"])["train"]["scale_weight_norms"] == 1.0


def test_metadata_describe_the_captions_and_buckets_of_the_recipe(
    state: State, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """They have the edited captions, both bucket sizes, and the number of class images."""
    plain = run(SPEC)
    edited = replace(
        plain,
        captions=CaptionRecipe(drop_tags=("röd (x)",)),
        train=replace(plain.train, prior_preservation_ratio=0.5, reg_ratio=0.2),
    )
    first, second = dataset().concepts
    wide = replace(second, pictures=tuple(replace(p, bucket=(48, 16)) for p in second.pictures))
    mixed = replace(dataset(), concepts=(first, wide))
    path = export_lora(
        state, edited, mixed, tiny_model, tmp_path, "mona", facts=FACTS, preview=None, created_at=CREATED_AT
    ).path
    metadata = read_metadata(path)
    assert json.loads(metadata["ss_tag_frequency"])["2_zorak fit_b"] == {"1girl": 4, "fit_b": 4, "zorak": 4}
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"].values()
    assert [(b["resolution"], b["count"]) for b in buckets] == [([32, 32], 10), ([48, 16], 10)]
    assert metadata["ss_num_reg_images"] == "12"  # eight to preserve, four to train on


def test_hashes_are_those_of_the_written_bytes(exported: ExportedFiles) -> None:
    content, metadata = exported.path.read_bytes(), read_metadata(exported.path)
    header = int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[8 + header :]).hexdigest()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
    assert len(metadata["sshs_legacy_hash"]) == 8


def test_the_legacy_hash_is_of_a_part_of_the_file_with_training_metadata_alone(tmp_path: Path) -> None:
    """Sd-scripts and A1111 hash the 64 KiB that follow the first MiB."""
    tensors, training = {"a": torch.arange(400_000.0)}, {"ss_seed": "0"}
    metadata = hashes(tensors, training | {"modelspec.title": "changed later"})
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", training)
    with (tmp_path / "a.safetensors").open("rb") as file:
        file.seek(2**20)
        part = file.read(2**16)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(part).hexdigest()[:8] and len(part) == 2**16


def test_sidecar(exported: ExportedFiles) -> None:
    assert json.loads(exported.sidecar.read_text(encoding="utf-8")) == {
        "description": "mona at her best",
        "sd version": "SD1",
        "activation text": "1girl, zorak, röd",
        "preferred weight": 0.7,
        "notes": "bleed 0.04",
    }


def test_the_same_export_is_the_same_bytes(
    state: State, tiny_model: StableDiffusion, exported: ExportedFiles, tmp_path: Path
) -> None:
    again = export(state, tiny_model, tmp_path, Image.new("RGB", (512, 512), "teal"))
    assert again.path.read_bytes() == exported.path.read_bytes()


def test_an_old_preview_is_removed(state: State, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    export(state, tiny_model, tmp_path, Image.new("RGB", (8, 8)))
    assert export(state, tiny_model, tmp_path).preview is None
    assert not (tmp_path / "mona.png").exists()


def test_diverged_and_overflowing_adapters(state: State, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    key = next(k for k in state if "lora_up" in k)
    with pytest.raises(ExportError, match="diverged"):
        export(state | {key: state[key] * torch.nan}, tiny_model, tmp_path)
    with pytest.raises(ExportError, match="float32"):
        export(state | {key: torch.full_like(state[key], 1e6)}, tiny_model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mona.png", "mona.json", "mona.safetensors", "pytorch_lora_weights.safetensors"])
def test_no_space_left_at_any_file_leaves_none(
    name: str, state: State, tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    move = os.replace

    def disk_is_full(source: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    def export_all() -> ExportedFiles:
        with atomic_files(tmp_path) as hidden:
            exported = export(state, tiny_model, hidden, Image.new("RGB", (8, 8)))
            exported = replace(exported, diffusers=write_diffusers(state, hidden / "diffusers"))
        return exported.moved(hidden, tmp_path)

    monkeypatch.setattr(files.os, "replace", disk_is_full)
    with pytest.raises(StorageError, match=f"{name}: no space left"):
        export_all()
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    exported = export_all()
    assert {exported.path, exported.sidecar, exported.preview, exported.diffusers} == {*tmp_path.rglob("*.*")}


@pytest.mark.parametrize(
    ("name", "stem"),
    [("mona", "mona"), ("a:b<c>", "a_b_c"), ("../up", "up"), ("mona (game), été", "mona (game)_ été"), ("x.", "x")],
)
def test_file_stem(name: str, stem: str) -> None:
    assert file_stem(name) == stem


def test_a_name_without_usable_characters() -> None:
    with pytest.raises(ExportError, match="no usable file name"):
        file_stem("../..")


def test_another_architecture(state: State, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    class Other:
        architecture, prediction_type = "cascade", "epsilon"

    with pytest.raises(ExportError, match="cascade"):
        export_lora(state, run(SPEC), dataset(), Other(), tmp_path, "x", facts=FACTS)  # type: ignore[arg-type]


def test_unreadable_files(exported: ExportedFiles, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(exported.path.read_bytes()[:-100])
    with pytest.raises(ExportError, match="cut short or broken"):
        read_lora(cut, tiny_model)
    text = tmp_path / "lora.pt"
    text.write_text("hello")
    with pytest.raises(ExportError, match=r"not a \.safetensors file"):
        read_lora(text, tiny_model)
    with pytest.raises(ExportError, match="does not exist"):
        read_lora(tmp_path / "none.safetensors", tiny_model)
    with pytest.raises(ExportError, match=r"is a folder.*cut\.safetensors"):
        read_lora(tmp_path, tiny_model)


def test_the_preferred_weight_goes_into_the_usage_hint(
    state: State, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    facts = replace(FACTS, preferred_weight=0.85)
    path = export_lora(state, run(SPEC), dataset(), tiny_model, tmp_path, "m", facts=facts, created_at=CREATED_AT).path
    assert read_metadata(path)["modelspec.usage_hint"] == "weight 0.85; prompt: 1girl, zorak, röd"
