"""A character's bank as a study sees it: its recipes become trials, and end where a study would end them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.scoring.settings import ScoringSettings
from autolora.settings import StudySettings
from autolora.study.space import Space, parse_space, suggest
from autolora.train.run import Run
from experiments.common.scores import Row
from experiments.common.training import settings_of
from experiments.replay.bank_rows import SPACE, facts_of, stored_keys


@dataclass(frozen=True)
class BankRecipe:
    """A recipe of the bank: its values by `recipe/key`, their distributions in the space, and its rows by step."""

    recipe: str
    params: dict[str, Any]
    distributions: dict[str, optuna.distributions.BaseDistribution]
    rows: list[Row]

    @property
    def images(self) -> int:
        """The images shown by the whole training run."""
        return int(self.rows[-1]["step"])


@dataclass(frozen=True)
class Bank:
    """A character's recipes, and what a study must know to evaluate them."""

    pool: list[BankRecipe]
    space: Space  # with keys as the rows call them
    base_losses: Sequence[float]
    scoring: ScoringSettings
    settings: StudySettings

    @property
    def rows(self) -> list[Row]:
        """All checkpoints."""
        return [row for entry in self.pool for row in entry.rows]

    @property
    def baselines(self) -> list[BankRecipe]:
        """The recipes unchanged, which come first."""
        return [next(entry for entry in self.pool if entry.recipe == recipe) for recipe in self.space]


def read_bank(name: str, rows: Sequence[Row]) -> Bank:
    """Return a character's bank, with the space that its recipes were drawn from.

    The keys of the space are those of the rows: TPE draws parameters in the alphabetical order of their names, so with
    other names it would draw other values than when the results were measured.
    """
    settings = settings_of(study=SPACE)
    assert settings.study is not None
    space = {recipe: stored_keys(ranges) for recipe, ranges in parse_space(settings.study.recipes).items()}
    by_number: dict[str, list[Row]] = {}
    for row in rows:
        by_number.setdefault(row["number"], []).append(row)
    pool = []
    for recipe_rows in by_number.values():
        values = json.loads(recipe_rows[0]["recipe"])
        recipe = values.pop("recipe")
        params = {"recipe": recipe, **{f"{recipe}/{key}": values[key] for key in space[recipe]}}
        trial = optuna.trial.FixedTrial(params)
        suggest(trial, space)
        pool.append(BankRecipe(recipe, params, trial.distributions, recipe_rows))
    return Bank(pool, space, facts_of(name)["base_losses"], settings.scoring, settings.study)


def trial_of(entry: BankRecipe, state: TrialState, value: float | None, reported: Sequence[float]) -> FrozenTrial:
    """Return a recipe of the bank as a trial.

    Args:
        entry: the recipe.
        state: the trial's state.
        value: its objective; only a complete trial has one.
        reported: the objective at each of its checkpoints.
    """
    values = {number: float(v) for number, v in enumerate(reported, 1)}
    return create_trial(
        state=state,
        value=value if state is TrialState.COMPLETE else None,
        params=entry.params,
        distributions=entry.distributions,
        intermediate_values=values,
    )


def early_end(
    study: optuna.Study, bank: Bank, entry: BankRecipe, curve: list[CheckpointResult], is_baseline: bool
) -> TrialState | None:
    """Return the state in which a trial ends at its latest checkpoint, or None; baselines are never pruned."""
    if TrialFolder(Path(), Run(entry.recipe), curve).should_stop_overcooked(bank.settings.patience):
        return TrialState.COMPLETE
    best_so_far = np.maximum.accumulate([p.objective for p in curve])
    running = trial_of(entry, TrialState.RUNNING, None, list(best_so_far))
    return TrialState.PRUNED if not is_baseline and study.pruner.prune(study, running) else None


def quiet_optuna() -> None:
    """Turn off Optuna's log and its warnings about experimental features."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
