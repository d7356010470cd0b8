"""prodigyopt's Prodigy, computed for all parameters at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import prodigyopt
import torch
from torch import Tensor

FLAT = ("s", "p0")
STATE = ("exp_avg", "exp_avg_sq", *FLAT)


class BatchedProdigy(prodigyopt.Prodigy):  # type: ignore[misc]
    """prodigyopt's steps (Mishchenko & Defazio 2023) for one group with decoupled weight decay, up to rounding.

    prodigyopt computes one parameter after the other and waits for the device twice at each, to read what it adds to
    the estimate d. Here every operation takes all parameters as one vector and waits once per step. The state has the
    same names and shapes; its tensors are views of these vectors.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._order: list[int] = []  # ids of the parameters in the vectors
        self._vectors: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Make one step of all parameters that have a gradient; `closure` is not called."""
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        d, (beta1, beta2), beta3 = group["d"], group["betas"], group["betas"][1] ** 0.5
        count = group["k"] + 1
        rate = d * group["lr"] * (1 - beta2**count) ** 0.5 / (1 - beta1**count)
        if not params or not rate:
            return
        means, squares, sums, starts = self._joined_state(params)
        grads = torch.cat([p.grad.flatten() for p in params])
        weights = torch.cat([p.flatten() for p in params])
        means.mul_(beta1).add_(grads, alpha=d * (1 - beta1))
        squares.mul_(beta2).addcmul_(grads, grads, value=d * d * (1 - beta2))
        sums.mul_(beta3).add_(grads, alpha=d / group["d0"] * d)
        gain = ((starts - weights) * grads).sum(dtype=torch.float64)
        if not self._update_estimate(group, gain, sums.abs().sum(dtype=torch.float64), rate):
            return
        weights.mul_(1 - group["weight_decay"] * rate)
        weights.addcdiv_(means, squares.sqrt().add_(group["d"] * group["eps"]), value=-rate)
        parts = zip(params, _split(weights, params), strict=True)
        torch._foreach_copy_(params, [part.view_as(p) for p, part in parts])  # few kernel launches on a GPU
        group["k"] = count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state_dict)
        self._order = []

    def _joined_state(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the state of all parameters, one vector for each name in `STATE`."""
        order = [id(p) for p in params]
        if order != self._order:
            states = [self._state_of(p) for p in params]
            for name in STATE:
                # `expand`: prodigyopt keeps a single zero for a parameter that started as zeros
                tensors = [state[name].flatten().expand(p.numel()) for state, p in zip(states, params, strict=True)]
                self._vectors[name] = torch.cat(tensors)
                for state, part in zip(states, _split(self._vectors[name], params), strict=True):
                    state[name] = part if name in FLAT else part.view_as(state[name])
            self._order = order
        return tuple(self._vectors[name] for name in STATE)

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """Return a parameter's state; a new one where it has none."""
        state: dict[str, Any] = self.state[p]
        if not state:
            state["s"], state["p0"] = torch.zeros_like(p).flatten(), p.flatten().clone()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state

    def _update_estimate(self, group: dict[str, Any], gain: Tensor, gradient_sum: Tensor, rate: float) -> bool:
        """Update the estimate d.

        Args:
            group: the parameter group, which holds d.
            gain: the sum over all weights of (start - weight) * gradient.
            gradient_sum: the 1-norm of the weighted sum of all gradients so far.
            rate: the learning rate of this step.

        Returns:
            False if all gradients so far were zero, so that there is no estimate yet.
        """
        gain_value, divisor = torch.stack([gain, gradient_sum]).tolist()
        if divisor == 0:
            return False
        d, d0 = group["d"], group["d0"]
        numerator = group["d_numerator"] * group["betas"][1] ** 0.5 + d / d0 * rate * gain_value
        d_hat = group["d_coef"] * numerator / divisor
        if d == d0:
            d = max(d, d_hat)
        d_max = max(group["d_max"], d_hat)
        group |= {"d_numerator": numerator, "d_denom": divisor, "d_hat": d_hat, "d_max": d_max}
        group["d"] = min(d_max, d * group["growth_rate"])
        return True


def _split(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split_with_sizes(vector, [tensor.numel() for tensor in like])
