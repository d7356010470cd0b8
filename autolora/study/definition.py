"""A study before it runs: its recipes and ranges, checked, and how each trial's run is composed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from autolora import config as cfg
from autolora.data.concepts import Dataset
from autolora.errors import ConfigError
from autolora.evaluation.identity import identity_of, run_identity
from autolora.files import expand_user
from autolora.renamed_keys import refuse_renamed
from autolora.settings import RUN_KEYS, Settings, StudySettings, build_run
from autolora.study.artifacts import Store, TrialFiles, local_store, open_bucket
from autolora.study.space import Range, Space, highest, parse_space
from autolora.study.storage import redact_url, storage_url
from autolora.train.run import Run

SESSION_KEYS = (  # a key whose value decides what a session must hold in memory
    "adapter.",
    "train.prior_preservation_ratio",
    "train.reg_ratio",
    "train.flip_aug",
    "train.batch_size",
)


@dataclass(frozen=True)
class StudyDefinition:
    """A study's fixed parts: its settings, its search space, its folder and the command that started it."""

    settings: StudySettings
    space: Space
    folder: Path
    source: str  # the study as it was named: one of `studies/`, or the path of a YAML file
    arguments: tuple[str, ...]  # of the command line, without `storage`, which may hold a password
    dataset: str = ""  # the name of its dataset's folder
    identity: Mapping[str, str] = field(default_factory=dict)  # settings that all recipes share; images
    default_values: dict[str, dict[str, Any]] = field(default_factory=dict)  # by recipe: its value of each searched key
    bucket: Store | None = field(default=None, repr=False, compare=False)  # images and checkpoints are copied there
    _runs: dict[tuple[str, ...], Run] = field(init=False, default_factory=dict, repr=False, compare=False)
    _configs: dict[str, DictConfig] = field(init=False, default_factory=dict, repr=False, compare=False)
    _run_configs: dict[str, DictConfig] = field(init=False, default_factory=dict, repr=False, compare=False)  # faster

    @property
    def storage(self) -> str:
        """The URL of the storage, with its password."""
        return storage_url(self.settings.storage, self.folder)

    @cached_property
    def store(self) -> Store:
        """The artifact store of the images that the dashboard shows."""
        return self.bucket or local_store(self.folder)

    @cached_property
    def trial_files(self) -> TrialFiles:
        """The trials' folders."""
        return TrialFiles(self.folder / "trials", self.bucket)

    @property
    def command(self) -> str:
        """The command that continues the study, without a password."""
        lasting = [one for one in self.arguments if one.partition("=")[0] not in ("quiet", "json", "workers")]
        words = ["autolora tune", self.source, *lasting]
        return " ".join(words + ([f"storage={redact_url(self.settings.storage)}"] if self.settings.storage else []))

    def run(self, recipe: str, values: Mapping[str, Any]) -> Run:
        """The run of a recipe with some keys set; built once, as a report asks for the runs of all trials again."""
        key = (recipe, *(f"{name}={value}" for name, value in values.items()))
        if key not in self._runs:
            if recipe not in self._run_configs:
                self._run_configs[recipe] = OmegaConf.masked_copy(self.config(recipe), ["recipe_name", *RUN_KEYS])
            self._runs[key] = build_run(cfg.with_values(self._run_configs[recipe], values))
        return self._runs[key]

    @property
    def baseline_runs(self) -> list[Run]:
        """The runs of the recipes unchanged."""
        return [self.run(recipe, {}) for recipe in self.space]

    @property
    def session_runs(self) -> list[Run]:
        """The runs that a session of this study must be able to hold: the baselines and the widest runs."""
        return [*self.baseline_runs, *self.widest_runs()]

    @cached_property
    def fixed(self) -> dict[str, str]:
        """What must stay the same while the study is continued, besides its space and its base model."""
        recipes = [run_identity(self.run(name, {}), keys, f"{name}/") for name, keys in self.space.items()]
        return {**self.identity, **{key: value for recipe in recipes for key, value in recipe.items()}}

    def widest_runs(self) -> list[Run]:
        """Each recipe with each value of a key of `SESSION_KEYS`, and with all of them at their largest."""
        runs = []
        for recipe, ranges in self.space.items():
            values = {key: values.values for key, values in ranges.items() if key.startswith(SESSION_KEYS)}
            runs += [self.run(recipe, {key: value}) for key, choices in values.items() for value in choices]
            runs.append(self.run(recipe, {key: highest(choices) for key, choices in values.items()}))
        return runs

    def config(self, recipe: str) -> DictConfig:
        """The composed config of a recipe unchanged."""
        if recipe not in self._configs:
            self._configs[recipe] = cfg.compose("tune", [f"recipe={recipe}", *self.arguments], self.source)
        return self._configs[recipe]


