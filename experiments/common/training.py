"""Training runs and studies of the synthetic test world, as several experiments need them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.adapters.settings import Adapter
from autolora.cli import main as autolora
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset
from autolora.data.sources import Picture
from autolora.errors import StudyError
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.settings import Settings, build_settings
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import train_one
from autolora.train.run import Run
from autolora.train.slot import TrainingContext


def settings_of(*overrides: str, study: str | None = None) -> Settings:
    """Return the settings that a command with these overrides has.

    Args:
        overrides: as on the command line, `key=value`.
        study: a study of `studies/` or the path of a YAML file; None: the settings of a single training run.
    """
    config = cfg.compose("tune" if study else "train", list(overrides), study)
    return build_settings(config, study, overrides)


def packaged_model() -> BaseModel:
    """Load the base model of the synthetic test world."""
    return load_model(settings_of().model)


def training_context(
    model: BaseModel, adapter: Adapter, dataset: Dataset, latents: Path, class_images: tuple[Picture, ...] = ()
) -> TrainingContext:
    """Attach an adapter to the model and return what a training run needs.

    Args:
        model: the base model.
        adapter: the kind and size of the adapter.
        dataset: the images to train on.
        latents: the folder in which encoded images are cached.
        class_images: images of the class word, for prior preservation and regularization.
    """
    attached = attach(model.modules, adapter)
    return TrainingContext(model, attached, dataset, LatentCache(model, latents), PromptCache(model), class_images)


def train_to_end(run: Run, folder: Path, out: Path, model: BaseModel) -> Iterator[Checkpoint]:
    """Train a recipe to its end without scoring it, and yield every checkpoint.

    Args:
        run: the recipe.
        folder: the dataset.
        out: the folder that latents are cached in.
        model: the base model; no adapter may be attached to it.
    """
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    context = training_context(model, run.adapter, dataset, out / "latents")
    yield from train_one(run, context)
    context.adapter.detach()


def tune(study: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Run `autolora tune` in this process and return the content of its `result.json`.

    Args:
        study: a study of `studies/`, or the path of a YAML file.
        folder: the study's folder.
        overrides: further settings, `key=value`.

    Raises:
        StudyError: the command failed; it has printed why.
    """
    if code := autolora(["tune", study, f"out={folder}", *overrides]):
        raise StudyError(f"the study in {folder} ended with exit code {code}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result
