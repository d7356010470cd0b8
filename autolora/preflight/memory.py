"""Estimates the GPU memory of a recipe before it runs, without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import ADAPTERS, LoRA
from autolora.adapters.targets import TARGETS
from autolora.data.concepts import Dataset
from autolora.models.base import BaseModel
from autolora.models.meta_device import META, AutocastEmulator, MemoryCounter, backward, on_meta_device
from autolora.models.offload import OffloadManager, offloads
from autolora.models.settings import RenderSettings
from autolora.optim.base import Optimizer
from autolora.progress import Bars
from autolora.report.tables import Cell, Section
from autolora.scoring.encoders import BATCH_SIZE, Encoder, OpenClip, Timm
from autolora.train.caches import latent_shape
from autolora.train.loss import diffusion_loss
from autolora.train.oom_fallback import memory_suggestions
from autolora.train.run import Run

WORKSPACE = 300_000_000  # bytes of CUDA libraries, the mean error of the estimates in experiments/full_size without it
DRIVER = 500_000_000  # bytes that a process takes besides what PyTorch allocates
GB = 1e9


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes while images are prepared, while a recipe trains, and while its checkpoints are rendered."""

    training: int
    rendering: int
    scoring: int
    preparing: int

    @property
    def most(self) -> int:
        """The largest of them."""
        return max(self.training, self.rendering, self.scoring, self.preparing)


@dataclass(frozen=True)
class _Weights:
    """Bytes of a model's frozen parts."""

    core: int  # the denoiser, which is always on the device
    text: int
    vae: int

    @classmethod
    def of(cls, model: BaseModel) -> _Weights:
        core = sum(_size(part) for name, part in model.modules.items() if name not in model.text_encoder_names)
        return cls(core, sum(map(_size, model.text_encoders.values())), _size(model.vae))


def memory_need(
    run: Run, dataset: Dataset, model: BaseModel, offload: bool, slots: int = 1, looking: int = 0
) -> MemoryEstimate:
    """Estimate the GPU memory of a run, from a step and a render of the model on the meta device.

    Args:
        run: the recipe.
        dataset: its largest frame and its longest caption are what is tried.
        model: without an adapter.
        offload: whether text encoders and VAE leave the GPU while unused.
        slots: trials that train at once.
        looking: bytes that the scoring encoder takes, as `encoder_bytes` gives them.
    """
    weights, twin = _Weights.of(model), _twin(model)
    twin.tiled_decoding = offload
    meter = MemoryCounter()
    meter.count(_tensors([*twin.modules.values(), *twin.text_encoders.values(), twin.vae]))
    frozen = meter.now
    text, vae = (weights.text, weights.vae) if offload else (0, 0)  # these are offloaded while they are unused
    preparing = _encode(dataset, twin, meter) + vae
    if run.train.shows_class_pictures and not dataset.regularization:
        with AutocastEmulator(model.dtype), meter:
            reading, drawing, decoding = _render(replace(twin.settings.render, size=None), twin, meter)
        preparing = max(preparing, reading + text, drawing, decoding + vae)
    always = weights.core + WORKSPACE - frozen + weights.text + weights.vae - text - vae
    with AutocastEmulator(model.dtype), meter:
        adapter = attach(twin.modules, run.adapter, slots=slots)
        for slot in range(slots):
            adapter.start(slot, run.adapter, torch.Generator())
        trained = [parameter for slot in range(slots) for parameter in adapter.parameters(slot)]
        state = round(sum(parameter.numel() for parameter in trained) * state_bytes(run.optimizer))
        training = _train(run, dataset, twin, meter, slots, adapter.touches_text_encoder)
        adapter.clear_grads()
        held = meter.now
        with adapter.only(0):
            reading, drawing, decoding = _render(twin.settings.render, twin, meter)
    preparing += always
    if adapter.touches_text_encoder:
        always, text = always + text, 0
    always += state
    return MemoryEstimate(
        training=always + max(training, reading + text),
        rendering=always + max(reading + text, drawing, decoding + vae),
        scoring=always + held + looking,
        preparing=preparing,
    )


