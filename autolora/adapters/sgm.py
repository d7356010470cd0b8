"""The names of the layers of SDXL's UNet in its original code (sgm), which LoRA files for SDXL use."""

from __future__ import annotations

import re

_PER_BLOCK = 3  # down: two pairs of resnet and attention and a sampler; up: three pairs
_BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def sgm_path(path: str) -> str:
    """Return a layer's path in SDXL's original code.

    `down_blocks.1.attentions.0.proj_in` becomes `input_blocks.4.1.proj_in`.
    A path without such a name is returned unchanged.
    """
    match = _BLOCK.fullmatch(path)
    if match is None:
        return _OUTSIDE.get(path, path)
    direction, kind, rest = match[1], match[3], match[5]
    block, index = int(match[2] or 0), int(match[4])
    if kind == "downsamplers":
        return f"input_blocks.{_PER_BLOCK * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{_PER_BLOCK * block + 2}.2.conv"
    inner = rest if kind == "attentions" else _RESNET.get(rest, rest)
    if direction == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{inner}"
    first = f"input_blocks.{_PER_BLOCK * block + index + 1}"
    last = f"output_blocks.{_PER_BLOCK * block + index}"
    return f"{first if direction == 'down' else last}.{1 if kind == 'attentions' else 0}.{inner}"
