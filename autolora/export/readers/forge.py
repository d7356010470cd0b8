"""How Forge reads a layer: as ComfyUI of 2024 did."""

from __future__ import annotations

from torch import Tensor

from autolora.export.readers.comfyui import BASE_NORMS
from autolora.export.readers.formulas import Parts, change_with_input_norms, glora


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a layer of any kind but IA3 and OFT, of the weight's shape.

    Raises:
        NotImplementedError: these kinds.
        ReadsDifferently: DoRA with one norm per output.
    """
    for part, kind in (("on_input", "IA3"), ("oft_blocks", "OFT and BOFT"), ("oft_diag", "OFT and BOFT")):
        if part in parts:
            raise NotImplementedError(f"it does not read {kind}")
    if "a1.weight" in parts:
        return glora(parts, weight)
    return change_with_input_norms(parts, weight, BASE_NORMS)
