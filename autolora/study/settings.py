"""A study's settings: its name, its search space as written, its size, how it ends."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from omegaconf import DictConfig

from autolora.config import build
from autolora.errors import ConfigError
from autolora.renamed_keys import refuse_renamed


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a study may spend, over all sittings and workers; what is None sets no limit."""

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


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """A study's name, search space (as written) and budget."""

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

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_interval < self.grace_period:
            raise ConfigError(
                "study.heartbeat_interval must be above 0 and below study.grace_period, got "
                f"{self.heartbeat_interval:g} and {self.grace_period:g}"
            )
        if self.trials_per_device != "auto" and (isinstance(self.trials_per_device, str) or self.trials_per_device < 1):
            raise ConfigError(
                f"study.trials_per_device must be auto or a whole number of at least 1 (one trial at a time), got {self.trials_per_device}"
            )
        if min(self.n_finalists, self.patience) < 1 or self.n_startup_trials < 0:
            raise ConfigError(
                "study.n_finalists and study.patience must be at least 1 and study.n_startup_trials 0 or more, got "
                f"{self.n_finalists}, {self.patience} and {self.n_startup_trials}"
            )
        if self.final_seeds < 0:
            raise ConfigError(f"study.final_seeds must be 0 (none) or more, got {self.final_seeds}")

    @property
    def search_minutes(self) -> float:
        """The search's part of the time: 30% are kept for finals that train again."""
        minutes = math.inf if self.budget.minutes is None else self.budget.minutes
        return minutes * (0.7 if self.final_seeds else 1.0)

    def finals_seconds(self, searched: float) -> float:
        """What the finals may take after a search of so many seconds: all that is left of the study's time.

        Without training again they are short, and the search has the time to itself.
        """
        minutes = self.budget.minutes
        return 60 * minutes - searched if minutes is not None and self.final_seeds else math.inf


def study_settings(config: DictConfig) -> StudySettings:
    """The study and its budget as a config has them.

    Raises:
        ConfigError: a key that does not exist, or a value that cannot be.
    """
    for key in config.study:
        refuse_renamed(f"study.{key}")
    if "budget" in config.study:
        raise ConfigError("budget is a key of its own, beside study and not below it")
    settings = build(StudySettings, config.study, "study")
    return dataclasses.replace(settings, budget=build(Budget, config.budget, "budget"))


RETRAINED_RECIPES = 2  # recipes that are trained again
STRONGER, WEAKER = (1.25, 1.5), (0.8,)  # what a LoRA's strength is multiplied by as long as that makes it better

SWEEP_WEIGHTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
