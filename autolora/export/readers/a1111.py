"""How A1111's web UI reads a layer."""

from __future__ import annotations

from torch import Tensor

from autolora.export.readers.formulas import Parts, change_with_input_norms


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a layer of any kind, of the weight's shape.

    Raises:
        NotImplementedError: DoRA with one norm per output, which A1111 would render differently.
    """
    return change_with_input_norms(parts, weight, "it takes DoRA norms per input; this file holds norms per output")
