"""LoRA files of the flow-matching families have diffusers' names, and render in diffusers as they were trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.deltas import as_lora, distance
from autolora.adapters.formats import layer_delta, layer_paths, layer_weights
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from autolora.adapters.read import read_lora, read_metadata
from autolora.errors import ConfigError, ExportError
from autolora.export.compatibility import check_compatibility
from autolora.export.diffusers_copy import write_diffusers
from autolora.export.kohya_command import kohya_command
from autolora.export.metadata import ExportFacts
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.resize import Resizer, write_resized
from autolora.export.verify import compare_renders, verify_deltas
from autolora.export.write import as_in_file, export_lora
from autolora.models.flow import FlowModel
from autolora.models.settings import RenderSettings
from autolora.sampling import RenderRequest, render
from tests import tiny_flow
from tests.adapters.test_contract import move
from tests.export.world import dataset, run

pytestmark = pytest.mark.slow  # trains, renders or loads many models

FACTS = ExportFacts("1girl, zorak", 0.7, "a test", 40)
OTHER_KINDS = {"dora": DoRA(dim=4, alpha=2), "loha": LoHa(dim=4, alpha=2), "lokr": LoKr(dim=2, alpha=1)}
# With a text encoder, in diffusers' names; Forge knows diffusers' names of Flux only.
READ_BY = {"sd3": ("ComfyUI",), "flux": ("ComfyUI", "Forge"), "z_image": ("ComfyUI",)}
VERSIONS = {
    "sd3": ("sd3", "stable-diffusion-3/lora", "Unknown"),
    "flux": ("flux1", "flux-1-dev/lora", "Flux"),
    "z_image": ("z_image", "z-image/lora", "Unknown"),
}


@pytest.fixture(params=tiny_flow.FAMILIES)
def model(request: pytest.FixtureRequest, tiny_flows: dict[str, FlowModel]) -> FlowModel:
    return tiny_flows[request.param]


def trained(model: FlowModel, spec: LoRA | DyLoRA, size: float = 0.05) -> State:
    adapter = attach(model.modules, spec)
    try:
        adapter.start(0, spec, torch.Generator().manual_seed(0))
        move(adapter, size=size)
        return adapter.state(0)
    finally:
        adapter.detach()


def spec_of(model: FlowModel) -> LoRA:
    return LoRA(dim=4, alpha=2, text_encoder=len(model.modules) > 1)


def test_diffusers_renders_a_lora_as_autolora_does(model: FlowModel, tmp_path: Path) -> None:
    spec = spec_of(model)
    state = trained(model, spec, size=0.3)
    exported = export_lora(state, run(spec), dataset(), model, tmp_path, "zorak", facts=FACTS)
    keys = load_file(exported.path).keys()
    assert all(".lora_A." in key or ".lora_B." in key for key in keys)
    assert all(".text_model." in key for key in keys if key.startswith("text_encoder"))
    assert verify_deltas(state, exported.path, model).read_by == READ_BY[model.architecture]
    assert model.source is not None
    reference = DiffusersReference(exported.path, model.source, model)
    assert reference.verify_deltas(state).layers == exported.layers

    requests = [RenderRequest("1girl, mona", 7, weight) for weight in (1.0, 0.5, 0.0)]
    negative = "" if model.guidance_embeds else "red"
    settings = RenderSettings(
        num_inference_steps=4, guidance_scale=3.0, scheduler="euler", batch_size=2, negative_prompt=negative
    )
    adapter = attach(model.modules, spec)
    try:
        adapter.start(0, spec, torch.Generator().manual_seed(0))
        adapter.load(read_lora(exported.path, model))
        ours = render(model, requests, settings, adapter)
    finally:
        adapter.detach()
    compare_renders(ours, reference.render(requests, settings), most=0.1)
    assert abs(ours[0].astype(int) - ours[2].astype(int)).mean() > 1


def test_the_scored_adapter_is_what_the_file_holds(model: FlowModel, tmp_path: Path) -> None:
    """The scale is multiplied into the factors, and rounded with them."""
    spec = spec_of(model)
    state = trained(model, spec)
    path = export_lora(state, run(spec), dataset(), model, tmp_path, "zorak", facts=FACTS).path
    rounded, read = as_in_file(state, model, torch.float16), read_lora(path, model)
    assert rounded.keys() == read.keys() and all(torch.equal(rounded[key], tensor) for key, tensor in read.items())


def test_a_lora_of_a_16_bit_model_is_verified_without_the_parts_it_leaves_alone(
    model: FlowModel, tmp_path: Path
) -> None:
    source, spec = Path(str(model.source)), spec_of(model)
    half = tiny_flow.load_tiny_flow(source, model.architecture, dtype="bfloat16")
    state = trained(half, spec)
    exported = export_lora(state, run(spec), dataset(), half, tmp_path, "zorak", facts=FACTS)
    reference = DiffusersReference(exported.path, source, half)
    assert not reference.can_render and reference.verify_deltas(state).layers == exported.layers
    last = half.text_encoder_names[-1]
    assert (getattr(reference.pipeline, last) is None) == (last not in half.modules)
    assert verify_deltas(state, exported.path, half).read_by == READ_BY[half.architecture]


def test_metadata_name_the_base_model(model: FlowModel, tmp_path: Path) -> None:
    spec = spec_of(model)
    exported = export_lora(trained(model, spec), run(spec), dataset(), model, tmp_path, "zorak", facts=FACTS)
    metadata = read_metadata(exported.path)
    version, spec_name, webui = VERSIONS[model.architecture]
    assert (metadata["ss_base_model_version"], metadata["modelspec.architecture"]) == (version, spec_name)
    assert not {"modelspec.prediction_type", "ss_network_module"} & metadata.keys()
    assert json.loads(exported.sidecar.read_text())["sd version"] == webui
    assert kohya_command(run(spec), dataset(), model, 4).text == ""


def test_programs_that_read_the_file(model: FlowModel, tmp_path: Path) -> None:
    spec = spec_of(model)
    exported = export_lora(trained(model, spec), run(spec), dataset(), model, tmp_path, "zorak", facts=FACTS)
    results = check_compatibility(exported.path, model).results
    assert {result.program for result in results if result.correct} == {*READ_BY[model.architecture], "diffusers"}
    assert {"A1111", "InvokeAI", "kohya sd-scripts"} <= {result.program for result in results if result.unreadable}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_have_lycoris_names_and_a_plain_lora_beside_them(
    kind: str, model: FlowModel, tmp_path: Path
) -> None:
    state = trained(model, OTHER_KINDS[kind])
    path = export_lora(state, run(OTHER_KINDS[kind]), dataset(), model, tmp_path, kind, facts=FACTS).path
    assert all(key.startswith("lycoris_") for key in load_file(path))
    assert verify_deltas(state, path, model).read_by == (() if kind == "dora" else READ_BY[model.architecture])
    weights = layer_weights(model.modules)
    plain = as_lora(state, weights, 16)
    written = export_lora(plain, run(LoRA(dim=16)), dataset(), model, tmp_path, f"{kind}-lora", facts=FACTS).path
    verify_deltas(plain, written, model)
    assert distance(read_lora(path, model), state, weights) < 1e-2
    assert model.source is not None
    DiffusersReference(written, model.source, model).verify_deltas(plain)
    if kind == "dora":
        DiffusersReference(write_diffusers(state, tmp_path / "copy"), model.source, model).verify_deltas(state)


def test_ia3_is_refused_for_layers_with_a_bias(model: FlowModel, tmp_path: Path) -> None:
    if model.architecture != "z_image":
        with pytest.raises(ConfigError, match=r"IA3 does not suit this model: transformer\..* has a bias"):
            trained(model, IA3())
        return
    state = trained(model, IA3())
    path = export_lora(state, run(IA3()), dataset(), model, tmp_path, "ia3", facts=FACTS).path
    assert verify_deltas(state, path, model).read_by == ()  # the plain LoRA beside it is for them


def test_a_resized_file_has_the_same_names(model: FlowModel, tmp_path: Path) -> None:
    spec = LoRA(dim=4, alpha=2)
    source = export_lora(trained(model, spec), run(spec), dataset(), model, tmp_path, "zorak", facts=FACTS).path
    smaller = Resizer(read_lora(source, model), layer_weights(model.modules), None).to(2)
    path = write_resized(smaller, 2, source, read_metadata(source), model, tmp_path, torch.float16)
    verify_deltas(smaller, path, model)
    assert load_file(path).keys() == load_file(source).keys()
    assert "ss_network_module" not in read_metadata(path)


def test_files_of_other_trainers_are_read(model: FlowModel, tmp_path: Path) -> None:
    state = trained(model, LoRA(dim=4, alpha=4))
    path = export_lora(state, run(LoRA()), dataset(), model, tmp_path, "zorak", facts=FACTS, dtype=torch.float32).path
    tensors, weights = load_file(path), layer_weights(model.modules)
    for prefix in ("diffusion_model.", ""):  # the prefixes of ai-toolkit and of peft
        renamed = {key.replace("transformer.", prefix, 1): tensor for key, tensor in tensors.items()}
        save_file(renamed, tmp_path / "other.safetensors")
        assert distance(read_lora(tmp_path / "other.safetensors", model), state, weights) < 1e-6


def test_kohyas_files_for_flux_are_read(tiny_flows: dict[str, FlowModel], tmp_path: Path) -> None:
    """In these files, queries, keys and values are one layer."""
    model, generator = tiny_flows["flux"], torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 32, generator=generator), torch.randn(96, 4, generator=generator)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "kohya.safetensors")
    state, change = read_lora(tmp_path / "kohya.safetensors", model), up @ down * 0.5
    for part, expected in zip("qkv", change.chunk(3), strict=True):
        path = f"transformer.transformer_blocks.0.attn.to_{part}"
        torch.testing.assert_close(layer_delta(state, path), expected, atol=1e-5, rtol=1e-4)
    assert len(layer_paths(state)) == 3
    results = check_compatibility(tmp_path / "kohya.safetensors", model).results
    assert [r.program for r in results if r.correct] == [
        "ComfyUI",
        "Forge",
        "InvokeAI",
        "kohya sd-scripts",
        "diffusers",
    ]


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_files_of_other_models_are_refused(family: str, tiny_flows: dict[str, FlowModel], tmp_path: Path) -> None:
    save_file({"lora_unet_nothing_known.lora_down.weight": torch.zeros(4, 32)}, tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=r"no layers for lora_unet_nothing_known .* made for another model"):
        read_lora(tmp_path / "a.safetensors", tiny_flows[family])
