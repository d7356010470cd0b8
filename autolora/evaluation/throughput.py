"""How fast this machine trains and renders, measured on a few steps before a study begins."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import psutil
import torch

from autolora.errors import MemoryFull
from autolora.models.base import BaseModel
from autolora.models.settings import RenderSettings
from autolora.sampling import RenderRequest, render
from autolora.train.run import Run
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from autolora.train.step import train_step

RENDERED_STEPS = 2  # denoising steps that are timed; the time of a whole render is scaled up from them
PACKED_STEPS = 3  # training steps that are timed, after one that is not
LEAST_GAIN = 1.1  # the speed-up that twice as many trials at once must bring to be worth their memory


@dataclass(frozen=True)
class Speed:
    """Seconds for one image in training and for one render, and the memory in use."""

    seconds_per_image: float
    seconds_per_render: float
    memory_gib: float
    memory_of: str  # "GPU memory" or "memory"


def measure_speed(run: Run, context: TrainingContext, settings: RenderSettings) -> Speed:
    """Train two steps of a run and render one batch; the first step of training is not timed.

    The adapter is left with a trained state: load another before it is used.
    """
    slot = TrainingSlot(0, Job(run), context)
    for _ in range(2):
        began, before = _now(context.model), slot.step
        train_step(context, {0: slot})
        training = (_now(context.model) - began) / (slot.step - before)
    short = replace(settings, num_inference_steps=min(RENDERED_STEPS, settings.num_inference_steps))
    shots = [RenderRequest(context.dataset.class_word, seed, 1.0) for seed in range(settings.batch_size)]
    began = _now(context.model)
    render(context.model, shots, short, context.adapter)
    rendering = (_now(context.model) - began) / len(shots) * settings.num_inference_steps / short.num_inference_steps
    return Speed(training, rendering, *_memory(context.model))


def packed_speeds(run: Run, context: TrainingContext, most: int) -> dict[int, float]:
    """Measure the optimizer steps per second, of all runs together, with 1, 2, 4 ... runs at once up to `most`.

    The measurement ends where twice as many may not fit into the machine's memory, and where a number does not fit into
    the GPU's memory or is hardly faster than half as many. It is empty where not even one run fits.

    Args:
        run: what is trained.
        context: with one slot; it is unchanged afterwards.
        most: runs at once.
    """
    rates: dict[int, float] = {}
    count = 1
    while count <= most:
        try:
            rates[count] = _packed_speed(run, context, count)
        except (torch.OutOfMemoryError, MemoryFull):
            torch.cuda.empty_cache()
            break
        if count > 1 and rates[count] < LEAST_GAIN * rates[count // 2]:
            break
        if psutil.virtual_memory().available < psutil.Process().memory_info().rss:
            break
        count *= 2
    return rates


def _packed_speed(run: Run, context: TrainingContext, count: int) -> float:
    with context.adapter.widened(count) as wide:
        packed = replace(context, adapter=wide)
        slots = {index: TrainingSlot(index, Job(run), packed) for index in range(count)}
        train_step(packed, slots)
        began = _now(context.model)
        for _ in range(PACKED_STEPS):
            train_step(packed, slots)
        return PACKED_STEPS * count / (_now(context.model) - began)


def _now(model: BaseModel) -> float:
    """The time once the device has finished all its work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _memory(model: BaseModel) -> tuple[float, str]:
    """The GiB in use (on a GPU the peak so far), and whether they are GPU memory."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / 2**30, "GPU memory"
    return psutil.Process().memory_info().rss / 2**30, "memory"
