"""What the study draws next: Optuna's TPE, seeded anew for each trial, which also knows earlier studies' trials."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState


class PerTrialSeededTPE(BaseSampler):
    """TPE whose draws follow from the study's seed, the trial's number and the trials known by then.

    No two workers draw the same startup trials, and a study that was stopped and continued draws what it would have.
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
            constant_liar=True,  # others are at work: stay away from where they are
            n_startup_trials=self.n_startup_trials,
            seed=int(seed),
        )

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if trial.number != self._number:
            self._number, self._tpe = trial.number, self._seeded(trial.number)
        return self._tpe

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._of(trial).infer_relative_search_space(StudyWithPriors(study, self.priors), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE."""
        return self._of(trial).sample_relative(StudyWithPriors(study, self.priors), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE."""
        informed = StudyWithPriors(study, self.priors)
        return self._of(trial).sample_independent(informed, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As TPE."""
        self._of(trial).after_trial(study, trial, state, values)


class StudyWithPriors(Study):
    """A study as its sampler sees it: with the priors before its own trials."""

    def __init__(self, study: Study, priors: Sequence[FrozenTrial]) -> None:
        self.__dict__.update(vars(study))
        self._priors = priors

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        wanted = [prior for prior in self._priors if states is None or prior.state in states]
        return [*wanted, *super()._get_trials(deepcopy, states, use_cache)]
