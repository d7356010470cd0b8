"""LoRA files have the key names and shapes of kohya's scripts, and reading them back changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.formats import from_kohya, kohya_name, layer_delta, layer_paths, layer_shapes, scaled, to_kohya
from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_file
from autolora.errors import ExportError
from autolora.models.stable_diffusion import StableDiffusion
from tests.export.world import random_state

SPEC = LoRA(dim=4, alpha=3.0, text_encoder=True)


@pytest.fixture(scope="module")
def state(tiny_model: StableDiffusion) -> State:
    return random_state(tiny_model, SPEC)


def test_round_trip(state: State, tiny_model: StableDiffusion) -> None:
    back = from_kohya(to_kohya(state, "sd1"), "sd1", layer_shapes(tiny_model.modules))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_names_of_stable_diffusion_1_5() -> None:
    """kohya's `networks.lora` writes 192 layers of the UNet and 72 of the text encoder for SD 1.5."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        adapter = attach({"unet": unet, "text_encoder": text}, LoRA(dim=1, text_encoder=True))
    names = {kohya_name(path, "sd1") for path in adapter.layers}
    assert sum(name.startswith("lora_unet_") for name in names) == 192
    assert sum(name.startswith("lora_te_text_model_encoder_layers_") for name in names) == 72
    assert len(names) == 192 + 72
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj" in names
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0" in names
    assert "lora_unet_up_blocks_1_attentions_0_proj_in" in names
    assert "lora_te_text_model_encoder_layers_11_mlp_fc2" in names


def test_convolutions_keep_four_dimensions(state: State) -> None:
    down = state["unet.down_blocks.0.attentions.0.proj_in.lora_down.weight"]
    assert tuple(down.shape) == (4, 32, 1, 1)
    assert state["unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.lora_up.weight"].dim() == 2


def test_linear_weights_can_be_loaded_into_1x1_convolutions(state: State, tiny_model: StableDiffusion) -> None:
    flat = {key: value.flatten(1) if value.dim() == 4 else value for key, value in to_kohya(state, "sd1").items()}
    back = from_kohya(flat, "sd1", layer_shapes(tiny_model.modules))
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_an_attached_adapter_does_not_change_the_layers_shapes(tiny_model: StableDiffusion) -> None:
    before = layer_shapes(tiny_model.modules)
    adapter = attach(tiny_model.modules, SPEC)
    try:
        assert layer_shapes(tiny_model.modules) == before
    finally:
        adapter.detach()


def test_a_missing_alpha_means_scale_1(state: State, tiny_model: StableDiffusion) -> None:
    tensors = {key: value for key, value in to_kohya(state, "sd1").items() if not key.endswith("alpha")}
    back = from_kohya(tensors, "sd1", layer_shapes(tiny_model.modules))
    path = layer_paths(back)[0]
    expected = state[f"{path}.lora_up.weight"].flatten(1) @ state[f"{path}.lora_down.weight"].flatten(1)
    torch.testing.assert_close(layer_delta(back, path), expected)


def test_delta_is_scaled_by_alpha_over_rank() -> None:
    state = {"a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.ones(5, 2), "a.alpha": torch.tensor(1.0)}
    torch.testing.assert_close(layer_delta(state, "a"), torch.ones(5, 3))


@pytest.mark.parametrize("with_alpha", [True, False])
def test_scaling_an_adapter_multiplies_every_delta(state: State, with_alpha: bool) -> None:
    original = {key: tensor for key, tensor in state.items() if with_alpha or not key.endswith(".alpha")}
    scaled_state = scaled(original, 1.2)
    assert layer_paths(scaled_state) == layer_paths(original)
    for path in layer_paths(original):
        torch.testing.assert_close(layer_delta(scaled_state, path), 1.2 * layer_delta(original, path))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "SDXL"),
        ("lora_unet_input_blocks_4_1_proj_in.alpha", "SDXL"),
        ("lora_unet_mid_block_attentions_7_proj_in.alpha", "made for another model"),
        ("model.diffusion_model.out.2.weight", "whole checkpoint"),
        ("weight", "no LoRA file"),
    ],
)
def test_the_message_says_what_kind_of_file_it_is(key: str, message: str, tiny_model: StableDiffusion) -> None:
    with pytest.raises(ExportError, match=message):
        from_kohya({key: torch.zeros(1)}, "sd1", layer_shapes(tiny_model.modules))


def test_factors_of_other_shapes_and_missing_factors_are_refused(state: State, tiny_model: StableDiffusion) -> None:
    tensors = to_kohya(state, "sd1")
    name = kohya_name(layer_paths(state)[0], "sd1")
    wide = tensors | {f"{name}.lora_down.weight": torch.zeros(4, 1024)}
    with pytest.raises(ExportError, match="made for another base model"):
        from_kohya(wide, "sd1", layer_shapes(tiny_model.modules))
    del tensors[f"{name}.lora_up.weight"]
    with pytest.raises(ExportError, match="incomplete"):
        from_kohya(tensors, "sd1", layer_shapes(tiny_model.modules))


def test_an_unknown_architecture_or_part_is_refused(state: State) -> None:
    with pytest.raises(ExportError, match="sd9"):
        to_kohya(state, "sd9")
    with pytest.raises(ExportError, match="not part of an adapter"):
        to_kohya({"unet.a.bias": torch.zeros(1)}, "sd1")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("x.lora_up.weight", torch.tensor([[1.0, torch.nan]]), "holds NaN or infinite weights"),
        ("x.lora_up.weight", torch.tensor([[torch.inf]], dtype=torch.float8_e5m2), "holds NaN or infinite weights"),
        ("x.alpha", torch.ones(2), "has 2 numbers instead of one"),
    ],
)
def test_a_file_of_a_training_that_diverged_is_refused(key: str, value: Tensor, message: str, tmp_path: Path) -> None:
    save_file({key: value}, tmp_path / "x.safetensors")
    with pytest.raises(ExportError, match=rf"x\.safetensors: {key} {message}"):
        read_file(tmp_path / "x.safetensors")
