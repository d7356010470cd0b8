"""What the parameters of a study did: their importance, and every trial's score by their values."""

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

FEWEST = 10  # trials of a recipe before its parameters are weighed: the better half of fewer says nothing
RESAMPLES = 60

Found = Sequence[tuple[FrozenTrial, TrialResults]]


def effects(space: Mapping[str, Iterable[str]], found: Found) -> tuple[Effect, ...]:
    """Every parameter that took at least two values, recipe by recipe.

    Args:
        space: the keys that are searched, by recipe.
        found: its trials that have a scored checkpoint.
    """
    listed = []
    for recipe, keys in space.items():
        own = [
            (t, r) for t, r in found if t.user_attrs["recipe"] == recipe and (best := r.best_result()) and best.score
        ]
        names = [f"{recipe}/{key}" for key in keys]
        varied = [name for name in names if len({trial.params.get(name) for trial, _ in own}) > 1]
        weighed = _importances(own, varied)
        listed += [_effect(recipe, name, own, weighed.get(name)) for name in varied]
    return tuple(listed)


def _effect(recipe: str, name: str, own: Found, importance: Estimate | None) -> Effect:
    known = [(trial, best) for trial, r in own if name in trial.params and (best := r.best_result()) and best.score]
    kind = known[0][0].distributions[name]
    return Effect(
        recipe=recipe,
        name=name.removeprefix(f"{recipe}/"),
        importance=importance,
        values=tuple(trial.params[name] for trial, _ in known),
        scores=tuple(Estimate(**best.score) for _, best in known if best.score),
        trials=tuple(trial.number for trial, _ in known),
        log=isinstance(kind, FloatDistribution | IntDistribution) and kind.log,
    )


def _importances(own: Found, names: Sequence[str]) -> dict[str, Estimate]:
    """PED-ANOVA (Watanabe et al. 2023) with the quantiles of a bootstrap over trials; nothing for too few trials."""
    if len(own) < FEWEST or len(names) < 2:
        return {}
    plain = [
        create_trial(
            params={name: trial.params[name] for name in names},
            distributions={name: trial.distributions[name] for name in names},
            value=record.best_objective(),
        )
        for trial, record in own
        if all(name in trial.params for name in names)
    ]
    generator = np.random.default_rng(0)
    draws = [generator.integers(len(plain), size=len(plain)) for _ in range(RESAMPLES)]
    value = _weigh(plain, names)
    resampled = [_weigh([plain[i] for i in drawn], names) for drawn in draws]
    found = {}
    for name in names:
        low, high = np.quantile([one[name] for one in resampled], [0.025, 0.975])
        found[name] = Estimate(value[name], min(float(low), value[name]), max(float(high), value[name]))
    return found


def _weigh(trials: Sequence[FrozenTrial], names: Sequence[str]) -> dict[str, float]:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=list(names))
