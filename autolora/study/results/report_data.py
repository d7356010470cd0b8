"""What a study's report shows, read from the study's storage and folder: no model is loaded and nothing is rendered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from autolora.evaluation.result import CheckpointResult, TrialResults
from autolora.evaluation.samples import read_samples
from autolora.files import path_below
from autolora.publish.gallery_files import read_gallery, read_matrix, read_pair
from autolora.report.page import write_report
from autolora.report.schema import Costs, CurvePoint, Gallery, OutfitMatrix, Pair, Report, TrialRow
from autolora.scoring.intervals import Estimate
from autolora.scoring.terms import clipped_harmonic_mean
from autolora.study.budget import WORKED, spent_seconds, training_seconds
from autolora.study.definition import StudyDefinition
from autolora.study.results.facts import StudyFacts, read_facts
from autolora.study.results.importance import effects
from autolora.study.results.outcome import FinalsOutcome, read_outcome
from autolora.study.space import sampled_values
from autolora.study.trials import SHOWN, load_trial_results

REFRESH_SECONDS = 20
SERIES = ("fidelity", "editability", "bleed_class")
Trials = Sequence[tuple[FrozenTrial, TrialResults]]


def write_study_report(definition: StudyDefinition, study: Study, running: bool = False) -> Path:
    """Write `report/index.html` from what the study's storage and folder hold, finished or not; return its path.

    Args:
        definition: the study.
        study: its trials.
        running: whether this process runs its trials; else the page finds out whether a worker does.

    Raises:
        StudyError: the file of the finals' outcome is broken.
        StorageError: the page cannot be written, or the study's bucket cannot be reached.
    """
    report = read_report(definition, study)
    if running and report.best is None:
        report = replace(report, refresh_seconds=REFRESH_SECONDS)
    return write_report(report, definition.folder / "report" / "index.html")


def read_report(definition: StudyDefinition, study: Study) -> Report:
    """The report of a study: with the outcome of its finals if they were held since its last trial, else without.

    Raises:
        StudyError: the file of the finals' outcome is broken.
    """
    facts, outcome = read_facts(study), read_outcome(definition, study)
    trials = load_trial_results(definition, study)
    finalists = {f.trial: f.result for f in outcome.finalists} if outcome else {}
    report = Report(
        study=study.study_name,
        verdict=_interim_verdict(trials, facts.n_trials),
        dataset=facts.dataset,
        seconds=spent_seconds(study),
        trials=_rows(study, trials, finalists),
        effects=effects(_searched_keys(study), trials),
        costs=_costs(study, trials, facts, outcome.winner.result.step if outcome else 0),
        baselines={t.user_attrs["baseline"]: t.number for t, _ in trials if t.user_attrs.get("baseline")},
        command=facts.command,
        model=facts.model,
        activation_text=facts.activation_text,
        class_word=facts.class_word,
        max_bleed=facts.max_bleed,
        refresh_seconds=REFRESH_SECONDS if _is_running(definition, study) else None,
    )
    if outcome is None:
        return report
    definition.trial_files.fetch(outcome.winner.folder, SHOWN, ended=True)  # may be an average, which is no trial's
    return _with_outcome(report, outcome, definition.folder)


def _with_outcome(report: Report, outcome: FinalsOutcome, study_folder: Path) -> Report:
    """The report of a study whose finals were held; images whose files are missing are left out."""
    gallery: Gallery | None = None
    pairs: tuple[Pair, ...] = ()
    matrix: OutfitMatrix | None = None
    try:
        gallery = read_gallery(outcome.images.gallery, study_folder)
        pairs = tuple(read_pair(pair, study_folder) for pair in outcome.images.pairs)
        matrix = read_matrix(outcome.images.matrix, study_folder) if outcome.images.matrix else None
    except FileNotFoundError:
        pass
    winner, exported = outcome.winner, path_below(study_folder, outcome.export.lora)
    return replace(
        report,
        verdict=winner.result.verdict,
        gallery=gallery,
        pairs=pairs,
        matrix=matrix,
        step_table=outcome.step_table,
        reproduction=outcome.reproduction,
        best=winner.trial,
        export_path=exported if exported.is_file() else None,
        weight=outcome.weight,
        sweep=_sweep_points(winner.result),
        notes=outcome.notes,
        refresh_seconds=None,
    )


def _interim_verdict(trials: Trials, n_trials: int | None) -> str:
    """The verdict before the finals: the best checkpoint of the search so far."""
    best = max(trials, key=lambda pair: pair[1].best_objective(), default=None)
    result = best[1].best_result() if best else None
    if best is None or result is None:
        return "No checkpoint is scored yet."
    recipe, planned = best[0].user_attrs["recipe"], f" of {n_trials}" if n_trials else ""
    return (
        f"Best so far of {len(trials)} trials begun{planned}: trial {best[0].number} ({recipe}) after {result.step} "
        f"images, {result.summary}."
    )


def _is_running(definition: StudyDefinition, study: Study) -> bool:
    """Whether a worker has shown within the grace period that it works on a trial."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    spans = [trial.user_attrs[WORKED] for trial in running if trial.user_attrs.get(WORKED)]
    return any(time.time() - worked[-1][1] < definition.settings.grace_period for worked in spans)