def encoder_bytes(encoder: Encoder) -> int:
    """Bytes of a scoring encoder with its weights while it embeds; 0 for the base model's own VAE."""
    if not isinstance(encoder, OpenClip | Timm):
        return 0
    twin = copy.copy(encoder)
    twin.model = on_meta_device(encoder.model)
    meter = MemoryCounter()
    meter.count(_tensors([twin.model]))
    with torch.no_grad(), AutocastEmulator(torch.float32), meter:
        twin.features(torch.zeros(BATCH_SIZE, 3, *twin.side, device=META))
    return meter.peak


def _twin(model: BaseModel) -> Any:
    """The model on the meta device; the caller emulates autocast and offloading."""
    twin: Any = on_meta_device(model)
    twin.device, twin.dtype = META, torch.float32
    idle = OffloadManager(META, {}, offload=False)
    twin.on_device, twin.keep_on_device = idle.on_device, idle.keep_on_device
    return twin


@torch.no_grad()
def _encode(dataset: Dataset, twin: Any, meter: MemoryCounter) -> int:
    """Peak bytes while the largest image is encoded."""
    meter.peak = meter.now
    with AutocastEmulator(torch.float32), meter:
        width, height = _largest_frame(dataset) or (twin.resolution, twin.resolution)
        twin.encode_images(torch.zeros(1, 3, height, width, device=META))
    return meter.peak


def _largest_frame(dataset: Dataset) -> tuple[int, int] | None:
    pictures = [*dataset.pictures, *dataset.regularization]
    return max((p.bucket for p in pictures if p.bucket), key=lambda sides: sides[0] * sides[1], default=None)


def _train(run: Run, dataset: Dataset, twin: Any, meter: MemoryCounter, slots: int, reads: bool) -> int:
    """Peak bytes of a forward and a backward pass; the gradients stay.

    Args:
        reads: whether the text encoders are trained, too.
    """
    pictures = [*dataset.pictures, *dataset.regularization]
    count = run.train.batch_size * slots
    caption = max((picture.caption for picture in pictures), key=lambda text: len(twin.tokens(text)))
    with torch.set_grad_enabled(reads):
        context = twin.encode_prompts([caption] * count)
    meter.peak = meter.now
    noisy = torch.zeros(count, *latent_shape(twin, _largest_frame(dataset)), device=META)
    timesteps = torch.zeros(count, dtype=torch.long, device=META)
    predicted = twin.predict(noisy, timesteps, context)
    backward(diffusion_loss(twin, predicted, torch.zeros_like(noisy), timesteps, run.train).mean())
    return meter.peak


@torch.no_grad()
def _render(settings: RenderSettings, twin: Any, meter: MemoryCounter) -> tuple[int, int, int]:
    """Peak bytes while the prompts of a batch are encoded, while it is denoised, and while an image is decoded."""
    peaks = list[int]()

    def done() -> None:
        peaks.append(meter.peak)
        meter.peak = meter.now

    meter.peak = meter.now
    count = settings.batch_size * (1 if settings.guidance_scale == 1 or twin.guidance_embeds else 2)
    context = twin.encode_prompts([settings.prompt("")] * count)
    done()
    latents = torch.zeros(count, *latent_shape(twin, (settings.side(twin.resolution),) * 2), device=META)
    with twin.fixed_context():
        drawn = twin.predict(latents, torch.zeros(count, dtype=torch.long, device=META), context)
        done()
    with AutocastEmulator(torch.float32):
        twin.decode_latents(drawn[:1])
    done()
    reading, drawing, decoding = peaks
    return reading, drawing, decoding


def state_bytes(optimizer: Optimizer) -> float:
    """The bytes that an optimizer keeps, as one step of it shows."""
    if optimizer.state_bytes is not None:
        return optimizer.state_bytes
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