def adapter_notes(runs: Iterable[Run]) -> list[str]:
    """What a person should know of the runs' adapters before training, a line each, without repeats."""
    return list(dict.fromkeys(f"{run.name}: {note}" for run in runs for note in run.adapter.notes()))


def value_of(config: DictConfig, recipe: str, key: str) -> Any:
    """A key's value in a recipe's config; a concept without an image count of its own has that of each concept.

    Raises:
        ConfigError: there is no such key.
    """
    refuse_renamed(key)
    if key.startswith("train.concept_images."):
        name = key.removeprefix("train.concept_images.")
        return config.train.concept_images.get(name, config.train.images_per_concept)
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            raise ConfigError(f"study.recipes.{recipe}.{key}: recipe {recipe} has no key `{key}`")
        node = node[part]
    return OmegaConf.to_container(node) if isinstance(node, ListConfig) else node


def _mistakes_in_ranges(definition: StudyDefinition, recipe: str, ranges: Mapping[str, Range]) -> list[str]:
    """What is wrong with the ranges of a recipe: without effect, around another value, or of values that cannot be."""
    mistakes, own = [], definition.default_values[recipe]
    for key, values in ranges.items():
        where = f"study.recipes.{recipe}.{key}"
        if key.partition(".")[0] not in RUN_KEYS:
            only = ", ".join(RUN_KEYS)
            mistakes.append(f"{where}: a range would have no effect: only keys of {only} differ from trial to trial")
        elif own[key] not in values:
            mistakes.append(f"{where}: the recipe's own {own[key]} is outside {values.text()}")
        else:
            mistakes += _impossible_values(definition, recipe, ranges, key)
    return mistakes


def _impossible_values(definition: StudyDefinition, recipe: str, ranges: Mapping[str, Range], key: str) -> list[str]:
    """Why a value of a range cannot be, alone and with a value of each other key; at most one reason."""
    others = [(other, value) for other, values in ranges.items() if other != key for value in values.extremes]
    for value in ranges[key].extremes:
        reason = _reason_against(definition, recipe, {key: value})
        if reason and all(_reason_against(definition, recipe, {key: value, other: v}) for other, v in others):
            return [f"study.recipes.{recipe}.{key}={value}: {reason}"]
    return []


def _reason_against(definition: StudyDefinition, recipe: str, values: Mapping[str, Any]) -> str:
    """Why a recipe cannot have some values; empty if it can."""
    try:
        definition.run(recipe, values)
    except ConfigError as error:
        return str(error)
    return ""


def define_study(settings: Settings, dataset: Dataset | None = None) -> StudyDefinition:
    """Check a study before anything loads.

    Args:
        settings: those of a command with a study.
        dataset: the images as they were read; without them a study is continued on any.

    Raises:
        ConfigError: every range or recipe that cannot be, all at once.
    """
    study = settings.study
    if study is None or settings.source is None:
        raise ConfigError("no study is named: name one of studies/, or the path of a .yaml file")
    definition = StudyDefinition(
        study,
        parse_space(study.recipes),
        settings.folder,
        settings.source,
        settings.overrides,
        dataset=expand_user(settings.dataset.path).resolve().name,
        identity=identity_of(settings, dataset),
        bucket=open_bucket(study.artifact_store),
    )
    mistakes = []
    for recipe, ranges in definition.space.items():
        try:
            config = definition.config(recipe)
            defaults = {key: value_of(config, recipe, key) for key in ranges}
        except ConfigError as error:
            mistakes.append(str(error))
            continue
        definition.default_values[recipe] = defaults
        mistakes += _mistakes_in_ranges(definition, recipe, ranges)
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return definition
