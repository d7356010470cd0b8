"""A model's work without its weights or a GPU: tensors have shapes but no content, and what they would take is counted.

PyTorch's `meta` device computes shapes only, so that a step of SDXL takes seconds on any machine, and no memory.
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
_HALVED = {  # what autocast computes in 16 bit, and below what in 32 bit, on a GPU (PyTorch 2.14, each tried)
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.bmm, torch.baddbmm, torch.addmm, torch.mm, torch.einsum),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, F.scaled_dot_product_attention),
}
_WHOLE = {
    *(F.group_norm, F.layer_norm, torch.group_norm, torch.layer_norm, F.softmax, torch.softmax, Tensor.softmax),
    *(F.interpolate, F.mse_loss, F.huber_loss, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt),
    *(torch.exp, Tensor.exp, torch.sum, Tensor.sum, torch.norm, Tensor.norm, torch.linalg.vector_norm),
}


def on_meta_device(model: M) -> M:
    """A copy of a model, or of one of its parts, on the `meta` device."""
    with _HollowCopies():
        return copy.deepcopy(model)


class _HollowCopies(TorchFunctionMode):
    """Tensors are copied without their content."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.clone:  # by which a parameter is copied
            return torch.empty_like(args[0], device=META)
        if function is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), torch.empty_like(tensor, device=META))
        return function(*args, **(kwargs or {}))


def backward(loss: Tensor) -> None:
    """A loss's way back, on which `AutocastEmulator` still holds: PyTorch's own `backward` would switch such modes off."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.empty_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


class AutocastEmulator(TorchFunctionMode):
    """What a GPU does otherwise than `meta`: autocast's dtypes, and attention that keeps no matrix of all pairs.

    Args:
        dtype: autocast's; 32-bit floats: no autocast.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.dtype != torch.float32 and function in (_HALVED | _WHOLE):
            wanted = self.dtype if function in _HALVED else torch.float32
            args, kwargs = tree_map(lambda value: _as(value, wanted), (tuple(args), kwargs))
        if function is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))
        return function(*args, **kwargs)


def _as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Attention(torch.autograd.Function):
    """What fused attention keeps for its way back: its inputs, its output and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class MemoryCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that live tensors take, `now` and at most so far (`peak`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def count(self, tensors: Iterable[Tensor]) -> None:
        """These too, from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found
