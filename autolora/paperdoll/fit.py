"""The training loop for every part of the synthetic test world; it can be resumed and returns averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from autolora.files import atomic_path

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def fit(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int, int], Tensor],
    *,
    steps: int,
    lr: float,
    build: Path,
    shards: int = 1,
    average: float = 0.998,
    save_every: int = 200,
) -> nn.Module:
    """Train a module and leave the averaged weights in it.

    The state is written atomically to `build/<name>.pt`, from which a killed run continues.

    Args:
        name: of the part, for the progress bar and the state file.
        module: the module to train.
        loss_at: returns the loss of (step, shard); it must depend on nothing else, so that a run can be continued.
        steps: the number of optimizer steps.
        lr: the learning rate.
        build: the folder of the state file.
        shards: parts of a batch that are computed in parallel threads; the loss of a step is their mean.
        average: the decay of the weight average.
        save_every: steps between two writes of the state.
    """
    state_path = build / f"{name}.pt"
    parameters = [p for p in module.parameters() if p.requires_grad]

    def gradients(step: int, shard: int) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_at(step, shard)
        return loss.item(), torch.autograd.grad(loss, parameters)

    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    averaged = {k: v.detach().clone() for k, v in module.state_dict().items()}
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        averaged, first = state["averaged"], state["step"]
    with Progress(*_COLUMNS, speed_estimate_period=120) as progress, ThreadPoolExecutor(shards) as threads:
        task = progress.add_task(name, total=steps, completed=first)
        running = 0.0
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * _lr_factor(step, steps)
            parts = list(threads.map(gradients, [step] * shards, range(shards)))
            loss = sum(part[0] for part in parts) / shards
            _set_gradients(parameters, [part[1] for part in parts])
            optimizer.step()
            _update_average(averaged, module, decay=min(average, (step + 1) / (step + 10)))
            running = loss if step == first else 0.98 * running + 0.02 * loss
            progress.update(task, advance=1, description=f"{name} loss {running:.4f}")
            if (step + 1) % save_every == 0 or step + 1 == steps:
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
                _save({**state, "averaged": averaged, "step": step + 1}, state_path)
    module.load_state_dict(averaged)
    return module.eval()


def _set_gradients(parameters: list[nn.Parameter], shards: list[tuple[Tensor, ...]]) -> None:
    """Set each parameter's gradient to the mean over the shards, clipped to a norm of 1."""
    for parameter, *grads in zip(parameters, *shards, strict=True):
        parameter.grad = torch.stack(grads).mean(0)
    nn.utils.clip_grad_norm_(parameters, 1.0)


def _save(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _lr_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate: a linear warmup of 100 steps and a cosine decay to 2%."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


@torch.no_grad()
def _update_average(averaged: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the module's; integer buffers are copied."""
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            averaged[key].lerp_(value, 1 - decay)
        else:
            averaged[key].copy_(value)
