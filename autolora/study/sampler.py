"""What the study draws next: Optuna's TPE, seeded anew for each trial, which also knows earlier studies' trials."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autolora.study.optuna_internals import StudyWithPriors


class PerTrialSeededTPE(BaseSampler):
    """TPE whose draws follow from the study's seed, the trial's number and the trials known by then.

    No two workers draw the same startup trials, and a continued study draws the same values as an uninterrupted one.
    Priors are trials of earlier studies: known before the first trial, they count as older than it.
    """

    def __init__(self, seed: int, n_startup_trials: int, priors: Sequence[FrozenTrial] = ()) -> None:
        self.seed, self.n_startup_trials = seed, n_startup_trials
        self.priors = [copy.copy(prior) for prior in priors]
        for place, prior in enumerate(self.priors):
            prior.number = place - len(priors)
        self._number, self._tpe = -1, self._seeded(0)

    def _seeded(self, number: int) -> TPESampler:
        (seed,) = np.random.SeedSequence([self.seed, number]).generate_state(1)
        return TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,  # do not sample near trials that other workers run
            n_startup_trials=self.n_startup_trials,
            seed=int(seed),
        )

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if trial.number != self._number:
            self._number, self._tpe = trial.number, self._seeded(trial.number)
        return self._tpe

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are sampled together."""
        return self._of(trial).infer_relative_search_space(StudyWithPriors(study, self.priors), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the parameters of the relative search space."""
        return self._of(trial).sample_relative(StudyWithPriors(study, self.priors), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample one parameter that is not in the relative search space."""
        informed = StudyWithPriors(study, self.priors)
        return self._of(trial).sample_independent(informed, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on that a trial has ended."""
        self._of(trial).after_trial(study, trial, state, values)
