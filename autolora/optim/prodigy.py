"""Prodigy as prodigyopt has it, all parameters at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import prodigyopt
import torch
from torch import Tensor

FLAT = ("s", "p0")
STATE = ("exp_avg", "exp_avg_sq", *FLAT)


class BatchedProdigy(prodigyopt.Prodigy):  # type: ignore[misc]
    """prodigyopt's steps (Mishchenko & Defazio 2023) of one group with decoupled weight decay, to within rounding.

    prodigyopt takes parameter by parameter, and waits for the device twice at each to read its share of the estimate d.
    Here every operation takes all of them as one vector, and the device is waited for once a step. The state has the
    same names and shapes; what it holds are views of such vectors.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._order: list[int] = []  # the parameters that the vectors are of
        self._vectors: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of all parameters that have a gradient; `closure` is not called."""
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        d, (beta1, beta2), beta3 = group["d"], group["betas"], group["betas"][1] ** 0.5
        count = group["k"] + 1
        rate = d * group["lr"] * (1 - beta2**count) ** 0.5 / (1 - beta1**count)
        if not params or not rate:
            return
        means, squares, sums, starts = self._joined(params)
        grads = torch.cat([p.grad.flatten() for p in params])
        weights = torch.cat([p.flatten() for p in params])
        means.mul_(beta1).add_(grads, alpha=d * (1 - beta1))
        squares.mul_(beta2).addcmul_(grads, grads, value=d * d * (1 - beta2))
        sums.mul_(beta3).add_(grads, alpha=d / group["d0"] * d)
        way = ((starts - weights) * grads).sum(dtype=torch.float64)
        if not self._estimate(group, way, sums.abs().sum(dtype=torch.float64), rate):
            return
        weights.mul_(1 - group["weight_decay"] * rate)
        weights.addcdiv_(means, squares.sqrt().add_(group["d"] * group["eps"]), value=-rate)
        parts = zip(params, _parted(weights, params), strict=True)
        torch._foreach_copy_(params, [part.view_as(p) for p, part in parts])  # on a GPU in few launches
        group["k"] = count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a kept state."""
        super().load_state_dict(state_dict)
        self._order = []

    def _joined(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The state of all parameters by name, a vector each."""
        order = [id(p) for p in params]
        if order != self._order:
            states = [self._state_of(p) for p in params]
            for name in STATE:
                # expanded, as prodigyopt keeps a single zero where all of a parameter began at zero
                own = [state[name].flatten().expand(p.numel()) for state, p in zip(states, params, strict=True)]
                self._vectors[name] = torch.cat(own)
                for state, part in zip(states, _parted(self._vectors[name], params), strict=True):
                    state[name] = part if name in FLAT else part.view_as(state[name])
            self._order = order
        return tuple(self._vectors[name] for name in STATE)

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """A parameter's state, begun where it has none."""
        state: dict[str, Any] = self.state[p]
        if not state:
            state["s"], state["p0"] = torch.zeros_like(p).flatten(), p.flatten().clone()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state

    def _estimate(self, group: dict[str, Any], way: Tensor, divisor: Tensor, rate: float) -> bool:
        """Bring d up to date; False where there is nothing to go by yet.

        Args:
            group: where d is kept.
            way: how far each weight has come since the start, times its gradient, in all.
            divisor: the sum of all gradients so far, by its 1-norm.
            rate: of this step.
        """
        gained, divided = torch.stack([way, divisor]).tolist()
        if divided == 0:
            return False
        d, d0 = group["d"], group["d0"]
        numerator = group["d_numerator"] * group["betas"][1] ** 0.5 + d / d0 * rate * gained
        d_hat = group["d_coef"] * numerator / divided
        if d == d0:
            d = max(d, d_hat)
        d_max = max(group["d_max"], d_hat)
        group |= {"d_numerator": numerator, "d_denom": divided, "d_hat": d_hat, "d_max": d_max}
        group["d"] = min(d_max, d * group["growth_rate"])
        return True


def _parted(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split_with_sizes(vector, [one.numel() for one in like])
