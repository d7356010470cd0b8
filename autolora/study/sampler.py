"""What the study draws next: Optuna's TPE, seeded anew for each trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState


class SeededByTrial(BaseSampler):
    """TPE whose draws follow from the study's seed, the trial's number and the trials known by then.

    No two workers draw the same startup trials, and a study that was stopped and continued draws what it would have.
    """

    def __init__(self, seed: int, startup_trials: int) -> None:
        self.seed, self.startup_trials = seed, startup_trials
        self._number, self._tpe = -1, self._seeded(0)

    def _seeded(self, number: int) -> TPESampler:
        (seed,) = np.random.SeedSequence([self.seed, number]).generate_state(1)
        return TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,  # others are at work: stay away from where they are
            n_startup_trials=self.startup_trials,
            seed=int(seed),
        )

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if trial.number != self._number:
            self._number, self._tpe = trial.number, self._seeded(trial.number)
        return self._tpe

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As TPE."""
        self._of(trial).after_trial(study, trial, state, values)
