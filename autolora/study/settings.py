"""A study's settings: its name, its search space as written, its size, how it ends."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from omegaconf import DictConfig

from autolora.config import build, refuse_renamed
from autolora.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a study may spend, over all sittings and workers; what is None sets no limit."""

    trials: int = 10
    minutes: float | None = None
    steps: int | None = None
    stagnation: int | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"budget.minutes must be above 0 or null, got {self.minutes}")
        if self.trials < 1:
            raise ConfigError(f"budget.trials must be at least 1, got {self.trials}")
        for name in ("steps", "stagnation"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ConfigError(f"budget.{name} must be at least 1 or null, got {given}")


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """A study's name, search space (as written) and budget."""

    name: str
    recipes: dict[str, Any]
    budget: Budget = Budget()
    pack: int | str = 1  # or auto
    startup_trials: int = 3
    finalists: int = 3
    retrain_seeds: int = 2
    average: bool = True
    rescale: bool = True
    seed: int = 0
    patience: int = 2
    heartbeat_seconds: float = 30.0
    grace_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_seconds < self.grace_seconds:
            raise ConfigError(
                "study.heartbeat_seconds must be above 0 and below study.grace_seconds, got "
                f"{self.heartbeat_seconds:g} and {self.grace_seconds:g}"
            )
        if self.pack != "auto" and (isinstance(self.pack, str) or self.pack < 1):
            raise ConfigError(
                f"study.pack must be auto or a whole number of at least 1 (one trial at a time), got {self.pack}"
            )
        if min(self.finalists, self.patience) < 1 or self.startup_trials < 0:
            raise ConfigError(
                "study.finalists and study.patience must be at least 1 and study.startup_trials 0 or more, got "
                f"{self.finalists}, {self.patience} and {self.startup_trials}"
            )
        if self.retrain_seeds < 0:
            raise ConfigError(f"study.retrain_seeds must be 0 (none) or more, got {self.retrain_seeds}")

    @property
    def search_minutes(self) -> float:
        """The search's part of the time: 30% are kept for finals that train again."""
        minutes = math.inf if self.budget.minutes is None else self.budget.minutes
        return minutes * (0.7 if self.retrain_seeds else 1.0)

    def finals_seconds(self, searched: float) -> float:
        """What the finals may take after a search of so many seconds: all that is left of the study's time.

        Without training again they are short, and the search has the time to itself.
        """
        minutes = self.budget.minutes
        return 60 * minutes - searched if minutes is not None and self.retrain_seeds else math.inf


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
