"""Saves the figures of a study for the Optuna dashboard, drawn from the scored checkpoints of its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optuna import Study
from optuna.trial import FrozenTrial
from optuna_dashboard import save_plotly_graph_object

from autolora.evaluation.result import CheckpointResult
from autolora.report.figures.curves import CURVE_TERMS, weight_sweep
from autolora.report.figures.dashboard import for_dashboard, learning_curves, likeness_against_bleed, parameter_effects
from autolora.report.schema import CurvePoint, Effect, TrialRow
from autolora.scoring.intervals import Estimate
from autolora.study.artifacts import TrialFiles
from autolora.study.trials import readable_results

Terms = Mapping[str, Mapping[str, float]]
ScoredTrial = tuple[FrozenTrial, Sequence[CheckpointResult]]


def study_curves(study: Study, files: TrialFiles) -> list[ScoredTrial]:
    """Every trial with a scored checkpoint, and its checkpoints."""
    curves: list[ScoredTrial] = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if uid and (results := readable_results(files.fetch(uid, only="curve.json"), trial)):
            curves.append((trial, results))
    return curves


def save_plots(study: Study, files: TrialFiles, sweep: Mapping[str, Terms] | None = None) -> None:
    """Save the figures of a study, over those saved before.

    Args:
        study: shown by the dashboard.
        files: the folders of its trials.
        sweep: the terms of the exported LoRA by weight, once there is one.
    """
    curves = study_curves(study, files)
    rows = [_row(trial, results) for trial, results in curves]
    figures = {
        "likeness-bleed": likeness_against_bleed(rows),
        "learning-curves": learning_curves(rows),
        "parameter-effects": parameter_effects(_effects(curves)),
    }
    if sweep:
        weights = sorted(sweep, key=float)
        figures["weight-sweep"] = weight_sweep([_point(float(weight), sweep[weight], math.nan) for weight in weights])
    for name, figure in figures.items():
        save_plotly_graph_object(study, for_dashboard(figure), graph_object_id=name)


def _row(trial: FrozenTrial, results: Sequence[CheckpointResult]) -> TrialRow:
    """A trial with the score of each checkpoint, or its objective where it has none."""
    curve = [_point(r.step, r.terms, r.score["value"] if r.score else r.objective) for r in results]
    state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
    return TrialRow(trial.number, trial.user_attrs["uid"], trial.user_attrs["recipe"], {}, state, curve=tuple(curve))


def _point(at: float, terms: Terms, score: float) -> CurvePoint:
    estimates = {name: Estimate(**term) for name, term in terms.items()}
    missing = Estimate(math.nan, math.nan, math.nan)
    fidelity, editability, bleed = (estimates.get(name, missing).value for name in CURVE_TERMS[1:])
    return CurvePoint(at, score, fidelity, editability, bleed, estimates)


def _effects(curves: Sequence[ScoredTrial]) -> list[Effect]:
    """The best objective of each trial by each of its parameters."""
    effects = []
    for name in sorted({name for trial, _ in curves for name in trial.params if name != "recipe"}):
        sampled = [(trial, results) for trial, results in curves if name in trial.params]
        best = [max(result.objective for result in results) for _, results in sampled]
        recipe, _, key = name.rpartition("/")
        values = tuple(trial.params[name] for trial, _ in sampled)
        scores = tuple(Estimate(objective, objective, objective) for objective in best)
        distribution = sampled[0][0].distributions[name]
        numbers = tuple(trial.number for trial, _ in sampled)
        effects.append(Effect(recipe, key, None, values, scores, numbers, getattr(distribution, "log", False)))
    return effects