def memory_section(
    runs: Sequence[Run], dataset: Dataset, model: BaseModel, slots: int, encoder: Encoder | str, bars: Bars
) -> Section:
    """The GPU memory of each recipe, and whether it fits into this GPU.

    Args:
        runs: the recipes, and what a study's ranges make of them.
        dataset: what they train on.
        model: without an adapter.
        slots: trials that train at once.
        encoder: what judges checkpoints, or why it is missing.
        bars: where progress is shown.
    """
    card = torch.cuda.get_device_properties(model.device).total_memory if model.device.type == "cuda" else None
    offload = offloads(model.settings.offload, model.device) if card else model.settings.offload is not False
    words = [f"estimated by a step and a render without weights; a process takes {DRIVER / GB} GB beside it"]
    if isinstance(encoder, str):
        words.append("without what the scoring encoder takes, which is missing")
    looking = 0 if isinstance(encoder, str) else encoder_bytes(encoder)
    found, known = list[tuple[Run, MemoryEstimate]](), dict[tuple[object, ...], MemoryEstimate]()
    tried = largest(runs)
    with bars.task("estimating memory", len(tried)) as advance:
        for run in tried:
            key = (run.adapter, run.optimizer, run.train.batch_size, run.train.shows_class_pictures)
            if key not in known:
                known[key] = memory_need(run, dataset, model, offload, slots if run.adapter.packable else 1, looking)
            found.append((run, known[key]))
            if card and known[key].most + DRIVER > card:
                words.append(f"{describe_memory(run)} will not fit: set {' or '.join(memory_suggestions(run, model))}")
            advance(1)
    run, need = max(found, key=lambda pair: pair[1].most)
    most = f"{model.name}, {model.resolution} px, {describe_memory(run)}: at most {need.most / GB:.1f} GB"
    words.insert(0, most + (f" of this card's {card / GB:.1f}" if card else " of a GPU's memory"))
    preparing = max(need.preparing for _, need in found)
    words.insert(1, f"before anything trains, encoding pictures and drawing class pictures: {preparing / GB:.1f} GB")
    rows: list[tuple[Cell, ...]] = [
        (run.name, *_shape(run), need.training / GB, need.rendering / GB, need.scoring / GB, need.most / GB)
        for run, need in found
    ]
    columns = ("recipe", "adapter", "dim", "batch", "training GB", "rendering GB", "scoring GB", "at most")
    return Section("GPU memory", columns, tuple(dict.fromkeys(rows)), tuple(words))


def largest(runs: Sequence[Run]) -> list[Run]:
    """The first run of each name, and those of the others that no run of the same name exceeds in every respect."""
    found = []
    for name in dict.fromkeys(run.name for run in runs):
        by_extent: dict[tuple[int, ...], Run] = {}
        for run in runs:
            if run.name == name:
                by_extent.setdefault(_extent(run), run)
        first, *others = by_extent
        found.append(by_extent[first])
        found += [by_extent[one] for one in others if not any(_within(one, two) for two in by_extent if two != one)]
    return found


def _extent(run: Run) -> tuple[int, ...]:
    """The quantities of a run that raise its memory."""
    adapter, train = run.adapter, run.train
    targets = (target in adapter.targets for target in TARGETS)
    layers = *targets, adapter.text_encoder, adapter.dim, _conv_rank(run)
    return train.batch_size, train.shows_class_pictures, *layers


def _within(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def _conv_rank(run: Run) -> int:
    """The rank of convolutions; 0 if they are not trained."""
    adapter = run.adapter
    return adapter.conv_ranks[0] if isinstance(adapter, LoRA) and "conv" in adapter.targets else 0


def _shape(run: Run) -> tuple[str, str, int]:
    """A run's adapter, its rank and its batch."""
    kind = next(name for name, kind in ADAPTERS.items() if kind is type(run.adapter))
    conv = f" + {_conv_rank(run)} conv" * (_conv_rank(run) > 0)
    return kind, f"{run.adapter.dim}{conv}", run.train.batch_size


def describe_memory(run: Run) -> str:
    """A run in words: what decides its memory."""
    kind, dim, batch = _shape(run)
    return f"{run.name} ({kind} of dim {dim}, batch {batch})"
