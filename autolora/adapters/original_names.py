"""The names of a transformer's layers in its original code, where queries, keys and values are one layer.

kohya's sd-scripts, ComfyUI, ai-toolkit and XLabs write these names into their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Some rows of a file's layer, which are rows of one of the model's layers."""

    path: str
    first: int  # the first row in the file's layer
    count: int
    target: int = 0  # the first row in the model's layer


# The path of a layer, its name in the original code, and its place among the layers that are one there.
_Rule = tuple[str, str, int]


def _fused(path: str, name: str) -> tuple[_Rule, ...]:
    """Rules for queries, keys and values, which are one layer in the original code."""
    return tuple((path.replace("*", part), name, place) for place, part in enumerate("qkv"))


_BLOCK, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
_FLUX: tuple[_Rule, ...] = (
    *_fused(_BLOCK + r"attn\.to_*", r"double_blocks.\1.img_attn.qkv"),
    *_fused(_BLOCK + r"attn\.add_*_proj", r"double_blocks.\1.txt_attn.qkv"),
    (_BLOCK + r"attn\.to_out\.0", r"double_blocks.\1.img_attn.proj", 0),
    (_BLOCK + r"attn\.to_add_out", r"double_blocks.\1.txt_attn.proj", 0),
    (_BLOCK + r"ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0", 0),
    (_BLOCK + r"ff\.net\.2", r"double_blocks.\1.img_mlp.2", 0),
    (_BLOCK + r"ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0", 0),
    (_BLOCK + r"ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2", 0),
    (_BLOCK + r"norm1\.linear", r"double_blocks.\1.img_mod.lin", 0),
    (_BLOCK + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.lin", 0),
    *_fused(_SINGLE + r"attn\.to_*", r"single_blocks.\1.linear1"),
    (_SINGLE + r"proj_mlp", r"single_blocks.\1.linear1", 3),
    *_fused(_SINGLE + r"attn\.to_*", r"single_blocks.\1.linear1_qkv"),  # XLabs leaves the rest of linear1 alone
    (_SINGLE + r"proj_out", r"single_blocks.\1.linear2", 0),
    (_SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.lin", 0),
    (r"x_embedder", r"img_in", 0),
    (r"context_embedder", r"txt_in", 0),
    (r"time_text_embed\.timestep_embedder\.linear_1", r"time_in.in_layer", 0),
    (r"time_text_embed\.timestep_embedder\.linear_2", r"time_in.out_layer", 0),
    (r"time_text_embed\.text_embedder\.linear_1", r"vector_in.in_layer", 0),
    (r"time_text_embed\.text_embedder\.linear_2", r"vector_in.out_layer", 0),
    (r"time_text_embed\.guidance_embedder\.linear_1", r"guidance_in.in_layer", 0),
    (r"time_text_embed\.guidance_embedder\.linear_2", r"guidance_in.out_layer", 0),
    (r"proj_out", r"final_layer.linear", 0),
    (r"norm_out\.linear", r"final_layer.adaLN_modulation.1", 0),
)
_SD3: tuple[_Rule, ...] = (
    *_fused(_BLOCK + r"attn\.to_*", r"joint_blocks.\1.x_block.attn.qkv"),
    *_fused(_BLOCK + r"attn2\.to_*", r"joint_blocks.\1.x_block.attn2.qkv"),
    *_fused(_BLOCK + r"attn\.add_*_proj", r"joint_blocks.\1.context_block.attn.qkv"),
    (_BLOCK + r"(attn2?)\.to_out\.0", r"joint_blocks.\1.x_block.\2.proj", 0),
    (_BLOCK + r"attn\.to_add_out", r"joint_blocks.\1.context_block.attn.proj", 0),
    (_BLOCK + r"ff\.net\.0\.proj", r"joint_blocks.\1.x_block.mlp.fc1", 0),
    (_BLOCK + r"ff\.net\.2", r"joint_blocks.\1.x_block.mlp.fc2", 0),
    (_BLOCK + r"ff_context\.net\.0\.proj", r"joint_blocks.\1.context_block.mlp.fc1", 0),
    (_BLOCK + r"ff_context\.net\.2", r"joint_blocks.\1.context_block.mlp.fc2", 0),
    (_BLOCK + r"norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1", 0),
    (_BLOCK + r"norm1_context\.linear", r"joint_blocks.\1.context_block.adaLN_modulation.1", 0),
    (r"pos_embed\.proj", r"x_embedder.proj", 0),
    (r"time_text_embed\.timestep_embedder\.linear_1", r"t_embedder.mlp.0", 0),
    (r"time_text_embed\.timestep_embedder\.linear_2", r"t_embedder.mlp.2", 0),
    (r"time_text_embed\.text_embedder\.linear_1", r"y_embedder.mlp.0", 0),
    (r"time_text_embed\.text_embedder\.linear_2", r"y_embedder.mlp.2", 0),
    (r"proj_out", r"final_layer.linear", 0),
    (r"norm_out\.linear", r"final_layer.adaLN_modulation.1", 0),
)
_Z_IMAGE: tuple[_Rule, ...] = (
    *_fused(r"(\w+)\.(\d+)\.attention\.to_*", r"\1.\2.attention.qkv"),
    (r"(\w+)\.(\d+)\.attention\.to_out\.0", r"\1.\2.attention.out", 0),
    (r"all_x_embedder\.2-1", r"x_embedder", 0),
    (r"all_final_layer\.2-1\.(.+)", r"final_layer.\1", 0),
)
_RULES = {"flux": _FLUX, "sd3": _SD3, "z_image": _Z_IMAGE}


def original_layers(architecture: str, rows_by_path: Mapping[str, int]) -> dict[str, tuple[Rows, ...]]:
    """Return the rows of each of the original code's layers in the model's layers, without the root's name.

    Args:
        architecture: the model's.
        rows_by_path: the number of outputs of each layer of the transformer, by path without the root's name.
    """
    rules = [(re.compile(pattern), name, place) for pattern, name, place in _RULES.get(architecture, ())]
    paths: dict[str, dict[int, str]] = {}
    for path in rows_by_path:
        for pattern, name, place in rules:
            if match := pattern.fullmatch(path):
                paths.setdefault(match.expand(name), {})[place] = path
    return {
        name: _in_order([by_place[place] for place in sorted(by_place)], rows_by_path)
        for name, by_place in paths.items()
        if set(by_place) == set(range(len(by_place)))
    }


def _in_order(paths: Iterable[str], rows_by_path: Mapping[str, int]) -> tuple[Rows, ...]:
    rows: list[Rows] = []
    first = 0
    for path in paths:
        count = rows_by_path[path]
        if _is_last_modulation(path, rows_by_path):
            half = count // 2  # the original code has the shift before the scale, diffusers after it
            return Rows(path, 0, half, half), Rows(path, half, half, 0)
        rows.append(Rows(path, first, count))
        first += count
    return tuple(rows)


def _is_last_modulation(path: str, rows_by_path: Mapping[str, int]) -> bool:
    """Return whether a modulation consists of one scale and one shift: the output's, and the context's in SD3's end."""
    query = path.replace("norm1_context.linear", "attn.to_q")
    return path == "norm_out.linear" or (query != path and rows_by_path[path] == 2 * rows_by_path.get(query, 0))
