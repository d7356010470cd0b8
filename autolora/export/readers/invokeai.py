"""How InvokeAI reads a layer."""

from __future__ import annotations

from torch import Tensor

from autolora.export.readers.formulas import Parts, change_with_input_norms


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a layer of LoRA, LoHa, LoKr, IA3 or a whole difference, of the weight's shape.

    Raises:
        NotImplementedError: another kind, or magnitudes of another kind than LoRA.
        ReadsDifferently: DoRA with one norm per output.
    """
    if parts.keys() & {"a1.weight", "oft_blocks", "oft_diag"}:
        raise NotImplementedError("it does not read GLoRA, OFT and BOFT")
    if "dora_scale" in parts and "lora_up.weight" not in parts:
        raise NotImplementedError("it reads DoRA magnitudes of LoRA only")
    if "magnitude" in parts:
        raise NotImplementedError("it does not read peft's DoRA magnitudes")
    return change_with_input_norms(parts, weight, "it takes DoRA norms per input; this file holds norms per output")
