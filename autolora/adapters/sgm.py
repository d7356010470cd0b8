"""The names that SDXL's own code (sgm) gives the layers of its UNet, which LoRA files for it keep."""

from __future__ import annotations

import re

_PER_BLOCK = 3  # SDXL: two pairs of resnet and attention and a sampler on the way down, three pairs on the way up
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
    """A layer's path in SDXL's own code: `down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`.

    Paths that have no such name stay.
    """
    found = _BLOCK.fullmatch(path)
    if found is None:
        return _OUTSIDE.get(path, path)
    way, kind, rest = found[1], found[3], found[5]
    block, index = int(found[2] or 0), int(found[4])
    if kind == "downsamplers":
        return f"input_blocks.{_PER_BLOCK * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{_PER_BLOCK * block + 2}.2.conv"
    inner = rest if kind == "attentions" else _RESNET.get(rest, rest)
    if way == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{inner}"
    first = f"input_blocks.{_PER_BLOCK * block + index + 1}"
    last = f"output_blocks.{_PER_BLOCK * block + index}"
    return f"{first if way == 'down' else last}.{1 if kind == 'attentions' else 0}.{inner}"
