"""How A1111's web UI reads a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from autolora.export.readers.formulas import (
    Parts,
    ReadsDifferently,
    change_with_input_norms,
    glora,
    has_new_glora,
    rotation,
)


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a layer of any kind, of the weight's shape.

    Raises:
        ReadsDifferently: DoRA with one norm per output; LoHa or LoKr in bfloat16, which it computes in that precision.
        NotImplementedError: a GLoRA without an alpha or of LyCORIS 2 and newer.
    """
    if parts.keys() & {"hada_w1_a", "lokr_w1", "lokr_w1_a"} and torch.bfloat16 in {p.dtype for p in parts.values()}:
        raise ReadsDifferently("it computes LoHa and LoKr in the file's bfloat16: export them as float16")
    if "a1.weight" in parts:
        if has_new_glora(parts, weight) or "alpha" not in parts:
            raise NotImplementedError("it reads GLoRA only as LyCORIS' first versions wrote it, with an alpha")
        return glora(parts, weight)
    if parts.keys() & {"oft_blocks", "oft_diag"}:
        return rotation(parts, weight, float(parts.get("alpha", torch.tensor(0.0))) * len(weight), parts.get("rescale"))
    return change_with_input_norms(parts, weight, "it takes DoRA norms per input; this file holds norms per output")
