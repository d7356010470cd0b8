"""A study before it runs: its recipes and ranges checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.errors import ConfigError
from autolora.renamed_keys import refuse_renamed
from autolora.study.artifacts import Store, TrialFiles, local_store, open_bucket
from autolora.study.settings import StudySettings, study_settings
from autolora.study.space import Space, highest, parse_space
from autolora.study.storage import redact_url, storage_url
from autolora.train.run import Run


@dataclass(frozen=True)
class StudyDefinition:
    """A study's fixed parts: its settings, its space, its folder, its storage and how a trial's run is composed."""

    settings: StudySettings
    space: Space
    folder: Path
    study_name: str
    arguments: tuple[str, ...]  # without `storage`, which may hold a password
    storage_argument: str | None = field(default=None, repr=False)
    warm_start: tuple[str, ...] = ()  # earlier studies
    human_preference: bool = False  # whether a person chooses between the finalists
    bucket: Store | None = field(default=None, repr=False, compare=False)  # pictures and checkpoints go there too
    _runs: dict[tuple[str, ...], Run] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def storage(self) -> str:
        """The URL of the storage, with its password."""
        return storage_url(self.storage_argument, self.folder)

    @cached_property
    def store(self) -> Store:
        """Where pictures lie that the dashboard shows."""
        return self.bucket or local_store(self.folder)

    @cached_property
    def trial_files(self) -> TrialFiles:
        """The trials' folders."""
        return TrialFiles(self.folder / "trials", self.bucket)

    @property
    def command(self) -> str:
        """What continues the study, without a password."""
        lasting = [one for one in self.arguments if one.partition("=")[0] not in ("quiet", "json", "workers")]
        words = ["autolora tune", self.study_name, *lasting]
        return " ".join(words + ([f"storage={redact_url(self.storage_argument)}"] if self.storage_argument else []))

    def run(self, recipe: str, values: dict[str, Any]) -> Run:
        """The run of a recipe with some keys set; composed once, as a page that fills asks for all of them again."""
        overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
        key = (recipe, *overrides)
        if key not in self._runs:
            composed = cfg.compose("tune", [f"recipe={recipe}", *self.arguments, *overrides], self.study_name)
            self._runs[key] = cfg.build_run(composed)
        return self._runs[key]

    def widest_runs(self) -> list[Run]:
        """Each recipe with every value of a key that decides what its workbench must hold, and all at their largest."""
        needed = ("adapter.", "train.prior_preservation_ratio", "train.reg_ratio", "train.flip_aug", "train.batch_size")
        runs = []
        for recipe, ranges in self.space.items():
            found = {key: values.values for key, values in ranges.items() if key.startswith(needed)}
            runs += [self.run(recipe, {key: value}) for key, values in found.items() for value in values]
            runs.append(self.run(recipe, {key: highest(values) for key, values in found.items()}))
        return runs

    def default_values(self, recipe: str) -> dict[str, Any]:
        """A recipe's own value of every key that the study varies."""
        composed = self.config(recipe)
        return {key: value_of(composed, recipe, key) for key in self.space[recipe]}

    def config(self, recipe: str) -> DictConfig:
        """A recipe as it is, composed."""
        return cfg.compose("tune", [f"recipe={recipe}", *self.arguments], self.study_name)


def adapter_notes(runs: Iterable[Run]) -> list[str]:
    """What a person should know of the runs' adapters before training, a line each, no line twice."""
    return list(dict.fromkeys(f"{run.name}: {note}" for run in runs for note in run.adapter.notes()))


def value_of(config: DictConfig, recipe: str, key: str) -> Any:
    """A key's value in a recipe's config; the steps of a concept that has none of its own are those of each.

    Raises:
        ConfigError: there is no such key.
    """
    refuse_renamed(key)
    if key.startswith("train.concept_images."):
        return config.train.concept_images.get(
            key.removeprefix("train.concept_images."), config.train.images_per_concept
        )
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            raise ConfigError(f"study.recipes.{recipe}.{key}: recipe {recipe} has no key `{key}`")
        node = node[part]
    return node


def define_study(
    config: DictConfig, study_name: str, arguments: Sequence[str]
) -> tuple[StudyDefinition, dict[str, dict[str, Any]]]:
    """Check a study before anything loads; returns it with each recipe's own values.

    Raises:
        ConfigError: every range or recipe that cannot be, all at once.
    """
    settings = study_settings(config)
    space = parse_space(settings.recipes)
    folder = cfg.run_folder(config, settings.name)
    definition = StudyDefinition(
        settings,
        space,
        folder,
        study_name,
        tuple(arguments),
        config.get("storage"),
        warm_start=cfg.names(config.warm_start, "warm_start"),
        human_preference=cfg.flag(config.human_preference, "human_preference"),
        bucket=open_bucket(config.artifact_store),
    )
    own, mistakes = {}, []
    for recipe, keys in space.items():
        try:
            own[recipe] = definition.default_values(recipe)
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
    return definition, own
