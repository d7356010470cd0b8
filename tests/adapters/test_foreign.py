"""Files of other programs, written by those programs' own code, change the weights as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from autolora.adapters.adapter_set import attach
from autolora.adapters.formats import delta, kohya_name, layer_paths
from autolora.errors import ExportError
from autolora.export.read import lora_of, read_lora
from autolora.models import StableDiffusion

TARGETS = ["to_q", "to_out.0", "proj_in", "ff.net.2"]


def trained(model: StableDiffusion, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """A peft model of the UNet with random factors, and its change of each layer by our paths."""
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


def assert_same(state: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    assert set(layer_paths(state)) == set(changes)
    for path, change in changes.items():
        assert torch.allclose(delta(state, path), change, atol=1e-5), path


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 3}}], ids=str)
def test_a_peft_folder(more: dict[str, Any], tiny_model: StableDiffusion, tmp_path: Path) -> None:
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
    facts = {"unet_lora_adapter_metadata": {"r": 4, "lora_alpha": 2}} if with_metadata else {}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **facts)
    state = read_lora(tmp_path / "pytorch_lora_weights.safetensors", tiny_model)
    scale = 1.0 if with_metadata else 2.0  # without metadata the file does not know its alpha
    assert_same(state, {path: change * scale for path, change in changes.items()})


@pytest.mark.parametrize("old", ["unet.{layer}.lora.{half}.weight", "unet.{block}.processor.{kind}_lora.{half}.weight"])
def test_names_of_older_diffusers(old: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
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
def test_lycoris_layers_become_the_lora_of_the_same_change(
    config: Any, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
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
    adapter = attach(tiny_model.modules, lora_of(state))
    try:
        adapter.load(state)
    finally:
        adapter.detach()


@pytest.mark.parametrize(
    ("tensors", "said"),
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
def test_what_does_not_fit_is_said(
    tensors: dict[str, Tensor], said: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(ExportError, match=said):
        read_lora(tmp_path / "wrong.safetensors", tiny_model)


def test_dora_of_diffusers_is_refused(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, _ = trained(tiny_model, LoraConfig(r=4, target_modules=TARGETS))
    wrapped.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    facts = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.use_dora": True})}
    save_file(tensors, tmp_path / "dora.safetensors", metadata=facts)
    with pytest.raises(ExportError, match="DoRA"):
        read_lora(tmp_path / "dora.safetensors", tiny_model)
