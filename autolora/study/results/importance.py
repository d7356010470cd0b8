"""The effects of a study's parameters: their importance, and the score of every trial by their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from autolora.evaluation.result import TrialResults
from autolora.report.schema import Effect
from autolora.scoring.intervals import Estimate

FEWEST = 10  # trials of a recipe from which on importance is computed: the better half of fewer says nothing
RESAMPLES = 60

Trials = Sequence[tuple[FrozenTrial, TrialResults]]


def effects(space: Mapping[str, Iterable[str]], trials: Trials) -> tuple[Effect, ...]:
    """The effect of every parameter with at least two different values, recipe by recipe.

    Args:
        space: the searched keys, by recipe.
        trials: the study's trials that have a scored checkpoint.
    """
    result = []
    for recipe, keys in space.items():
        scored = [
            (trial, results)
            for trial, results in trials
            if trial.user_attrs["recipe"] == recipe and (best := results.best_result()) and best.score
        ]
        names = [f"{recipe}/{key}" for key in keys]
        varied = [name for name in names if len({trial.params.get(name) for trial, _ in scored}) > 1]
        importances = _importances(scored, varied)
        result += [_effect(recipe, name, scored, importances.get(name)) for name in varied]
    return tuple(result)


def _effect(recipe: str, name: str, scored: Trials, importance: Estimate | None) -> Effect:
    pairs = [(trial, best) for trial, r in scored if name in trial.params and (best := r.best_result()) and best.score]
    distribution = pairs[0][0].distributions[name]
    return Effect(
        recipe=recipe,
        name=name.removeprefix(f"{recipe}/"),
        importance=importance,
        values=tuple(trial.params[name] for trial, _ in pairs),
        scores=tuple(Estimate(**best.score) for _, best in pairs if best.score),
        trials=tuple(trial.number for trial, _ in pairs),
        log=isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log,
    )


def _importances(scored: Trials, names: Sequence[str]) -> dict[str, Estimate]:
    """PED-ANOVA (Watanabe et al. 2023) with bootstrap quantiles over trials; empty if there are too few trials."""
    if len(scored) < FEWEST or len(names) < 2:
        return {}
    trials = [
        create_trial(
            params={name: trial.params[name] for name in names},
            distributions={name: trial.distributions[name] for name in names},
            value=results.best_objective(),
        )
        for trial, results in scored
        if all(name in trial.params for name in names)
    ]
    generator = np.random.default_rng(0)
    samples = [generator.integers(len(trials), size=len(trials)) for _ in range(RESAMPLES)]
    values = _ped_anova(trials, names)
    resampled = [_ped_anova([trials[place] for place in sample], names) for sample in samples]
    importances = {}
    for name in names:
        low, high = np.quantile([importance[name] for importance in resampled], [0.025, 0.975])
        importances[name] = Estimate(values[name], min(float(low), values[name]), max(float(high), values[name]))
    return importances


def _ped_anova(trials: Sequence[FrozenTrial], names: Sequence[str]) -> dict[str, float]:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=list(names))
