"""Prodigy as prodigyopt has it, all parameters at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prodigyopt
import torch
from torch import Tensor


class BatchedProdigy(prodigyopt.Prodigy):  # type: ignore[misc]
    """prodigyopt's steps (Mishchenko & Defazio 2023) of one group with decoupled weight decay, to within rounding.

    prodigyopt takes parameter by parameter, and waits for the device twice at each to read its share of the estimate d.
    Here every operation takes all of them, and the device is waited for once a step. The state has the same names.
    """

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
        states = [self._state_of(p) for p in params]
        means, squares, sums, starts = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "s", "p0"))
        grads = [p.grad for p in params]
        flat_grads = [grad.flatten() for grad in grads]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=d * (1 - beta1))
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=d * d * (1 - beta2))
        torch._foreach_mul_(sums, beta3)
        torch._foreach_add_(sums, flat_grads, alpha=d / group["d0"] * d)
        ways = torch._foreach_sub(starts, [p.flatten() for p in params])
        torch._foreach_mul_(ways, flat_grads)
        if not self._estimate(group, ways, sums, rate):
            return
        torch._foreach_mul_(params, 1 - group["weight_decay"] * rate)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, group["d"] * group["eps"])
        torch._foreach_addcdiv_(params, means, divisors, value=-rate)
        group["k"] = count

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """A parameter's state, begun where it has none."""
        state: dict[str, Any] = self.state[p]
        if not state:
            state["s"], state["p0"] = torch.zeros_like(p).flatten(), p.flatten().clone()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state

    def _estimate(self, group: dict[str, Any], ways: tuple[Tensor, ...], sums: list[Tensor], rate: float) -> bool:
        """Bring d up to date; False where there is nothing to go by yet.

        Args:
            group: where d is kept.
            ways: how far each weight has come since the start, times its gradient.
            sums: of gradients so far.
            rate: of this step.
        """
        way = torch.cat(ways).sum(dtype=torch.float64)
        divisor = torch.stack(torch._foreach_norm(sums, 1)).sum(dtype=torch.float64)
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
