"""Linear layers quantized to 4 or 8 bits, so that the frozen base model takes a quarter or half of the memory."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.errors import ConfigError


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is dequantized whenever it is used.

    nf4 has 4 bits and a scale for every 64 weights (Dettmers et al. 2023, QLoRA); int8 has 8 bits and a scale for every
    output. The layer computes in the dtype of the original layer.
    """

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device) -> None:
        nn.Module.__init__(self)  # nn.Linear's own __init__ would create a weight
        library = backend(kind)
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, layer.weight.dtype
        weight = layer.weight.detach().to(device)
        self.quant_state: Any = None  # only of nf4
        if kind == "nf4":
            packed, self.quant_state = library.quantize_4bit(weight.contiguous(), quant_type="nf4")
            scales = self.quant_state.absmax
        else:
            packed, scales, _ = library.int8_vectorwise_quant(weight.half())
        self.packed = nn.Parameter(packed, requires_grad=False)  # peft reads the device of a parameter
        self.register_buffer("scales", scales)
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantized weight (out, in)."""
        weight: Tensor
        if self.quant_state is None:
            weight = backend("int8").int8_vectorwise_dequant(self.packed, self.scales)
        else:
            weight = backend("nf4").dequantize_4bit(self.packed, self.quant_state)
        return weight.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        out: Tensor = _LinearFunction.apply(x, self)
        return out


class _LinearFunction(torch.autograd.Function):
    """x W^T + b that dequantizes W again in the backward pass instead of storing it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return (grad @ ctx.layer.weight.to(grad.dtype)).to(ctx.dtype), None


def quantize(part: nn.Module, kind: str, device: torch.device) -> None:
    """Quantize a part's linear layers and move each to the device.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    for parent in list(part.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, QuantizedLinear(layer, kind, device))


def backend(kind: str) -> Any:
    """Return bitsandbytes' functions, which run on CPU and GPU; diffusers and transformers use them too.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(f"model.quantize={kind} needs bitsandbytes: pip install 'autolora[8bit]'") from error
