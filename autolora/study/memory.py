"""What a recipe takes of a GPU's memory, told before it runs and without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autolora.adapters.adapter_set import attach
from autolora.data.concepts import Dataset
from autolora.models.base import BaseModel
from autolora.models.hollow import META, Meter, OnGpu, backward, hollow
from autolora.models.residence import Residence, offloads
from autolora.optim.optimizers import AdamW8bit, Optimizer
from autolora.progress import Bars
from autolora.report.sections import Cell, Section
from autolora.train.batches import latent_shape
from autolora.train.loss import diffusion_loss
from autolora.train.room import savings
from autolora.train.run import Run

WORKSPACE = 300_000_000  # bytes that CUDA's libraries work in: the mean of what full_size.py's rows lack without it
DRIVER = 500_000_000  # bytes that a process takes beside what PyTorch allocates
GB = 1e9


@dataclass(frozen=True)
class Need:
    """Bytes at most while a recipe trains, and while its checkpoints are rendered."""

    training: int
    rendering: int

    @property
    def most(self) -> int:
        """Of both."""
        return max(self.training, self.rendering)


@dataclass(frozen=True)
class _Weights:
    """Bytes of a model's frozen parts."""

    core: int  # what denoises: always on the device
    text: int
    vae: int

    @classmethod
    def of(cls, model: BaseModel) -> _Weights:
        core = sum(_size(part) for name, part in model.modules.items() if name not in model.text_parts)
        return cls(core, sum(map(_size, model.text_encoders.values())), _size(model.vae))


def memory_need(run: Run, dataset: Dataset, model: BaseModel, offload: bool, slots: int = 1) -> Need:
    """What a run takes on a GPU, by a step and a render of the model without its weights.

    Args:
        run: the recipe.
        dataset: its largest frame and its longest caption are what is tried.
        model: without an adapter.
        offload: whether text encoders and VAE leave the GPU while unused.
        slots: trials that train at once.
    """
    weights, twin = _Weights.of(model), _twin(model)
    twin.tiles = offload
    meter = Meter()
    meter.count(_tensors([*twin.modules.values(), *twin.text_encoders.values(), twin.vae]))
    frozen = meter.now
    with OnGpu(model.dtype), meter:
        adapter = attach(twin.modules, run.adapter, slots=slots)
        for slot in range(slots):
            adapter.start(slot, run.adapter, torch.Generator())
        trained = [parameter for slot in range(slots) for parameter in adapter.parameters(slot)]
        state = round(sum(parameter.numel() for parameter in trained) * state_bytes(run.optimizer))
        training = _train(run, dataset, twin, meter, slots, adapter.touches_text_encoder)
        with adapter.only(0):
            reading, drawing, decoding = _render(twin, meter)
    always = weights.core + state + WORKSPACE - frozen
    always += 0 if offload else weights.vae
    always += weights.text if adapter.touches_text_encoder or not offload else 0
    text, vae = (0 if adapter.touches_text_encoder else weights.text, weights.vae) if offload else (0, 0)
    rendering = max(reading + text, drawing, decoding + vae)
    return Need(always + max(training, reading + text), always + rendering)


def _twin(model: BaseModel) -> Any:
    """The model without its weights; autocast and moving parts are left to whoever counts."""
    twin: Any = hollow(model)
    twin.device, twin.dtype = META, torch.float32
    idle = Residence(META, {}, offload=False)
    twin.using, twin.stay = idle.using, idle.stay
    return twin


def _train(run: Run, dataset: Dataset, twin: Any, meter: Meter, slots: int, reads: bool) -> int:
    """Bytes at most of a step forth and back; its gradients are still there afterwards.

    Args:
        reads: whether the text encoders are trained, too.
    """
    pictures = [*dataset.pictures, *dataset.regularization]
    frame = max((p.frame for p in pictures if p.frame), key=lambda sides: sides[0] * sides[1], default=None)
    count = run.train.batch_size * slots
    caption = max((picture.caption for picture in pictures), key=lambda text: len(twin.tokens(text)))
    with torch.set_grad_enabled(reads):
        context = twin.encode_prompts([caption] * count)
    meter.peak = meter.now
    noisy = torch.zeros(count, *latent_shape(twin, frame), device=META)
    timesteps = torch.zeros(count, dtype=torch.long, device=META)
    predicted = twin.predict(noisy, timesteps, context)
    backward(diffusion_loss(twin, predicted, torch.zeros_like(noisy), timesteps, run.train).mean())
    return meter.peak


@torch.no_grad()
def _render(twin: Any, meter: Meter) -> tuple[int, int, int]:
    """Bytes at most while a batch's prompts are read, while it is drawn, and while a picture is decoded."""
    settings, peaks = twin.settings.render, []

    def done() -> None:
        peaks.append(meter.peak)
        meter.peak = meter.now

    meter.peak = meter.now
    count = settings.batch_size * (1 if settings.guidance == 1 or twin.tells_guidance else 2)
    context = twin.encode_prompts([settings.prompt("")] * count)
    done()
    latents = torch.zeros(count, *latent_shape(twin, (settings.side(twin),) * 2), device=META)
    with twin.fixed_context():
        drawn = twin.predict(latents, torch.zeros(count, dtype=torch.long, device=META), context)
        done()
    with OnGpu(torch.float32):
        twin.decode_latents(drawn[:1])
    done()
    reading, drawing, decoding = peaks
    return reading, drawing, decoding


def state_bytes(optimizer: Optimizer) -> float:
    """What an optimizer keeps for each parameter, as a step of it shows."""
    if isinstance(optimizer, AdamW8bit):  # it steps on a GPU only
        return 2.0
    parameter = nn.Parameter(torch.ones(64, 64))
    parameter.grad = torch.ones(64, 64)
    stepping = optimizer.build([parameter])
    stepping.step()
    kept = [value for state in stepping.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in kept) / parameter.numel()


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors([module]))


def memory_section(runs: Sequence[Run], dataset: Dataset, model: BaseModel, slots: int, bars: Bars) -> Section:
    """What each recipe takes of a GPU's memory, and whether it fits into the one at hand."""
    card = torch.cuda.get_device_properties(model.device).total_memory if model.device.type == "cuda" else None
    offload = offloads(model.settings.offload, model.device) if card else model.settings.offload is not False
    rows: list[tuple[Cell, ...]] = []
    words = [f"estimated by a step and a render without weights; a process takes {DRIVER / GB} GB beside it"]
    known: dict[tuple[object, ...], Need] = {}
    with bars.task("estimating memory", len(runs)) as advance:
        for run in runs:
            key = (run.adapter, run.optimizer, run.train.batch_size)
            if key not in known:
                known[key] = memory_need(run, dataset, model, offload, slots if run.adapter.packs else 1)
            need = known[key]
            rows.append((run.name, run.train.batch_size, need.training / GB, need.rendering / GB, need.most / GB))
            if card and need.most + DRIVER > card:
                words.append(f"{run.name} will not fit: set {' or '.join(savings(run, model))}")
            advance(1)
    most = f"{model.name}, {model.resolution} px: at most {max(need.most for need in known.values()) / GB:.1f} GB"
    words.insert(0, most + (f" of this card's {card / GB:.1f}" if card else " of a GPU's memory"))
    return Section(
        "GPU memory", ("recipe", "batch", "training GB", "rendering GB", "at most"), tuple(rows), tuple(words)
    )
