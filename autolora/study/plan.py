"""A study before it runs: its recipes and ranges checked, its storage opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.study.space import Space, as_text, difference, parse_space
from autolora.train.run import Run


@dataclass(frozen=True)
class Plan:
    """A study's fixed parts: its settings, its space, its folder and how a trial's run is composed."""

    settings: cfg.StudySettings
    space: Space
    folder: Path
    study_name: str
    arguments: tuple[str, ...]

    def run(self, recipe: str, values: dict[str, Any]) -> Run:
        """The run of a recipe with some keys set."""
        overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
        composed = cfg.compose("tune", [f"recipe={recipe}", *self.arguments, *overrides], self.study_name)
        return cfg.build_run(composed)

    def extremes(self) -> list[Run]:
        """Each recipe with every value of a key that decides what its workbench must hold."""
        needed = ("adapter.", "train.preserve_share", "train.regularization_share")
        return [
            self.run(recipe, {key: value})
            for recipe, ranges in self.space.items()
            for key, found in ranges.items()
            if key.startswith(needed)
            for value in found.values
        ]

    def own_values(self, recipe: str) -> dict[str, Any]:
        """A recipe's own value of every key that the study varies."""
        composed = cfg.compose("tune", [f"recipe={recipe}", *self.arguments], self.study_name)
        return {key: _value(composed, recipe, key) for key in self.space[recipe]}


def _value(config: DictConfig, recipe: str, key: str) -> Any:
    """A key's value in a recipe's config; the steps of a concept that has none of its own are those of each.

    Raises:
        ConfigError: there is no such key.
    """
    if key.startswith("train.steps_of."):
        return config.train.steps_of.get(key.removeprefix("train.steps_of."), config.train.steps_per_concept)
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            raise ConfigError(f"study.recipes.{recipe}.{key}: recipe {recipe} has no key `{key}`")
        node = node[part]
    return node


def make_plan(config: DictConfig, study_name: str, arguments: Sequence[str]) -> tuple[Plan, dict[str, dict[str, Any]]]:
    """Check a study before anything loads; returns it with each recipe's own values.

    Raises:
        ConfigError: every range or recipe that cannot be, all at once.
    """
    settings = cfg.study_settings(config)
    space = parse_space(settings.recipes)
    plan = Plan(settings, space, cfg.run_folder(config, settings.name), study_name, tuple(arguments))
    own, mistakes = {}, []
    for recipe, keys in space.items():
        try:
            own[recipe] = plan.own_values(recipe)
        except ConfigError as error:
            mistakes.append(str(error))
            continue
        for key, values in keys.items():
            if own[recipe][key] not in values:
                mistakes.append(
                    f"study.recipes.{recipe}.{key}: the recipe's own {own[recipe][key]} is outside {values.text()}"
                )
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return plan, own


def study_storage(folder: Path) -> optuna.storages.RDBStorage:
    """The database of a study's folder."""
    return optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )


def open_study(plan: Plan, own: dict[str, dict[str, Any]], identity: dict[str, str]) -> optuna.Study:
    """Create the study, or continue it where its space, dataset and model are unchanged.

    Raises:
        StudyError: what changed, and what to do.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    settings = plan.settings
    sampler = optuna.samplers.TPESampler(
        multivariate=True,
        group=True,
        n_startup_trials=settings.startup_trials,
        seed=settings.seed,
    )
    study = optuna.create_study(
        storage=study_storage(plan.folder),
        study_name=settings.name,
        sampler=sampler,
        pruner=optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2),
        direction="maximize",
        load_if_exists=True,
    )
    new = {**as_text(plan.space), **identity}
    old = study.user_attrs.get("space")
    if old is None:
        study.set_user_attr("space", new)
        for recipe, values in own.items():
            named = {f"{recipe}/{key}": value for key, value in values.items()}
            study.enqueue_trial({"recipe": recipe, **named}, user_attrs={"baseline": recipe})
    elif old != new:
        changed = "; ".join(difference(old, new))
        raise StudyError(f"study {settings.name} in {plan.folder} was started differently ({changed}); "
                         "undo the change, or start another with out=OTHER_FOLDER")  # fmt: skip
    return study
