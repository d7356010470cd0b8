"""One frozen `Settings`, built once from the composed config and passed on to everything that a command does."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from autolora.adapters.kinds import ADAPTERS
from autolora.config_values import convert, convert_value
from autolora.data.caption_recipe import CaptionRecipe
from autolora.data.concepts import DatasetSettings
from autolora.errors import ConfigError
from autolora.export.settings import ExportSettings
from autolora.files import expand_user
from autolora.models.settings import ModelSettings
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import SCHEDULES
from autolora.paperdoll.weights import QUICKSTART
from autolora.prepare.tagger_base import TaggerSettings
from autolora.renamed_keys import refuse_renamed
from autolora.scoring.settings import ScoringSettings
from autolora.train.run import InitFile, Run, TrainSettings

RUN_KEYS = ("adapter", "optimizer", "schedule", "train", "captions", "init_lora")  # all that `build_run` reads
RETRAINED_RECIPES = 2  # recipes that the finals train again
STRONGER, WEAKER = (1.25, 1.5), (0.8,)  # scales that the finals try on a LoRA, as long as each makes it better
SWEEP_WEIGHTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # LoRA weights that the winner is evaluated at


@dataclass(frozen=True)
class Budget:
    """What a study may spend, over all its sessions and workers; None sets no limit."""

    n_trials: int = 10
    minutes: float | None = None
    max_images: int | None = None
    max_stale_trials: int | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"budget.minutes must be above 0 or null, got {self.minutes}")
        if self.n_trials < 1:
            raise ConfigError(f"budget.n_trials must be at least 1, got {self.n_trials}")
        for name in ("max_images", "max_stale_trials"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ConfigError(f"budget.{name} must be at least 1 or null, got {given}")


@dataclass(frozen=True)
class StudySettings:
    """What `autolora tune` was asked for: the study's name, its search space as written, its budget and its storage."""

    name: str
    recipes: dict[str, Any]
    budget: Budget = Budget()
    trials_per_device: int | str = 1  # or auto
    n_startup_trials: int = 3
    n_finalists: int = 3
    final_seeds: int = 2
    average_checkpoints: bool = True
    try_lora_scales: bool = True
    seed: int = 0
    patience: int = 2
    heartbeat_interval: float = 30.0
    grace_period: float = 120.0
    storage: str | None = field(
        default=None, repr=False
    )  # a URL, which may hold a password; None: SQLite in the folder
    warm_start: tuple[str, ...] = ()  # earlier studies that this one starts from
    human_preference: bool = False  # a person chooses between the finalists
    artifact_store: str | None = None  # s3://BUCKET/PREFIX that images and checkpoints are copied to
    workers: int | str = 1  # processes to start here, or auto

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_interval < self.grace_period:
            raise ConfigError(
                "study.heartbeat_interval must be above 0 and below study.grace_period, got "
                f"{self.heartbeat_interval:g} and {self.grace_period:g}"
            )
        if self.trials_per_device != "auto" and (isinstance(self.trials_per_device, str) or self.trials_per_device < 1):
            raise ConfigError(
                "study.trials_per_device must be auto or a whole number of at least 1 (one trial at a time), got "
                f"{self.trials_per_device}"
            )
        if min(self.n_finalists, self.patience) < 1 or self.n_startup_trials < 0:
            raise ConfigError(
                "study.n_finalists and study.patience must be at least 1 and study.n_startup_trials 0 or more, got "
                f"{self.n_finalists}, {self.patience} and {self.n_startup_trials}"
            )
        if self.final_seeds < 0:
            raise ConfigError(f"study.final_seeds must be 0 (none) or more, got {self.final_seeds}")
        if self.workers != "auto" and (not isinstance(self.workers, int) or self.workers < 1 or self.workers is True):
            raise ConfigError(f"workers must be auto or a whole number of at least 1, got {self.workers}")

    @property
    def search_minutes(self) -> float:
        """The minutes after which the search ends: 30% are reserved for finals that train again, 10% for others."""
        minutes = math.inf if self.budget.minutes is None else self.budget.minutes
        return minutes * (0.7 if self.final_seeds else 0.9)


@dataclass(frozen=True)
class Settings:
    """Everything that one command was asked for."""

    run: Run  # the recipe; a study composes a run for each trial
    dataset: DatasetSettings
    model: ModelSettings
    scoring: ScoringSettings
    tagger: TaggerSettings
    export: ExportSettings
    study: StudySettings | None  # None for a command without a study
    cache: Path  # latents and base renders, shared by all studies
    out: Path | None  # the folder that is written to; None: `folder` chooses one
    lora: str | None  # the LoRA file or folder to score
    dims: tuple[int, ...] | None  # the ranks to try for a smaller file; None: halves
    save_recipe: str | None  # the name that a study's best recipe is kept under
    probe_triggers: bool  # whether `check` renders what the triggers' words mean to the base model
    quiet: bool
    json: bool
    source: str | None = None  # the study as it was named: one of `studies/`, or the path of a YAML file
    overrides: tuple[str, ...] = ()  # what the config was composed with, without `storage`

    @property
    def folder(self) -> Path:
        """The folder of the study or the single run: `out`, or runs/<name>-<dataset folder>."""
        if self.out:
            return self.out
        name = self.study.name if self.study else self.run.name
        return Path("runs") / f"{name}-{expand_user(self.dataset.path).resolve().name}"


