"""Files of other programs, written by their own code, make the same changes of weight in autolora as there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.deltas import delta_weight
from autolora.adapters.formats import kohya_name, layer_delta, layer_paths, layer_weights
from autolora.adapters.read import lora_of, read_lora
from autolora.errors import ExportError
from autolora.models.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PART_NAMES = {LoHaConfig: ("hada", "alpha"), LoKrConfig: ("lokr", "alpha")}
TARGETS = ["to_q", "to_out.0", "proj_in", "ff.net.2"]


def trained(model: StableDiffusion, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a peft model of the UNet with random factors, and its change of each layer by autolora's paths."""
    unet = UNet2DConditionModel.from_config(model.unet.config)
    wrapped = get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
            assert "lora_" in name or "hada_" in name or "lokr_" in name
    changes = {
        f"unet.{name.removeprefix('base_model.model.')}": module.get_delta_weight("default").flatten(1).detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert len(changes) > 8
    return wrapped, changes


def deltas_by_path(adapter: AdapterSet) -> list[tuple[str, Any]]:
    return [(path, layer.delta) for path, layer in adapter.layers.items() if layer.delta]


def assert_same(state: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    assert set(layer_paths(state)) == set(changes)
    for path, expected in changes.items():
        assert torch.allclose(layer_delta(state, path), expected, atol=1e-5), path


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 3}}], ids=str)
def test_a_folder_of_peft(more: dict[str, Any], tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, changes = trained(tiny_model, LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS, **more))
    wrapped.save_pretrained(tmp_path)
    assert_same(read_lora(tmp_path / "adapter_model.safetensors", tiny_model), changes)


def test_peft_without_its_config_is_refused(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, _ = trained(tiny_model, LoraConfig(r=4, target_modules=TARGETS))
    wrapped.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ExportError, match=r"adapter_config\.json"):
        read_lora(tmp_path / "adapter_model.safetensors", tiny_model)


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_file_of_diffusers(with_metadata: bool, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, changes = trained(tiny_model, LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS))
    layers = get_peft_model_state_dict(wrapped)
    layers = {key.removeprefix("base_model.model."): value for key, value in layers.items()}
    metadata = {"unet_lora_adapter_metadata": {"r": 4, "lora_alpha": 2}} if with_metadata else {}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **metadata)
    state = read_lora(tmp_path / "pytorch_lora_weights.safetensors", tiny_model)
    scale = 1.0 if with_metadata else 2.0  # without metadata the file does not know its alpha
    assert_same(state, {path: change * scale for path, change in changes.items()})


