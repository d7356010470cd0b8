"""A run as text to take away: a recipe file, and the command that trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from autolora.adapters.adapter_set import ADAPTERS
from autolora.config import quote
from autolora.data.caption_recipe import CaptionRecipe
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import SCHEDULES
from autolora.train.run import Run


def recipe_yaml(run: Run, name: str) -> str:
    """A file for `conf/recipe/`, which composes to the same run whatever the defaults are.

    Args:
        run: the recipe, every key of it.
        name: what it is called.
    """
    kinds = {
        "adapter": _kind(ADAPTERS, run.adapter),
        "optimizer": _kind(OPTIMIZERS, run.optimizer),
        "schedule": _kind(SCHEDULES, run.schedule),
    }
    defaults = ", ".join(f"override /{group}: {kind}" for group, kind in kinds.items())
    body = {group: _plain(getattr(run, group)) for group in (*kinds, "train")}
    if run.captions != CaptionRecipe():
        body["captions"] = _plain(run.captions)
    content = OmegaConf.to_yaml(OmegaConf.create({"recipe_name": name, **body}))
    return f"# @package _global_\ndefaults: [{defaults}]\n{content}"


def train_command(recipe: str, values: Mapping[str, Any], dataset: str) -> str:
    """The command that trains a recipe with some keys set, on pictures that are given by their folder's name."""
    overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    given = [] if dataset == "quickstart" else [f"dataset.path={dataset}"]
    return " ".join(["autolora train", f"recipe={recipe}", *map(quote, [*given, *overrides])])


def _kind(table: Mapping[str, type[Any]], part: object) -> str:
    return next(name for name, kind in table.items() if type(part) is kind)


def _plain(part: Any) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(part).items()}
