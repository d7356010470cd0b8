"""The library of recipes: what won a study is kept under `conf/recipe/`, where later studies take it from."""

from __future__ import annotations

import re
from pathlib import Path

import optuna

from autolora.config import RECIPES, ROOT
from autolora.errors import ConfigError, StudyError
from autolora.evaluation.result import load_results
from autolora.files import write_atomic
from autolora.study.definition import StudyDefinition
from autolora.study.recipes import recipe_yaml
from autolora.study.space import sampled_values
from autolora.study.trials import WINNER


def save_recipe(definition: StudyDefinition, study: optuna.Study, name: str) -> Path:
    """Write the recipe that a study exported as `conf/recipe/NAME.yaml` of the working directory.

    Raises:
        ConfigError: the name is none for a file, or another recipe has it.
        StudyError: the study has not ended yet.
        StorageError: the folder cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ConfigError(f"save_recipe={name} is no name for a recipe: use letters, digits, - and _")
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
    came_from = f"trial {number} of study {definition.settings.name} ({about}), step {best.step}"
    comment = f"# {came_from}, by its search {best.summary}\n"
    content = recipe_yaml(definition.run(*sampled_values(trial)), name) + comment
    path = RECIPES / f"{name}.yaml"
    for known in (path, ROOT / "conf" / "recipe" / path.name):
        if known.is_file() and known.read_text("utf-8") != content:
            raise ConfigError(f"save_recipe={name}: there is another recipe of this name ({known}); choose another")
    write_atomic(path, content)
    return path
