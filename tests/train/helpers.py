"""What the tests of training share: recipes, a training context, and a loop over jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import LoRA
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.data.sources import Picture
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.optimizers import AdamW, Prodigy
from autolora.optim.schedules import AnnealedCosine, CosineRestarts
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import train
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job, TrainingContext

ADAPTER = LoRA(dim=2, alpha=1.1)  # an alpha that float32 cannot represent
ADAMW = Run(
    "adamw",
    ADAPTER,
    AdamW(lr=1e-3),
    CosineRestarts(),
    TrainSettings(epochs=3, images_per_concept=5, batch_size=4, scale_weight_norms=0.5, caption_dropout_rate=0.2),
)
PRODIGY = replace(ADAMW, name="prodigy", optimizer=Prodigy(), schedule=AnnealedCosine())
NO_MAX_NORM = replace(ADAMW.train, scale_weight_norms=None)


def make_context(
    model: StableDiffusion, folder: Path, cache: Path, run: Run = ADAMW, slots: int = 1
) -> TrainingContext:
    """Return a context for runs like `run`, with its adapter attached to the model."""
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    adapter = attach(model.modules, run.adapter, slots=slots)
    return TrainingContext(model, adapter, dataset, LatentCache(model, cache), PromptCache(model))


def train_all(context: TrainingContext, *jobs: Job) -> list[Checkpoint]:
    """Train jobs to their ends, detach the adapter and return all checkpoints."""
    queue, checkpoints = iter(jobs), []
    try:
        for ready in train(lambda: next(queue, None), context):
            checkpoints += [slot.checkpoint for slot in ready if slot.checkpoint]
    finally:
        context.adapter.detach()
    return checkpoints


def same_state(a: Checkpoint, b: Checkpoint) -> bool:
    """Return whether two checkpoints hold the same adapter, bit for bit."""
    return a.state.keys() == b.state.keys() and all(torch.equal(a.state[k], b.state[k]) for k in a.state)


def preserving(ratio: float) -> Run:
    """Return a run with prior preservation."""
    settings = replace(
        ADAMW.train, prior_preservation_ratio=ratio, caption_dropout_rate=0.5, class_caption_dropout_rate=0.5
    )
    return replace(ADAMW, train=settings)


def class_pictures_of(context: TrainingContext) -> tuple[Picture, ...]:
    """Return images of the dataset as class images."""
    return tuple(replace(p, caption="1girl", concept="") for p in context.dataset.validation)
