"""How ComfyUI reads a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from autolora.export.readers.formulas import Parts, change_with_input_norms, glora, rotation

BASE_NORMS = "it divides DoRA by the norms of the base weight instead of those of the changed weight"


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a layer of any kind but IA3, of the weight's shape.

    Raises:
        NotImplementedError: IA3, and some OFT and BOFT.
        ReadsDifferently: DoRA with one norm per output (Comfy-Org/ComfyUI pull request 15458, open in November 2026).
    """
    if "on_input" in parts:
        raise NotImplementedError("it does not read IA3")
    if "a1.weight" in parts:
        return glora(parts, weight)
    if "oft_diag" in parts:
        raise NotImplementedError("it does not read OFT of LyCORIS' first versions (oft_diag)")
    if "oft_blocks" in parts:
        is_boft = parts["oft_blocks"].dim() == 4
        if is_boft and "alpha" not in parts:
            raise NotImplementedError("it does not read a BOFT without an alpha")
        # It takes alpha itself for the largest norm, and leaves out the rescaling of an OFT.
        limit = float(parts.get("alpha", torch.tensor(0.0)))
        return rotation(parts, weight, limit, parts.get("rescale") if is_boft else None)
    return change_with_input_norms(parts, weight, BASE_NORMS)
