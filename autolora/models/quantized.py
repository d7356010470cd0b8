"""Linear layers kept in 4 or 8 bits: a frozen base that takes a quarter or half of the memory under a LoRA."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.errors import ConfigError


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is restored whenever it is needed.

    nf4 has 4 bits and a scale for every 64 weights (Dettmers et al. 2023, QLoRA), int8 8 bits and a scale for every
    output. What is computed with them is computed in the dtype that the layer had.
    """

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device) -> None:
        nn.Module.__init__(self)  # there is no weight of nn.Linear's
        library = backend(kind)
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, layer.weight.dtype
        weight = layer.weight.detach().to(device)
        self.quant_state: Any = None  # of nf4
        if kind == "nf4":
            packed, self.quant_state = library.quantize_4bit(weight.contiguous(), quant_type="nf4")
            scales = self.quant_state.absmax
        else:
            packed, scales, _ = library.int8_vectorwise_quant(weight.half())
        self.packed = nn.Parameter(packed, requires_grad=False)  # peft looks for the device of a parameter
        self.register_buffer("scales", scales)
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in), as it is computed with."""
        found: Tensor
        if self.quant_state is None:
            found = backend("int8").int8_vectorwise_dequant(self.packed, self.scales)
        else:
            found = backend("nf4").dequantize_4bit(self.packed, self.quant_state)
        return found.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As every linear layer."""
        out: Tensor = _Product.apply(x, self)
        return out


class _Product(torch.autograd.Function):
    """x W^T + b that restores W on the way back, too, instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return (grad @ ctx.layer.weight.to(grad.dtype)).to(ctx.dtype), None


def quantize(part: nn.Module, kind: str, device: torch.device) -> None:
    """Keep a part's linear layers in fewer bits, each on the device as soon as it is small.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    for parent in list(part.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, QuantizedLinear(layer, kind, device))


def backend(kind: str) -> Any:
    """The functions of bitsandbytes, diffusers' and transformers' backend for both kinds, on a CPU or a GPU.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(f"model.quantize={kind} needs bitsandbytes: pip install 'autolora[8bit]'") from error
