"""Files of every kind of adapter hold what was trained, as autolora and other programs read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.deltas import as_lora, distance, parts_by_layer
from autolora.adapters.formats import kohya_name, layer_paths, layer_weights
from autolora.adapters.kinds import DoRA, LoHa, LoKr
from autolora.adapters.read import read_metadata
from autolora.adapters.settings import Adapter
from autolora.errors import ExportError
from autolora.export import key_names
from autolora.export.metadata import ExportFacts
from autolora.export.readers import PROGRAMS
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from autolora.models.stable_diffusion import StableDiffusion
from tests.adapters.test_contract import KINDS, move
from tests.export.diffusers_log import warnings_at_loading
from tests.export.world import dataset, run

pytestmark = pytest.mark.slow  # trains, renders or loads many models

FACTS = ExportFacts("1girl, zorak", 0.7, "a test", 40)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def trained(model: StableDiffusion, kind: str) -> tuple[State, dict[str, torch.Tensor]]:
    """An adapter that is not zero, and its weight change of each layer."""
    adapter = attach(model.modules, KINDS[kind])
    try:
        adapter.start(0, KINDS[kind], torch.Generator().manual_seed(0))
        move(adapter, size=0.05)
        changes = {
            p: u.dense(0).detach().clone() for (p, _), u in zip(adapter.layers.items(), adapter.deltas, strict=True)
        }
        return adapter.state(0), changes
    finally:
        adapter.detach()


def export(model: StableDiffusion, kind: str, state: State, folder: Path) -> Path:
    return export_lora(state, run(KINDS[kind]), dataset(), model, folder, kind, facts=FACTS, dtype=torch.float32).path


def assert_predicts_as(reference: DiffusersReference, model: StableDiffusion, spec: Adapter, state: State) -> None:
    """Assert that diffusers' UNet with the file predicts what ours predicts with the adapter."""
    noisy = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    context, steps = model.encode_prompts(["1girl", "hat"]), torch.tensor([50, 500])
    conditions = model._added_conditions(noisy, context)
    adapter = attach(model.modules, spec)
    try:
        adapter.load({key: tensor for key, tensor in state.items() if key.startswith("unet.")})
        with torch.no_grad():
            ours = model.predict(noisy, steps, context)
            theirs = reference.pipeline.unet(
                noisy, steps, context.tokens, added_cond_kwargs=conditions, return_dict=False
            )[0]
    finally:
        adapter.detach()
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_every_kind_is_verified_after_writing(kind: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    state, changes = trained(tiny_model, kind)
    half = export_lora(state, run(KINDS[kind]), dataset(), tiny_model, tmp_path, "half", facts=FACTS).path
    result = verify_deltas(state, half, tiny_model)
    assert result.layers == len(changes)
    plain = kind.partition("-")[0] in ("lora", "rslora", "locon", "dylora")
    assert ("kohya sd-scripts" in result.read_by) == plain
    assert bool({"A1111", "ComfyUI"} & set(result.read_by)) == (kind.partition("-")[0] != "dora")
    assert 0 < result.delta_error < 1e-2
    assert verify_deltas(state, export(tiny_model, kind, state, tmp_path), tiny_model).delta_error < 1e-4


def test_a_wrong_file_is_refused(kind: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    state, _ = trained(tiny_model, kind)
    path = export(tiny_model, kind, state, tmp_path)
    tensors = load_file(path)
    key = next(key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)
    tensors[key] = tensors[key] * 1.1
    save_file(tensors, path)
    layer = {kohya_name(path, "sd1"): path for path in layer_paths(state)}[key.partition(".")[0]]
    with pytest.raises(ExportError, match=f"the change of {layer} differs from the trained one"):
        verify_deltas(state, path, tiny_model)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_reads_a_layer_differently_is_named_with_the_layer(
    program: str, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autolora's own reader finds no error: only that program's formula differs."""
    state, changes = trained(tiny_model, "lora")
    path, last = export(tiny_model, "lora", state, tmp_path), max(changes)
    weight = layer_weights(tiny_model.modules)[last]

    def wrong_formula(parts: State, base: torch.Tensor) -> torch.Tensor:
        change = PROGRAMS[program](parts, base)
        return change * 1.1 if torch.equal(base, weight) else change

    monkeypatch.setattr(key_names, "PROGRAMS", {**PROGRAMS, program: wrong_formula})
    with pytest.raises(ExportError, match=f"lora.safetensors in {program}: the change of {last} differs"):
        verify_deltas(state, path, tiny_model)


@pytest.mark.parametrize("kind", ["lora", "rslora", "locon", "dylora"])
def test_diffusers_loads_the_file_and_predicts_the_same(
    kind: str, tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, _ = trained(tiny_model, kind)
    path = export(tiny_model, kind, state, tmp_path)
    reference = DiffusersReference(path, tiny_model_dir, tiny_model)
    assert reference.verify_deltas(state).layers == len(parts_by_layer(state))
    assert_predicts_as(reference, tiny_model, KINDS[kind], state)
    assert warnings_at_loading(path, tiny_model_dir, "sd1", caplog) == []


def test_diffusers_warnings_are_captured(
    tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Diffusers warns of DoRA in kohya's names, because it leaves the magnitudes out."""
    path = export(tiny_model, "dora", trained(tiny_model, "dora")[0], tmp_path)
    assert any("dora" in message.lower() for message in warnings_at_loading(path, tiny_model_dir, "sd1", caplog))


def test_a_dora_in_kohyas_names_is_refused_in_diffusers(
    tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Diffusers leaves the magnitudes out and loads the rest as a LoRA; it needs the plain LoRA instead."""
    state, _ = trained(tiny_model, "dora")
    reference = DiffusersReference(export(tiny_model, "dora", state, tmp_path), tiny_model_dir, tiny_model)
    with pytest.raises(ExportError, match="in diffusers: the change of"):
        reference.verify_deltas(state)


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_programs_read_the_trained_change(
    program: str, kind: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    state, changes = trained(tiny_model, kind)
    layers = parts_by_layer(load_file(export(tiny_model, kind, state, tmp_path)))
    weights = layer_weights(tiny_model.modules)
    for path, expected in changes.items():
        try:
            change = PROGRAMS[program](layers[kohya_name(path, "sd1")], weights[path])
        except NotImplementedError:
            unread = {"ComfyUI": {"ia3"}, "Forge": {"ia3"}, "kohya sd-scripts": {"loha", "lokr", "ia3"}}
            assert kind.partition("-")[0] in unread.get(program, set()) | {"dora"}
            return
        assert torch.allclose(change.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4), path


def test_a_scale_on_whole_lokr_factors_would_be_lost(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """No program applies alpha / dim to whole factors, so a file that keeps them apart would be read wrongly."""
    state, changes = trained(tiny_model, "lokr-whole")
    spec = KINDS["lokr-whole"]
    assert spec.alpha / spec.dim < 0.01
    layers = parts_by_layer(load_file(export(tiny_model, "lokr-whole", state, tmp_path)))
    path, expected = next(iter(changes.items()))
    naive = expected * spec.alpha / spec.dim
    change = PROGRAMS["ComfyUI"](layers[kohya_name(path, "sd1")], layer_weights(tiny_model.modules)[path])
    assert torch.allclose(change, expected, atol=1e-6) and not torch.allclose(change, naive, atol=1e-6)


def test_the_nearest_plain_lora(kind: str, tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path) -> None:
    state, _ = trained(tiny_model, kind)
    weights = layer_weights(tiny_model.modules)
    exact, small = as_lora(state, weights), as_lora(state, weights, 2)
    assert distance(exact, state, weights) < 1e-4
    assert {part for parts in parts_by_layer(small).values() for part in parts} == {
        "lora_down.weight",
        "lora_up.weight",
        "alpha",
    }
    assert all(len(parts["lora_down.weight"]) == 2 for parts in parts_by_layer(small).values())
    nearer = as_lora(state, weights, 128)  # a higher rank than most layers need
    assert distance(nearer, state, weights) < distance(small, state, weights) < 1 or kind == "locon"
    path = export_lora(nearer, run(KINDS[kind]), dataset(), tiny_model, tmp_path, "plain", facts=FACTS).path
    assert verify_deltas(nearer, path, tiny_model).read_by == tuple(PROGRAMS)
    assert DiffusersReference(path, tiny_model_dir, tiny_model).verify_deltas(nearer).layers == len(
        parts_by_layer(state)
    )


@pytest.mark.parametrize(
    ("kind", "module", "algorithm"),
    [
        ("lora", "networks.lora", None),
        ("rslora", "networks.lora", None),
        ("locon", "networks.lora", None),
        ("dora", "lycoris.kohya", "lora"),
        ("loha", "lycoris.kohya", "loha"),
        ("lokr", "lycoris.kohya", "lokr"),
        ("ia3", "lycoris.kohya", "ia3"),
    ],
)
def test_metadata_name_the_module_that_reads_the_file(
    kind: str, module: str, algorithm: str | None, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    state, _ = trained(tiny_model, kind)
    path = export(tiny_model, kind, state, tmp_path)
    metadata, tensors = read_metadata(path), load_file(path)
    assert metadata["ss_network_module"] == module
    if kind not in ("lokr", "ia3"):  # the scale of whole LoKr factors is in the factors
        alphas = {tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha") and "attn" in key}
        assert alphas == {float(metadata["ss_network_alpha"])}
    args = json.loads(metadata["ss_network_args"])
    assert args.get("algo") == algorithm
    assert (kind == "locon") == ("conv_dim" in args)
    assert args.get("dora_wd") == ("True" if kind == "dora" else None)


def test_the_list_has_all_kinds() -> None:
    assert {type(spec) for spec in KINDS.values()} >= {DoRA, LoHa, LoKr}
