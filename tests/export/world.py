"""A small dataset and a random adapter for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.kinds import LoRA
from autolora.data.concepts import Concept, Dataset
from autolora.data.sources import Picture
from autolora.models.base import BaseModel
from autolora.optim.schedules import CosineRestarts
from autolora.train.run import Run, TrainSettings


def picture(name: str, caption: str, concept: str) -> Picture:
    """An image whose file does not exist; no test opens it."""
    return Picture(Path(name), caption, concept, 64, 64, "0" * 64)


def dataset() -> Dataset:
    """A dataset of one character in two outfits."""
    concepts = tuple(
        Concept(
            f"zorak {tag}",
            tag,
            tuple(picture(f"{tag}{i}.png", f"1girl, zorak, {tag}, röd \\(x\\)", f"zorak {tag}") for i in range(4)),
        )
        for tag in ("fit_a", "fit_b")
    )
    return Dataset("zorak", Path("zorak"), "zorak", "1girl", concepts, (picture("h.png", "1girl", "zorak fit_a"),))


def run(adapter: LoRA) -> Run:
    """A run of two epochs, each with ten images of each outfit."""
    settings = TrainSettings(epochs=2, images_per_concept=10, batch_size=4, scale_weight_norms=1.0)
    return Run("guide-adamw", adapter=adapter, schedule=CosineRestarts(), train=settings)


def random_state(model: BaseModel, spec: LoRA, seed: int = 0, size: float = 0.05) -> State:
    """An adapter with random factors, so that no layer's weight change is zero."""
    generator = torch.Generator().manual_seed(seed)
    adapter = attach(model.modules, spec)
    try:
        adapter.start(0, spec, generator)
        state = adapter.state(0)
    finally:
        adapter.detach()
    return {
        key: value if key.endswith("alpha") else torch.randn(value.shape, generator=generator) * size
        for key, value in state.items()
    }