def _searched_keys(study: Study) -> dict[str, list[str]]:
    """The keys that the study searches, by recipe, as it was started."""
    space = study.user_attrs["space"]
    recipes = [name for name, text in space.items() if text == "recipe"]
    return {
        recipe: [name.removeprefix(f"{recipe}/") for name in space if name.startswith(f"{recipe}/")]
        for recipe in recipes
    }


def _costs(study: Study, trials: Trials, facts: StudyFacts, best_step: int) -> Costs:
    baselines = [trial.user_attrs["baseline"] for trial, _ in trials if trial.user_attrs.get("baseline")]
    return Costs(
        training_seconds=training_seconds(study),
        scoring_seconds=spent_seconds(study) - training_seconds(study),
        images=sum(results.scored_step() for _, results in trials),
        best_images=best_step,
        baseline_images=max((facts.baseline_images.get(recipe, 0) for recipe in baselines), default=0),
    )


def _sweep_points(winner: CheckpointResult) -> tuple[CurvePoint, ...]:
    """The exported LoRA by weight."""
    points = []
    for weight, terms in sorted(winner.sweep.items(), key=lambda pair: float(pair[0])):
        fidelity, editability, bleed = (terms[name]["value"] for name in SERIES)
        estimates = {name: Estimate(**term) for name, term in terms.items()}
        score = float(clipped_harmonic_mean(np.asarray(fidelity), np.asarray(editability)))
        points.append(CurvePoint(float(weight), score, fidelity, editability, bleed, estimates))
    return tuple(points)


def _curve_point(result: CheckpointResult, samples: Path) -> CurvePoint:
    """A scored checkpoint with some of the renders that it was scored by."""
    assert result.score is not None
    terms = {name: Estimate(**term) for name, term in {**result.terms, "score": result.score}.items()}
    score, fidelity, editability, bleed = (terms[name].value for name in ("score", *SERIES))
    images = tuple(image for _, image in read_samples(samples, f"{result.step}"))
    broken = tuple(result.broken)
    return CurvePoint(result.step, score, fidelity, editability, bleed, terms, result.verdict, broken, images)


def _rows(study: Study, trials: Trials, finalists: Mapping[int, CheckpointResult]) -> tuple[TrialRow, ...]:
    """A row for each trial that was begun; a finalist's scores are those of the finals."""
    by_number = {trial.number: results for trial, results in trials}
    begun = [trial for trial in study.trials if trial.user_attrs.get("uid")]
    return tuple(_row(trial, by_number.get(trial.number), finalists.get(trial.number)) for trial in begun)


def _row(trial: FrozenTrial, results: TrialResults | None, finalist: CheckpointResult | None) -> TrialRow:
    recipe, values = sampled_values(trial)
    best = finalist or (results.best_result() if results else None)
    curve = [p for p in results.results if p.score is not None] if results else []
    return TrialRow(
        number=trial.number,
        uid=trial.user_attrs["uid"],
        recipe=recipe,
        params={} if trial.user_attrs.get("baseline") else values,
        state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        score=Estimate(**best.score) if best and best.score else None,
        best_step=best.step if best else None,
        terms={name: Estimate(**term) for name, term in best.terms.items()} if best else {},
        broken=tuple(best.broken) if best else (),
        reason=trial.user_attrs.get("reason", ""),
        curve=tuple(_curve_point(p, results.samples) for p in curve) if results else (),
        overcooked_step=results.overcooked_step() if results else None,
    )
