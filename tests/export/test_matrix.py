"""Which programs read which form of LoRA file, by the tables of docs/files.md; autolora reads all of them exactly."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file

from autolora.adapters.adapter_set import attach
from autolora.adapters.formats import layer_delta, layer_paths, layer_weights
from autolora.adapters.read import lora_of, read_lora, unread
from autolora.errors import ConfigError, ExportError
from autolora.export.compatibility import check_compatibility
from autolora.models.flow import FlowModel
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train.init_from_lora import starting_state
from tests.export.forms import (
    BLOCK,
    CLIP,
    CONV,
    KOHYA,
    LINEAR,
    Form,
    by_lycoris,
    fused,
    ia3,
    in_8_bits,
    kohya_lora,
    loha_in_bfloat16,
    named,
    old_glora,
    scaled_by,
    swapped,
    whole_difference,
    with_extra,
)

pytestmark = pytest.mark.slow  # loads many models

DOCS = Path(__file__).parents[2] / "docs" / "files.md"
VERDICTS = {"correctly": "exact", "differently": "differs", "not": "not read"}
BY_OUTPUT, BY_INPUT = {"weight_decompose": True, "wd_on_out": True}, {"weight_decompose": True, "wd_on_out": False}
LORA = kohya_lora(LINEAR, KOHYA[LINEAR])
CLIP_NAME = "text_model.encoder.layers.0.mlp.fc1"
_QKV = tuple(f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv")
_SINGLE = "transformer.single_transformer_blocks.0"
_LINEAR1 = (*(f"{_SINGLE}.attn.to_{part}" for part in "qkv"), f"{_SINGLE}.proj_mlp")
_IMG = "double_blocks.0.img_attn.qkv"
_FLUX_KOHYA, _Z_KOHYA = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_layers_0_attention_qkv"
_Z_QKV = tuple(f"transformer.layers.0.attention.to_{part}" for part in "qkv")
_SD3_KOHYA = "lora_unet_joint_blocks_0_x_block_attn_qkv"
_XLABS, _PARTS = "double_blocks.0.processor.qkv_lora1", ("lora_down.weight", "lora_up.weight")
_FLUX_Q = "transformer.transformer_blocks.0.attn.to_q"


def _peft(name: str) -> tuple[str, str]:
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


# By base model, then by the row of the table.
FORMS: dict[str, dict[str, Form]] = {
    "sd1": {
        "LoRA": LORA,
        "LoRA without alpha": kohya_lora(LINEAR, KOHYA[LINEAR], None),
        "LoCon": by_lycoris(LoConModule, CONV),
        "LoCon with a core (Tucker)": by_lycoris(LoConModule, CONV, use_tucker=True),
        "LoHa": by_lycoris(LohaModule, LINEAR, 4),
        "LoHa with a core (Tucker)": by_lycoris(LohaModule, CONV, 4, use_tucker=True),
        "LoHa in bfloat16": loha_in_bfloat16,
        "LoKr": by_lycoris(LokrModule, LINEAR, 4),
        "IA3 by input": ia3(by_input=True),
        "IA3 by output": ia3(by_input=False),
        "DoRA, norms per output": by_lycoris(LoConModule, LINEAR, **BY_OUTPUT),
        "DoRA, norms per input": by_lycoris(LoConModule, LINEAR, **BY_INPUT),
        "LoHa with DoRA norms per output": by_lycoris(LohaModule, LINEAR, 4, **BY_OUTPUT),
        "LoHa with DoRA norms per input": by_lycoris(LohaModule, LINEAR, 4, **BY_INPUT),
        "LoKr with DoRA norms per output": by_lycoris(LokrModule, CONV, 4, **BY_OUTPUT),
        "LoKr with DoRA norms per input": by_lycoris(LokrModule, LINEAR, 4, **BY_INPUT),
        "whole differences (`diff`)": whole_difference(CONV),
        "LoRA with a `scalar` (LyCORIS 1)": scaled_by(LORA, LINEAR, 0.5),
        "GLoRA": by_lycoris(GLoRAModule, CONV),
        "GLoRA (LyCORIS 1)": old_glora,
        "OFT": by_lycoris(DiagOFTModule, LINEAR),
        "OFT with a limit and rescaling": by_lycoris(DiagOFTModule, CONV, constraint=0.001, rescaled=True),
        "BOFT": by_lycoris(ButterflyOFTModule, CONV, rescaled=True),
        "LoRA in diffusers' names": named(LINEAR, *_peft(f"unet.{BLOCK}.attn1.to_q")),
        "LoRA with embeddings (OneTrainer)": with_extra(LORA, {"bundle_emb.mona.clip_l": torch.ones(2, 8)}),
        "text encoder as `lora_te_`": kohya_lora(CLIP, f"lora_te_{CLIP_NAME}".replace(".", "_")),
        "text encoder as `lora_te1_`": kohya_lora(CLIP, f"lora_te1_{CLIP_NAME}".replace(".", "_")),
        "time embedding": kohya_lora("unet.time_embedding.linear_1", "lora_unet_time_embedding_linear_1"),
        "LoRA in 8 bits": in_8_bits(LORA),
    },
    "sdxl": {
        "LoRA": kohya_lora("unet.mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in"),
        "LoRA in diffusers' names with kohya's prefix": kohya_lora(
            "unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in"
        ),
        "first upsampler, diffusers' name with kohya's prefix": kohya_lora(
            "unet.up_blocks.0.upsamplers.0.conv", "lora_unet_up_blocks_0_upsamplers_0_conv"
        ),
        "projection of a text encoder (OneTrainer)": kohya_lora(
            "text_encoder_2.text_projection", "lora_te2_text_projection"
        ),
    },
    "sd3": {
        "LoRA in diffusers' names": named(_FLUX_Q, *_peft(_FLUX_Q)),
        "LoRA in kohya's names": fused(_QKV, _SD3_KOHYA),
        "LoKr in kohya's names": fused(_QKV, _SD3_KOHYA, "lokr"),
    },
    "flux": {
        "LoRA in diffusers' names": named(_FLUX_Q, *_peft(_FLUX_Q)),
        "text encoder in diffusers' names": named(CLIP, *_peft(f"text_encoder.{CLIP_NAME}")),
        "LoRA in kohya's names": fused(_QKV, _FLUX_KOHYA),
        "LoRA in kohya's names, 8 bits": fused(_QKV, _FLUX_KOHYA, "fp8"),
        "DoRA in kohya's names, norms per output": fused(_QKV, _FLUX_KOHYA, "dora by output"),
        "DoRA in kohya's names, norms per input": fused(_QKV, _FLUX_KOHYA, "dora by input"),
        "LoHa in kohya's names": fused(_QKV, _FLUX_KOHYA, "loha"),
        "LoKr in kohya's names": fused(_LINEAR1, "lora_unet_single_blocks_0_linear1", "lokr"),
        "LoRA in ComfyUI's names": fused(_QKV, f"diffusion_model.{_IMG}"),
        "last modulation in ComfyUI's names": swapped,
        "Black Forest's names in peft's format": fused(_QKV, _IMG, keys=_peft(f"base_model.model.{_IMG}")),
        "XLabs": fused(_QKV, _IMG, keys=(f"{_XLABS}.down.weight", f"{_XLABS}.up.weight")),
        "LoRA of OneTrainer": kohya_lora(_FLUX_Q, "lora_transformer_transformer_blocks_0_attn_to_q"),
        "LoRA with layers of T5": with_extra(
            fused(_QKV, _FLUX_KOHYA),
            {f"lora_te2_encoder_block_0_layer_0_SelfAttention_k.{part}": torch.ones(4, 4) for part in _PARTS},
        ),
    },
    "z_image": {
        "LoRA in diffusers' names": named(_Z_QKV[0], *_peft(_Z_QKV[0])),
        "LoRA in ComfyUI's names": fused(_Z_QKV, "diffusion_model.layers.0.attention.qkv"),
        "DoRA in ComfyUI's names, norms per output": fused(
            _Z_QKV, "diffusion_model.layers.0.attention.qkv", "dora by output"
        ),
        "LoRA in kohya's names": fused(_Z_QKV, _Z_KOHYA),
        "LoRA of OneTrainer": kohya_lora(_Z_QKV[0], _Z_QKV[0]),
        "LoRA of OneTrainer's first versions": kohya_lora(_Z_QKV[0], "lora_transformer_layers_0_attention_to_q"),
    },
}
TITLES = {"SD 1.x": "sd1", "SDXL": "sdxl", "SD3": "sd3", "Flux.1": "flux", "Z-Image": "z_image"}
CASES = [(family, name) for family, forms in FORMS.items() for name in forms]


def documented() -> dict[tuple[str, str], dict[str, str]]:
    """The cells of the tables in docs/files.md: by base model and row, then by program."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    family, programs = "", list[str]()
    for line in DOCS.read_text("utf-8").splitlines():
        columns = [column.strip() for column in line.strip().strip("|").split("|")]
        if columns[0] in TITLES:
            family, programs = TITLES[columns[0]], columns[1:]
        elif family and line.startswith("|") and not columns[0].startswith("-"):
            cells[family, columns[0]] = dict(zip(programs, columns[1:], strict=True))
        elif not line.startswith("|"):
            family = ""
    return cells