def build_settings(config: DictConfig, source: str | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Build the settings of a composed config.

    Args:
        config: as `config.compose` made it.
        source: the study that it was composed with.
        overrides: those that it was composed with, by which a study composes its recipes.

    Raises:
        ConfigError: a key that does not exist, or a value that cannot be.
    """
    dataset = convert(DatasetSettings, config.dataset, "dataset")
    if dataset.path == "quickstart":
        dataset = replace(dataset, path=str(QUICKSTART))
    dims = config.dims if config.dims is None or isinstance(config.dims, ListConfig) else [config.dims]
    return Settings(
        run=build_run(config),
        dataset=dataset,
        model=convert(ModelSettings, config.model, "model"),
        scoring=convert(ScoringSettings, config.scoring, "scoring"),
        tagger=convert(TaggerSettings, config.tagger, "tagger"),
        export=convert(ExportSettings, config.export, "export"),
        study=_study_settings(config) if "study" in config else None,
        cache=expand_user(str(config.cache)),
        out=expand_user(str(config.out)) if config.out else None,
        lora=str(config.lora) if config.lora else None,
        dims=convert_value(tuple[int, ...] | None, dims, "dims"),
        save_recipe=str(config.save_recipe) if config.get("save_recipe") else None,
        probe_triggers=flag(config.probe_triggers, "probe_triggers"),
        quiet=flag(config.quiet, "quiet"),
        json=flag(config.json, "json"),
        source=source,
        overrides=tuple(overrides),
    )


def build_run(config: DictConfig) -> Run:
    """Build the run that a composed config describes.

    Raises:
        ConfigError: a kind, a key or a value that cannot be.
    """
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("adapter", ADAPTERS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
    ]
    parts: dict[str, Any] = {}
    for name, table in tables:
        kind = config[name].get("kind")
        if kind not in table:
            raise ConfigError(f"{name}.kind={kind} is unknown; expected one of {', '.join(table)}")
        parts[name] = convert(table[kind], config[name], name)
    train, captions = convert(TrainSettings, config.train, "train"), convert(CaptionRecipe, config.captions, "captions")
    return Run(config.recipe_name, **parts, train=train, captions=captions, init_lora=_init_file(config.init_lora))


def _study_settings(config: DictConfig) -> StudySettings:
    for key in config.study:
        refuse_renamed(f"study.{key}")
    if "budget" in config.study:
        raise ConfigError("budget is a key of its own, beside study and not below it")
    settings = convert(StudySettings, config.study, "study")
    return replace(
        settings,
        budget=convert(Budget, config.budget, "budget"),
        storage=text(config.storage, "storage"),
        warm_start=names(config.warm_start, "warm_start"),
        human_preference=flag(config.human_preference, "human_preference"),
        artifact_store=text(config.artifact_store, "artifact_store"),
        workers=config.workers,
    )


def _init_file(path_text: Any) -> InitFile | None:
    """The file that training starts from, with the hash of its content."""
    if path_text is None:
        return None
    path = expand_user(str(path_text))
    if not path.is_file():
        raise ConfigError(
            f"init_lora={path_text} is no file: give the path of a .safetensors LoRA to start from, or leave it out"
        )
    status = path.stat()
    return InitFile(str(path), _sha256(path, status.st_size, status.st_mtime_ns))


@functools.cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """The hash of a file; size and time are part of the cache's key, as a study builds its runs often."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"init_lora={path} cannot be read ({error.strerror}): give a file that you may read"
        ) from error


def flag(value: Any, key: str) -> bool:
    """Return the value of a key that is true or false.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, got {value}")
    return value


def text(value: Any, key: str) -> str | None:
    """Return the value of a key that takes a text or none, which is not shown as it may hold a password.

    Raises:
        ConfigError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key} must be text, got {type(value).__name__}")
    return value


def names(value: Any, key: str) -> tuple[str, ...]:
    """Return the value of a key that takes one name, a list of names, or none, without repeats.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else list(value) if isinstance(value, list | ListConfig) else value
    if not isinstance(listed, list) or not all(isinstance(name, str) and name for name in listed):
        raise ConfigError(f"{key} must be a name, or several as {key}=[a,b], got {value}")
    return tuple(dict.fromkeys(listed))
