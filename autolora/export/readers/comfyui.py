"""How ComfyUI reads a layer."""

from __future__ import annotations

from torch import Tensor

from autolora.export.readers.formulas import Parts, change_with_input_norms


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a layer of any kind but IA3, of the weight's shape.

    Raises:
        NotImplementedError: IA3, which ComfyUI does not read; DoRA with one norm per output, which it renders
            differently (Comfy-Org/ComfyUI pull request 15458, open in November 2026).
    """
    if "on_input" in parts:
        raise NotImplementedError("it does not read IA3")
    return change_with_input_norms(
        parts, weight, "it divides DoRA by the norms of the base weight instead of those of the changed weight"
    )