@pytest.mark.parametrize("old", ["unet.{layer}.lora.{half}.weight", "unet.{block}.processor.{kind}_lora.{half}.weight"])
def test_key_names_of_older_diffusers_versions(old: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    down, up = torch.randn(4, 64), torch.randn(64, 4)
    tensors = {}
    for kind, layer in (("to_q", "to_q"), ("to_out", "to_out.0")):
        for half, tensor in (("down", down), ("up", up)):
            tensors[old.format(layer=f"{block}.{layer}", block=block, kind=kind, half=half)] = tensor.clone()
    save_file(tensors, tmp_path / "old.safetensors")
    state = read_lora(tmp_path / "old.safetensors", tiny_model)
    assert_same(state, {f"unet.{block}.{layer}": up @ down for layer in ("to_q", "to_out.0")})


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=3, alpha=2, target_modules=TARGETS),
        LoKrConfig(r=3, alpha=2, target_modules=TARGETS),
        LoKrConfig(r=3, alpha=2, target_modules=TARGETS, decompose_both=True),
        LoKrConfig(r=999, alpha=999, target_modules=TARGETS),
    ],
    ids=["loha", "lokr", "lokr-both", "lokr-full"],
)
def test_lycoris_layers_keep_their_kind(config: Any, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, changes = trained(tiny_model, config)
    tensors = {}
    for key, tensor in get_peft_model_state_dict(wrapped).items():
        layer, _, part = key.removeprefix("base_model.model.").rpartition(".")
        name = kohya_name(f"unet.{layer}", "sd1")
        tensors[f"{name}.{part}"] = tensor.clone()
        tensors[f"{name}.alpha"] = torch.tensor(float(config.alpha))
    save_file(tensors, tmp_path / "lycoris.safetensors")
    state = read_lora(tmp_path / "lycoris.safetensors", tiny_model)
    assert_same(state, changes)
    assert {key.rpartition(".")[2][:4] for key in state} == {name[:4] for name in PART_NAMES[type(config)]}
    adapter = attach(tiny_model.modules, lora_of(state))
    try:
        adapter.load(state)
        assert all(torch.allclose(d.dense(0).flatten(1), changes[p], atol=1e-5) for p, d in deltas_by_path(adapter))
    finally:
        adapter.detach()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=[*TARGETS, "conv1"]),
        LoHaConfig(r=3, alpha=2, target_modules=TARGETS),
        LoHaConfig(r=3, alpha=2, use_effective_conv2d=True, target_modules=["conv1"]),
        LoKrConfig(r=3, alpha=2, decompose_both=True, target_modules=TARGETS),
        LoKrConfig(r=999, alpha=333, target_modules=TARGETS),
        IA3Config(target_modules=["to_k", "to_v", "ff.net.2"], feedforward_modules=["ff.net.2"]),
    ],
    ids=["dora", "loha", "loha-effective", "lokr-both", "lokr-whole", "ia3"],
)
def test_a_folder_of_peft_of_another_kind(config: Any, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """The changes equal those of the weights that peft merges."""
    unet = UNet2DConditionModel.from_config(tiny_model.unet.config)
    unet.load_state_dict(tiny_model.unet.state_dict())
    wrapped = get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    wrapped.save_pretrained(tmp_path)
    state = read_lora(tmp_path / "adapter_model.safetensors", tiny_model)
    merged, weights = wrapped.merge_and_unload(), layer_weights(tiny_model.modules)
    assert len(layer_paths(state)) > 5
    for path in layer_paths(state):
        expected = merged.get_submodule(path.removeprefix("unet.")).weight - weights[path]
        assert torch.allclose(layer_delta(state, path, weights[path]), expected.detach().flatten(1), atol=1e-5), path
    adapter = attach(tiny_model.modules, lora_of(state))
    try:
        adapter.load(state)
        assert all(type(delta).__name__ == "PeftLayer" for _, delta in deltas_by_path(adapter))
    finally:
        adapter.detach()


def test_ia3_of_peft_on_a_layer_with_a_bias_is_refused(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped = get_peft_model(
        UNet2DConditionModel.from_config(tiny_model.unet.config),
        IA3Config(target_modules=["proj_in"], feedforward_modules=[]),
    )
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="has a bias"):
        read_lora(tmp_path / "adapter_model.safetensors", tiny_model)


CONV = "mid_block.resnets.0.conv1"
PROJ = "mid_block.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(CONV, "loha-tucker"), (CONV, "locon-tucker"), (PROJ, "dora-by-input"), (PROJ, "ia3-on-a-bias")],
)
def test_rare_lycoris_layers(layer: str, kind: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """A Tucker LoCon keeps its rank; a layer that no peft layer can hold becomes the plain LoRA of the same change."""
    path, name, weights = f"unet.{layer}", kohya_name(f"unet.{layer}", "sd1"), layer_weights(tiny_model.modules)
    weight = weights[path]
    out, inputs, *kernel = weight.shape
    shapes = {
        "loha-tucker": {f"hada_w{i}_a": (2, out) for i in (1, 2)}
        | {f"hada_w{i}_b": (2, inputs) for i in (1, 2)}
        | {f"hada_t{i}": (2, 2, *kernel) for i in (1, 2)},
        "locon-tucker": {
            "lora_down.weight": (2, inputs, 1, 1),
            "lora_up.weight": (out, 2, 1, 1),
            "lora_mid.weight": (2, 2, *kernel),
        },
        "dora-by-input": {
            "lora_down.weight": (2, *weight.shape[1:]),
            "lora_up.weight": (out, 2, *(1,) * len(kernel)),
            "dora_scale": (1, *weight.shape[1:]),
        },
        "ia3-on-a-bias": {"weight": (out,)},
    }[kind]
    generator = torch.Generator().manual_seed(0)
    parts = {part: torch.randn(shape, generator=generator) * 0.3 for part, shape in shapes.items()}
    parts |= {"on_input": torch.tensor(0)} if kind == "ia3-on-a-bias" else {"alpha": torch.tensor(1.0)}
    save_file({f"{name}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "rare.safetensors")
    state = read_lora(tmp_path / "rare.safetensors", tiny_model)
    assert torch.allclose(layer_delta(state, path, weight), delta_weight(parts, weight), atol=1e-4)
    assert any("hada_t1" in key for key in state) == (kind == "loha-tucker")
    if kind == "locon-tucker":
        assert state[f"{path}.lora_down.weight"].shape == (2, inputs, *kernel)
    elif kind != "loha-tucker":
        assert {key.removeprefix(f"{path}.") for key in state} == {"lora_down.weight", "lora_up.weight", "alpha"}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"unet.nowhere.lora_A.weight": torch.zeros(2, 4), "unet.nowhere.lora_B.weight": torch.zeros(4, 2)},
            "no layer",
        ),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 64)}, "only one of its two"),
        (
            {
                "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 9),
                "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.zeros(64, 2),
            },
            "does not fit",
        ),
        ({"lora_unet_nowhere.hada_w1_a": torch.zeros(4, 2)}, "no layer"),
        ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.zeros(64, 2)}, "incomplete"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(
    tensors: dict[str, Tensor], message: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(ExportError, match=message):
        read_lora(tmp_path / "wrong.safetensors", tiny_model)


@pytest.mark.parametrize("text", ["", "{", "[4]", "\xff"], ids=["empty", "half", "list", "bytes"])
def test_broken_settings_are_reported(text: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Both peft's settings beside the file and diffusers' in its metadata."""
    trained(tiny_model, LoraConfig(r=4, target_modules=TARGETS))[0].save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match=r"adapter_config\.json beside it (is broken|holds list)"):
        read_lora(tmp_path / "adapter_model.safetensors", tiny_model)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "own.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(ExportError, match=r"its lora_adapter_metadata (is broken|holds list)"):
        read_lora(tmp_path / "own.safetensors", tiny_model)


def test_dora_of_diffusers_without_magnitudes_is_refused(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, _ = trained(tiny_model, LoraConfig(r=4, target_modules=TARGETS))
    wrapped.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.use_dora": True})}
    save_file(tensors, tmp_path / "dora.safetensors", metadata=metadata)
    with pytest.raises(ExportError, match="DoRA"):
        read_lora(tmp_path / "dora.safetensors", tiny_model)
