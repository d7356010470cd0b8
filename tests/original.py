"""Writes a diffusers model as a single checkpoint file, with the keys of the original code, in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig

from autolora.models.configs import CONFIGS, PAD_TOKENS, clip_tokenizer
from tests import tiny

VAE_CONFIG = {**dict(tiny.tiny_vae().config), "mid_block_add_attention": True}
_PIPELINE: Any = DiffusionPipeline  # untyped libraries are called through Any
_VAE: Any = AutoencoderKL
Named = Iterator[tuple[str, str]]  # a module's name in diffusers, in the original code
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_names(unet: Any) -> Named:
    """Yield the names of the UNet's modules; blocks are numbered consecutively, whatever they contain."""
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield from (("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"))
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield from _pair(f"down_blocks.{i}", j, f"input_blocks.{number}", block)
            number += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    for j, place in ((0, 0), (1, 2)):
        yield from _resnet(f"mid_block.resnets.{j}", f"middle_block.{place}")
    yield "mid_block.attentions.0", "middle_block.1"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            yield from _pair(f"up_blocks.{i}", j, f"output_blocks.{number}", block)
            if block.upsamplers and j == len(block.resnets) - 1:
                place = 2 if getattr(block, "attentions", None) else 1
                yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{number}.{place}.conv"
            number += 1


def _pair(name: str, index: int, original: str, block: Any) -> Named:
    yield from _resnet(f"{name}.resnets.{index}", f"{original}.0")
    if getattr(block, "attentions", None):
        yield f"{name}.attentions.{index}", f"{original}.1"


def _resnet(name: str, original: str) -> Named:
    for ours, theirs in _RESNET.items():
        yield f"{name}.{ours}", f"{original}.{theirs}"


def vae_names(vae: Any) -> Named:
    """Yield the names of the VAE's modules; the decoder also counts its levels from the outside."""
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    levels = len(vae.encoder.down_blocks)
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.conv_in", f"{side}.conv_in"), (f"{side}.conv_out", f"{side}.conv_out"))
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        for j in range(2):
            yield from _vae_resnet(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}")
        attention, original = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        for ours, theirs in {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }.items():
            yield f"{attention}.{ours}", f"{original}.{theirs}"
    for i in range(levels):
        for j in range(len(vae.encoder.down_blocks[i].resnets)):
            yield from _vae_resnet(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}")
        for j in range(len(vae.decoder.up_blocks[i].resnets)):
            yield from _vae_resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{levels - 1 - i}.block.{j}")
        yield f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv"
        yield f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{levels - 1 - i}.upsample.conv"


def _vae_resnet(name: str, original: str) -> Named:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{name}.{part}", f"{original}.{part}"
    yield f"{name}.conv_shortcut", f"{original}.nin_shortcut"


def renamed(part: Any, names: Named, prefix: str) -> dict[str, Tensor]:
    """Return every tensor of a part under its original name; none may be left over."""
    state, tensors = part.state_dict(), {}
    for ours, theirs in names:
        for key in [key for key in state if key.startswith(f"{ours}.")]:
            tensors[f"{prefix}{theirs}{key.removeprefix(ours)}"] = state.pop(key)
    assert not state, sorted(state)[:5]
    return tensors


def vae_state(vae: Any) -> dict[str, Tensor]:
    """Return the VAE's tensors; its attention has convolutions of one pixel instead of linear layers."""
    tensors = renamed(vae, vae_names(vae), "first_stage_model.")
    linear = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")
    return {k: t[:, :, None, None] if ".attn_1" in k and k.endswith(linear) else t for k, t in tensors.items()}