@pytest.fixture(scope="module")
def models(tiny_model: StableDiffusion, tiny_xl: StableDiffusion, tiny_flows: dict[str, FlowModel]) -> dict[str, Any]:
    return {"sd1": tiny_model, "sdxl": tiny_xl, **tiny_flows}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_each_form_changes_what_its_definition_says(
    family: str, name: str, models: dict[str, Any], tmp_path: Path
) -> None:
    """Autolora reads it exactly, can load it into an adapter, and other programs read it as the table says."""
    model, path = models[family], tmp_path / "file.safetensors"
    tensors, changes = FORMS[family][name](model)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    state, weights = read_lora(path, model), layer_weights(model.modules)
    assert set(layer_paths(state)) == set(changes)
    adapter = attach(model.modules, lora_of(state))
    try:
        adapter.load(state)
        loaded = {layer: adapter.layers[layer].delta.dense(0).flatten(1) for layer in changes}  # type: ignore[union-attr]
    finally:
        adapter.detach()
    for layer, change in changes.items():
        size = float(change.norm())
        assert float((layer_delta(state, layer, weights[layer]) - change).norm()) < 1e-4 * size > 0
        assert float((loaded[layer] - change).norm()) < 1e-4 * size
    results = {r.program.removeprefix("kohya "): VERDICTS[r.verdict] for r in check_compatibility(path, model).results}
    cells = documented()[family, name]
    assert {program: results[program] for program in cells} == cells
    left_out = {r for r in results if r not in cells} - {"peft"}
    assert all(results[program] == "not read" for program in left_out)


