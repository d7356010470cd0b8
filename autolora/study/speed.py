"""How fast this machine trains and renders, measured on a few steps before a study begins."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import psutil
import torch

from autolora.models.base import BaseModel, RenderSettings
from autolora.sampling import Shot, render
from autolora.train.loop import Assignment, Bench, Slot, train_step
from autolora.train.run import Run

RENDERED_STEPS = 2  # denoising steps that are timed; a whole render is so many times longer


@dataclass(frozen=True)
class Speed:
    """Seconds for one image in training and for one render, and the memory in use."""

    seconds_per_image: float
    seconds_per_render: float
    memory_gib: float
    memory_of: str  # GPU memory, or memory


def measure_speed(run: Run, bench: Bench, settings: RenderSettings) -> Speed:
    """Train two steps of a run and render one batch; the first step of training is not timed.

    The adapter is left with a trained state: load another before it is used.
    """
    slot = Slot(0, Assignment(run), bench)
    for _ in range(2):
        began, before = _now(bench.model), slot.step
        train_step(bench, {0: slot})
        training = (_now(bench.model) - began) / (slot.step - before)
    short = replace(settings, steps=min(RENDERED_STEPS, settings.steps))
    shots = [Shot(bench.dataset.class_word, seed, 1.0) for seed in range(settings.batch_size)]
    began = _now(bench.model)
    render(bench.model, shots, short, bench.adapter)
    rendering = (_now(bench.model) - began) / len(shots) * settings.steps / short.steps
    return Speed(training, rendering, *_memory(bench.model))


def _now(model: BaseModel) -> float:
    """The time when all that was asked of the device is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _memory(model: BaseModel) -> tuple[float, str]:
    """GiB in use (on a GPU at most so far), and what they are of."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / 2**30, "GPU memory"
    return psutil.Process().memory_info().rss / 2**30, "memory"
