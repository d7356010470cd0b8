"""Each program's formula on small layers, computed by hand from what the program's code does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autolora.export.readers import PROGRAMS, a1111, comfyui, kohya

WEIGHT = torch.tensor([[3.0, 0.0], [4.0, 2.0]])
LORA = {"lora_down.weight": [[1.0, 2.0], [0.0, 1.0]], "lora_up.weight": [[1.0, 0.0], [2.0, 1.0]], "alpha": 1.0}
# The layer's parts, and its weight change in A1111 and in ComfyUI; None: the program reads it differently or not.
CASES: dict[str, tuple[dict[str, Any], list[list[float]] | None, list[list[float]] | None]] = {
    "lora: up @ down * 1/2": (LORA, [[0.5, 1], [1, 2.5]], [[0.5, 1], [1, 2.5]]),
    "without alpha: up @ down": (
        {"lora_down.weight": [[1.0, 2.0]], "lora_up.weight": [[1.0], [3.0]]},
        [[1, 2], [3, 6]],
        [[1, 2], [3, 6]],
    ),
    "loha: (a b) * (a b) * 2/1": (
        {"hada_w1_a": [[1.0], [2.0]], "hada_w1_b": [[1.0, 3.0]], "alpha": 2.0}
        | {"hada_w2_a": [[1.0], [1.0]], "hada_w2_b": [[2.0, 1.0]]},
        [[4, 6], [8, 12]],
        [[4, 6], [8, 12]],
    ),
    "lokr of whole factors: alpha is ignored": (
        {"lokr_w1": [[1.0, 2.0]], "lokr_w2": [[1.0], [3.0]], "alpha": 7.0},
        [[1, 2], [3, 6]],
        [[1, 2], [3, 6]],
    ),
    "lokr: w1 (x) (a b) * 3/1": (
        {"lokr_w1": [[1.0, 2.0]], "lokr_w2_a": [[1.0], [3.0]], "lokr_w2_b": [[1.0]], "alpha": 3.0},
        [[3, 6], [9, 18]],
        [[3, 6], [9, 18]],
    ),
    "ia3 by output": ({"weight": [1.0, 0.5], "on_input": False}, [[3, 0], [2, 1]], None),
    "ia3 by input": ({"weight": [1.0, 0.5], "on_input": True}, [[3, 0], [4, 1]], None),
    # W + D = [[3, 1], [4, 1]] has columns of norm 5 and sqrt(2); magnitudes 10 and 2 sqrt(2) double both.
    "dora by input: m (W + D) / |W + D| - W": (
        {"lora_down.weight": [[0.0, 1.0]], "lora_up.weight": [[1.0], [-1.0]], "alpha": 1.0}
        | {"dora_scale": [[10.0, 2 * 2**0.5]]},
        [[3, 2], [4, 0]],
        [[3, 2], [4, 0]],
    ),
    # Both have code for it but render something else: A1111 norms per input, ComfyUI divides by |W|.
    "dora by output": (LORA | {"dora_scale": [[1.0], [1.0]]}, None, None),
}


def parts(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("reader", "place"), [(a1111.read_layer, 1), (comfyui.read_layer, 2)])
def test_a_change_as_computed_by_hand(reader: Any, place: int, case: str) -> None:
    values, expected = CASES[case][0], CASES[case][place]
    if expected is None:
        with pytest.raises(NotImplementedError):
            reader(parts(values), WEIGHT)
        return
    torch.testing.assert_close(reader(parts(values), WEIGHT), torch.tensor(expected).float())


def test_kohya_multiplies_by_alpha_over_dim() -> None:
    torch.testing.assert_close(kohya.read_layer(parts(LORA), WEIGHT), torch.tensor([[0.5, 1], [1, 2.5]]))


@pytest.mark.parametrize("reader", PROGRAMS.values(), ids=PROGRAMS)
def test_the_change_of_a_convolution(reader: Any) -> None:
    """Two outputs of one input and two pixels: [[1], [2]] times [3, 4], at scale 2/1."""
    layer = parts({"lora_down.weight": [[[[3.0, 4.0]]]], "lora_up.weight": [[[[1.0]]], [[[2.0]]]], "alpha": 2.0})
    change = reader(layer, torch.zeros(2, 1, 1, 2))
    torch.testing.assert_close(change, torch.tensor([[[[6.0, 8.0]]], [[[12.0, 16.0]]]]))