def test_the_tables_have_a_row_for_each_form() -> None:
    assert list(documented()) == CASES


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"lora_unet_mid_block_resnets_0_norm1.w_norm": torch.ones(64)}, "norms (1 tensors)"),
        ({f"{KOHYA[LINEAR]}.diff_b": torch.ones(64)}, "biases (1 tensors)"),
        ({"bundle_emb.mona.clip_l": torch.ones(2, 8)}, "embeddings of a trigger (bundle_emb) (1 tensors)"),
    ],
    ids=["norms", "biases", "embeddings"],
)
def test_what_is_not_read_is_named(
    extra: dict[str, torch.Tensor], what: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """The rest of the file is read; a file with nothing else is refused for what it holds."""
    tensors, _ = with_extra(LORA, extra)(tiny_model)
    save_file(tensors, tmp_path / "mixed.safetensors")
    save_file(extra, tmp_path / "only.safetensors")
    assert layer_paths(read_lora(tmp_path / "mixed.safetensors", tiny_model)) == [LINEAR]
    assert unread(tmp_path / "mixed.safetensors", tiny_model) == what
    run: Any = SimpleNamespace(init_lora=SimpleNamespace(path=tmp_path / "mixed.safetensors"))
    with pytest.raises(ConfigError, match=f"holds {re.escape(what)}"):
        starting_state(run, {}, tiny_model)
    with pytest.raises(ExportError, match=f"nothing but {re.escape(what)}, which autolora does not read"):
        read_lora(tmp_path / "only.safetensors", tiny_model)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("lora_up.weight", float("nan"), "holds NaN or infinite weights"),
        ("lora_down.weight", float("inf"), "holds NaN or infinite weights"),
        ("alpha", [1.0, 2.0], "alpha has 2 numbers instead of one"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    part: str, value: Any, message: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    tensors, _ = LORA(tiny_model)
    key = f"{KOHYA[LINEAR]}.{part}"
    tensors[key] = torch.full_like(tensors[key], value) if isinstance(value, float) else torch.tensor(value)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=f"a.safetensors: {re.escape(KOHYA[LINEAR])}.*{message}"):
        read_lora(tmp_path / "a.safetensors", tiny_model)


def test_an_alpha_of_zero_or_less_is_read(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """A merge of files may have one; an adapter's settings may not."""
    tensors, changes = kohya_lora(LINEAR, KOHYA[LINEAR], -2.0)(tiny_model)
    save_file(tensors, tmp_path / "a.safetensors")
    state = read_lora(tmp_path / "a.safetensors", tiny_model)
    torch.testing.assert_close(layer_delta(state, LINEAR), changes[LINEAR])
    assert lora_of(state).alpha == 4


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_file_without_tensors_is_refused(family: str, models: dict[str, Any], tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ExportError, match="holds no tensors"):
        read_lora(tmp_path / "empty.safetensors", models[family])


@pytest.mark.parametrize("name", ["LoHa", "OFT", "BOFT", "GLoRA", "DoRA, norms per output", "IA3 by input"])
def test_a_broken_layer_ends_in_no_traceback(name: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """A tensor is missing, has another shape, or is empty: the file is refused, or read by some programs alone."""
    path, (tensors, _) = tmp_path / "a.safetensors", FORMS["sd1"][name](tiny_model)
    refused = 0
    for key, tensor in tensors.items():
        others = {other: value.contiguous() for other, value in tensors.items() if other != key}
        for broken in ({}, {key: tensor[None].clone()}, {key: tensor.flatten()[:1].clone()}, {key: torch.zeros(0)}):
            save_file(others | broken, path)
            try:
                read_lora(path, tiny_model)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(tiny_model, "source", None)
                    check_compatibility(path, tiny_model)
            except ExportError:
                refused += 1
    assert refused > len(tensors)