def openai_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under the names of transformers, with the level `text_model` and position ids."""
    tensors = {f"{prefix}text_model.{key.removeprefix('text_model.')}": t for key, t in encoder.state_dict().items()}
    return {**tensors, f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under open_clip's names: queries, keys and values in one matrix, a transposed projection."""
    state = {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}
    tensors = {
        f"{prefix}token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        f"{prefix}positional_embedding": state.pop("embeddings.position_embedding.weight"),
        f"{prefix}ln_final.weight": state.pop("final_layer_norm.weight"),
        f"{prefix}ln_final.bias": state.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in state:
        tensors[f"{prefix}text_projection"] = state.pop("text_projection.weight").T
    layers = 1 + max(int(key.split(".")[2]) for key in state)
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(layers):
        ours, theirs = f"encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
        for half in ("weight", "bias"):
            joined = [state.pop(f"{ours}self_attn.{part}_proj.{half}") for part in "qkv"]
            tensors[f"{theirs}attn.in_proj_{half}"] = torch.cat(joined)
            tensors[f"{theirs}attn.out_proj.{half}"] = state.pop(f"{ours}self_attn.out_proj.{half}")
            tensors |= {f"{theirs}{new}.{half}": state.pop(f"{ours}{old}.{half}") for old, new in names.items()}
    assert not state, sorted(state)
    return {**tensors, f"{prefix}logit_scale": torch.tensor(4.6)}


def _unused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of SD2 files that are never used: a last layer (number 23, whatever the size) and a projection."""
    prefix = "cond_stage_model.model."
    first = f"{prefix}transformer.resblocks.0."
    last = {key.replace(".0.", ".23.", 1): t for key, t in tensors.items() if key.startswith(first)}
    return {**last, f"{prefix}text_projection": torch.eye(len(tensors[f"{prefix}ln_final.bias"]))}


def save_original(pipeline: Any, path: Path, family: str, *marks: str) -> Path:
    """Write a pipeline as one file; `marks` are keys of empty tensors with a meaning, such as `v_pred`."""
    tensors = renamed(pipeline.unet, unet_names(pipeline.unet), "model.diffusion_model.") | vae_state(pipeline.vae)
    if family == "sd1":
        tensors |= openai_clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    elif family == "sd2":
        tensors |= open_clip(pipeline.text_encoder, "cond_stage_model.model.")
        tensors |= _unused(tensors)
    else:
        tensors |= openai_clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        tensors |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    tensors |= {"alphas_cumprod": torch.ones(1000), "betas": torch.ones(1000), **dict.fromkeys(marks, torch.zeros(0))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.half().contiguous().clone() for key, tensor in tensors.items()}, path)
    return path


@dataclass(frozen=True)
class Pair:
    """One model as a folder and as a file, and the configs of its parts."""

    family: str
    folder: Path
    file: Path
    configs: dict[str, Any]

    def replace_configs(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the built-in configs by those of this model's sizes, so that its file can be loaded."""
        patch.setitem(CONFIGS, self.family, self.configs)


def save_both_forms(family: str, out: Path) -> Pair:
    """Write a tiny model with CLIP's vocabulary as folder and file."""
    with pytest.MonkeyPatch.context() as patch:
        return _save_both_forms(family, out, patch)


def _save_both_forms(family: str, out: Path, patch: pytest.MonkeyPatch) -> Pair:
    folder, small, large = out / "folder", tiny.tiny_text_config(), tiny.tiny_text_config(tiny.WIDTH_2)
    for config in (small, large):
        config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = 49408, 49406, 49407, 0
    first = PAD_TOKENS[family]["text_encoder"]
    patch.setattr(tiny, "tiny_text_config", lambda width=tiny.WIDTH: small if width == tiny.WIDTH else large)
    patch.setattr(tiny, "tiny_vae", lambda: _VAE(**VAE_CONFIG))
    patch.setattr(tiny, "tiny_tokenizer", lambda pad_token=None: clip_tokenizer(pad_token or first))
    tiny.save_tiny_xl(folder) if family == "sdxl" else tiny.save_tiny(folder, "epsilon", family=family)
    pipeline = _PIPELINE.from_pretrained(folder)
    configs = {"unet": dict(pipeline.unet.config), "vae": VAE_CONFIG}
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None]
    configs |= {name: _as_dict(getattr(pipeline, name).config) for name in encoders}
    return Pair(family, folder, save_original(pipeline, out / "files" / "one.safetensors", family), configs)


def _as_dict(config: CLIPTextConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("architectures", "dtype")}
