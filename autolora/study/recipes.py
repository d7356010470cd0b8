"""A run as a recipe file, as a command, and kept in `conf/recipe/`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf

from autolora.adapters.kinds import ADAPTERS
from autolora.config import RECIPES, ROOT
from autolora.data.caption_recipe import CaptionRecipe
from autolora.errors import ConfigError, StudyError
from autolora.evaluation.result import load_results
from autolora.files import write_atomic
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import SCHEDULES
from autolora.overrides import quote
from autolora.study.definition import StudyDefinition
from autolora.study.space import sampled_values
from autolora.study.trials import WINNER
from autolora.train.run import Run


def recipe_yaml(run: Run, name: str) -> str:
    """The text of a recipe file that composes to the same run, whatever the defaults are.

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
    """The command that trains a recipe with some keys set, on a dataset that is given by its folder's name."""
    overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    given = [] if dataset == "quickstart" else [f"dataset.path={dataset}"]
    return " ".join(["autolora train", f"recipe={recipe}", *map(quote, [*given, *overrides])])


def _kind(table: Mapping[str, type[Any]], part: object) -> str:
    return next(name for name, kind in table.items() if type(part) is kind)


def _plain(part: Any) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(part).items()}


def save_recipe(definition: StudyDefinition, study: optuna.Study, name: str) -> Path:
    """Write the recipe that a study exported as `conf/recipe/NAME.yaml` of the working directory.

    Raises:
        ConfigError: the name is none for a file, or another recipe has it.
        StudyError: the study has not ended yet.
        StorageError: the folder cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ConfigError(f"save_recipe={name} cannot be the name of a recipe: use letters, digits, - and _")
    number = study.user_attrs.get(WINNER)
    if number is None:
        raise StudyError(
            f"study {definition.settings.name} has exported nothing yet; `{definition.command}` runs it to its end"
        )
    trial = study.trials[number]
    best = max(
        load_results(definition.trial_files.fetch(trial.user_attrs["uid"], only="curve.json")),
        key=lambda p: p.objective,
    )
    about = ", ".join(study.user_attrs["space"][key] for key in ("dataset", "base model"))
    came_from = f"trial {number} of study {definition.settings.name} ({about}), after {best.step} images"
    comment = f"# {came_from}, by its search {best.summary}\n"
    content = recipe_yaml(definition.run(*sampled_values(trial)), name) + comment
    path = RECIPES / f"{name}.yaml"
    for known in (path, ROOT / "conf" / "recipe" / path.name):
        if known.is_file() and known.read_text("utf-8") != content:
            raise ConfigError(f"save_recipe={name}: there is another recipe of this name ({known}); choose another")
    write_atomic(path, content)
    return path
