"""A study before it runs: its recipes and ranges checked, its storage opened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.study.sampler import SeededByTrial
from autolora.study.space import Space, as_text, difference, parse_space
from autolora.study.storage import Say, open_storage, shown, storage_url
from autolora.train.run import Run


@dataclass(frozen=True)
class Plan:
    """A study's fixed parts: its settings, its space, its folder, its storage and how a trial's run is composed."""

    settings: cfg.StudySettings
    space: Space
    folder: Path
    study_name: str
    arguments: tuple[str, ...]  # without `storage`, which may hold a password
    given_storage: str | None = field(default=None, repr=False)
    _runs: dict[tuple[str, ...], Run] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def storage(self) -> str:
        """The URL of the storage, with its password."""
        return storage_url(self.given_storage, self.folder)

    @property
    def command(self) -> str:
        """What continues the study, without a password."""
        lasting = [one for one in self.arguments if one.partition("=")[0] not in ("quiet", "json", "workers")]
        words = ["autolora tune", self.study_name, *lasting]
        return " ".join(words + ([f"storage={shown(self.given_storage)}"] if self.given_storage else []))

    def run(self, recipe: str, values: dict[str, Any]) -> Run:
        """The run of a recipe with some keys set; composed once, as a page that fills asks for all of them again."""
        overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
        key = (recipe, *overrides)
        if key not in self._runs:
            composed = cfg.compose("tune", [f"recipe={recipe}", *self.arguments, *overrides], self.study_name)
            self._runs[key] = cfg.build_run(composed)
        return self._runs[key]

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
    folder = cfg.run_folder(config, settings.name)
    plan = Plan(settings, space, folder, study_name, tuple(arguments), config.get("storage"))
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


def open_study(plan: Plan, own: dict[str, dict[str, Any]], identity: dict[str, str], say: Say) -> optuna.Study:
    """Create the study, or continue it where its space, dataset and model are unchanged.

    Raises:
        StudyError: what changed, and what to do; or the storage does not answer.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(plan.storage, say),
        study_name=plan.settings.name,
        direction="maximize",
        load_if_exists=True,
        **methods(plan.settings),
    )
    if study.user_attrs.get("space") is None:
        for recipe, values in own.items():
            named = {f"{recipe}/{key}": value for key, value in values.items()}
            study.enqueue_trial({"recipe": recipe, **named}, user_attrs={"baseline": recipe})
        study.set_user_attr("command", {"study": plan.study_name, "arguments": list(plan.arguments)})
        study.set_user_attr("space", {**as_text(plan.space), **identity})  # last: now others may join
    _refuse_changes(plan, study, identity)
    return study


def join_study(plan: Plan, identity: dict[str, str], say: Say) -> optuna.Study:
    """The study as `autolora tune` started it.

    Raises:
        StudyError: it was not started, or otherwise than this worker would go on with it.
    """
    study = started_study(plan, say)
    _refuse_changes(plan, study, identity)
    return study


def started_study(plan: Plan, say: Say) -> optuna.Study:
    """The study as it is, whatever is different now.

    Raises:
        StudyError: it was not started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = None
    if not _missing(plan):
        with suppress(KeyError):
            storage = open_storage(plan.storage, say)
            study = optuna.load_study(storage=storage, study_name=plan.settings.name, **methods(plan.settings))
    if study is None or study.user_attrs.get("space") is None:
        where = shown(plan.given_storage) if plan.given_storage else str(plan.folder)
        raise StudyError(
            f"no study {plan.settings.name} in {where}; run `autolora tune {plan.study_name}` first, or name its "
            "folder with out=FOLDER or its database with storage=URL"
        )
    return study


def _missing(plan: Plan) -> bool:
    """Whether there is no database in the study's folder; one that is merely asked after is not created."""
    return plan.given_storage is None and not (plan.folder / "study.db").is_file()


def joined(storage: str | None, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The study file and the arguments of a study known by name and storage; one's own arguments go before its.

    Args:
        storage: its URL.
        arguments: `study=NAME`, and what is different here, such as `out` and `dataset.path`.

    Raises:
        ConfigError: no name or no storage is given.
        StudyError: no such study is there.
    """
    names = [argument.removeprefix("study=") for argument in arguments if argument.startswith("study=")]
    if not names or storage is None:
        raise ConfigError("a worker needs the study that it joins: study=NAME storage=URL, or what `tune` was given")
    behind = open_storage(storage_url(storage, Path()), print)
    try:
        study = optuna.load_study(storage=behind, study_name=names[-1])
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(behind))) or "none"
        raise StudyError(f"no study {names[-1]} in {shown(storage)}; it has {known}") from error
    command = study.user_attrs.get("command")
    if command is None:
        raise StudyError(f"study {names[-1]} in {shown(storage)} was not started by `autolora tune`")
    own = [argument for argument in arguments if not argument.startswith("study=")]
    return command["study"], [*command["arguments"], *own]


def methods(settings: cfg.StudySettings) -> dict[str, Any]:
    """Sampler and pruner."""
    return {
        "sampler": SeededByTrial(settings.seed, settings.startup_trials),
        "pruner": optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2),
    }


def _refuse_changes(plan: Plan, study: optuna.Study, identity: dict[str, str]) -> None:
    old, new = study.user_attrs["space"], {**as_text(plan.space), **identity}
    if old != new:
        changed = "; ".join(difference(old, new))
        raise StudyError(f"study {plan.settings.name} in {plan.folder} was started differently ({changed}); "
                         "undo the change, or start another with out=OTHER_FOLDER (and study.name=ANOTHER in a shared "
                         "storage)")  # fmt: skip
