"""Runs a model without its weights or a GPU to count the memory it would take.

PyTorch's `meta` device computes only shapes, so a training step of SDXL takes seconds and no memory on any machine.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

M = TypeVar("M")
META = torch.device("meta")
BLOCK = 512  # bytes that PyTorch's allocator rounds up to
_IN_16_BIT = {  # operations that autocast computes in 16 bits on a GPU (each checked with PyTorch 2.14)
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.bmm, torch.baddbmm, torch.addmm, torch.mm, torch.einsum),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, F.scaled_dot_product_attention),
}
_IN_32_BIT = {  # operations that autocast computes in 32 bits
    *(F.group_norm, F.layer_norm, torch.group_norm, torch.layer_norm, F.softmax, torch.softmax, Tensor.softmax),
    *(F.interpolate, F.mse_loss, F.huber_loss, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt),
    *(torch.exp, Tensor.exp, torch.sum, Tensor.sum, torch.norm, Tensor.norm, torch.linalg.vector_norm),
}


def on_meta_device(model: M) -> M:
    """Return a copy of a model, or of a part of one, on the `meta` device."""
    with _EmptyCopies():
        return copy.deepcopy(model)


class _EmptyCopies(TorchFunctionMode):
    """Inside it, tensors are copied without their content."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.clone:  # parameters are copied with it
            return torch.empty_like(args[0], device=META)
        if function is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), torch.empty_like(tensor, device=META))
        return function(*args, **(kwargs or {}))


def backward(loss: Tensor) -> None:
    """Run the backward pass under `AutocastEmulator`; PyTorch's own `backward` would switch such modes off."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.empty_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


class AutocastEmulator(TorchFunctionMode):
    """Emulates what a GPU does differently from `meta`: autocast's dtypes, and attention without a stored score matrix.

    Args:
        dtype: autocast's dtype; float32: no autocast.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.dtype != torch.float32 and function in (_IN_16_BIT | _IN_32_BIT):
            dtype = self.dtype if function in _IN_16_BIT else torch.float32
            args, kwargs = tree_map(lambda value: _as(value, dtype), (tuple(args), kwargs))
        if function is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))
        return function(*args, **kwargs)


def _as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Attention(torch.autograd.Function):
    """Stores what fused attention stores for its backward pass: inputs, output and one number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class MemoryCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living tensors: `now`, and the maximum so far, `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors too."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._counted:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._counted.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result
