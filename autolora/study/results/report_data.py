"""What a study's report shows: its trials, its curves, its pictures, and the recipe to take away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial

from autolora.data.step_table import make_step_table
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.kohya_command import kohya_command
from autolora.progress import Bars
from autolora.provenance import provenance
from autolora.publish.gallery import GalleryEntry, SampleRenderer, gallery, matrix, pairs, scored_by
from autolora.publish.model_card import write_card
from autolora.report.page import write_report
from autolora.report.schema import Costs, CurvePoint, Report, Reproduction, TrialRow
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import clipped_harmonic_mean
from autolora.study.budget import spent_seconds, training_seconds
from autolora.study.definition import StudyDefinition
from autolora.study.finals.decision import Finals
from autolora.study.recipes import recipe_yaml, train_command
from autolora.study.results.importance import effects
from autolora.study.results.summary import disagreement, seeds_in_words, tags_in_words
from autolora.study.space import sampled_values
from autolora.study.trials import load_trials

REFRESH_SECONDS = 20
Found = Sequence[tuple[FrozenTrial, TrialFolder]]
SERIES = ("fidelity", "editability", "bleed_class")


def report_study(
    definition: StudyDefinition,
    study: Study,
    session: Session,
    found: Found,
    finals: Finals,
    export_path: Path | None,
    bars: Bars,
) -> Path:
    """Write `report/index.html` of a finished study; without `export_path` nothing was exported now."""
    winner = finals.winner
    best, dataset, run = winner.point, session.context.dataset, winner.record.run
    shelf, exhibits = SampleRenderer.open(session, bars), exhibits_of(found, winner.record, best)
    notes = [
        finals.choice,
        seeds_in_words(finals),
        disagreement(finals, session.scoring.second_encoder),
        tags_in_words(best, dataset.class_word),
    ]
    judged = {one.trial.number: one.point for one in finals.finalists}
    captioned = run.with_captions(dataset)
    pictures, outfits = gallery(shelf, exhibits), matrix(shelf, exhibits[-1])
    if export_path:
        write_card(session, winner.record, best, export_path, pictures, outfits)
    whole = replace(
        _unfinished(definition, study, session, found, judged),
        verdict=best.verdict,
        gallery=pictures,
        pairs=pairs(shelf, exhibits),
        matrix=outfits,
        ledger=make_step_table(
            captioned, run.images_by_concept(dataset), run.train.epochs, run.class_images_per_epoch(dataset)
        ),
        costs=_costs(study, session, found, best.step),
        howto=_howto(definition, session, winner.trial, winner.record, best),
        best=winner.trial.number,
        export_path=export_path,
        weight=best.weight,
        sweep=_sweep_points(best),
        notes=tuple(note for note in notes if note),
        refresh_seconds=None,
    )
    return write_report(whole, report_path(definition))


def report_progress(definition: StudyDefinition, study: Study, session: Session) -> Path:
    """Write the page of a study that still runs, from what is on disk; it asks for no render."""
    found = load_trials(definition, study)
    return write_report(_unfinished(definition, study, session, found, {}), report_path(definition))


def report_path(definition: StudyDefinition) -> Path:
    """Where a study's page lies."""
    return definition.folder / "report" / "index.html"


def _unfinished(
    definition: StudyDefinition, study: Study, session: Session, found: Found, judged: Mapping[int, CheckpointResult]
) -> Report:
    """What is known of a study at any time."""
    dataset = session.context.dataset
    by_uid = {r.path.name: r for _, r in found}
    rows = tuple(
        _row(t, by_uid.get(t.user_attrs.get("uid", "")), judged.get(t.number))
        for t in study.trials
        if t.user_attrs.get("uid")
    )
    return Report(
        study=definition.settings.name,
        verdict=_so_far(found, definition.settings.budget.n_trials),
        dataset=dataset.name,
        seconds=spent_seconds(study),
        trials=rows,
        effects=effects(definition.space, found),
        costs=_costs(study, session, found, 0),
        baselines={t.user_attrs["baseline"]: t.number for t, _ in found if t.user_attrs.get("baseline")},
        command=definition.command,
        model=session.context.model.name,
        activation_text=", ".join(dict.fromkeys([dataset.trigger, *(c.trigger for c in dataset.concepts)])),
        class_word=dataset.class_word,
        max_bleed=session.scoring.max_bleed,
        refresh_seconds=REFRESH_SECONDS,
    )


def _so_far(found: Found, trials: int) -> str:
    """The verdict of a study that still runs."""
    best = max(found, key=lambda pair: pair[1].best_objective(), default=None)
    point = best[1].best_result() if best else None
    if best is None or point is None:
        return "No checkpoint is scored yet."
    return (
        f"Best so far of {len(found)} trials begun of {trials}: trial {best[0].number} ({best[1].run.name}) at step "
        f"{point.step}, {point.summary}."
    )


def exhibits_of(found: Found, winner: TrialFolder, best: CheckpointResult) -> list[GalleryEntry]:
    """The unchanged recipes as they ended, then the best."""
    shown = []
    for trial, record in found:
        latest = record.latest()
        if trial.user_attrs.get("baseline") and latest is not None:
            shown.append(GalleryEntry(f"{record.run.name}, unchanged", record, latest.step, latest.state, 1.0))
    return [*shown, GalleryEntry("best", winner, best.step, winner.load(best), best.weight)]


def _costs(study: Study, session: Session, found: Found, best_step: int) -> Costs:
    dataset = session.context.dataset
    bakes = [r.run.images_per_epoch(dataset) * r.run.train.epochs for t, r in found if t.user_attrs.get("baseline")]
    return Costs(
        training_seconds=training_seconds(study),
        scoring_seconds=spent_seconds(study) - training_seconds(study),
        steps=sum(record.scored_step() for _, record in found),
        best_steps=best_step,
        bake_steps=max(bakes, default=0),
    )


def _howto(
    definition: StudyDefinition, session: Session, trial: FrozenTrial, record: TrialFolder, best: CheckpointResult
) -> Reproduction:
    """The exported recipe as text, without any path of this machine."""
    run, dataset, model = record.run, session.context.dataset, session.context.model
    recipe, values = sampled_values(trial)
    if run.train.seed:
        values["train.seed"] = run.train.seed
    kohya = kohya_command(run, dataset, model, best.step)
    came_from = provenance()
    facts = {
        "base model": f"{model.name}, weights {model.base_hash}",
        "pictures": f"{dataset.name}: {len(dataset.pictures)} trained on, {len(dataset.validation)} held out",
        "recipe": f"{run.name}, fingerprint {run.fingerprint()}, training seed {run.train.seed}",
        "checkpoint": f"{best.describe_place}, at weight {best.weight:g}",
        "search": f"study {definition.settings.name}, sampler seed {definition.settings.seed}",
        "software": ", ".join(filter(None, [came_from["commit"], came_from["versions"]])),
        "machine": came_from["machine"],
    }
    yaml = recipe_yaml(run, f"{definition.settings.name}-best")
    return Reproduction(yaml, train_command(recipe, values, dataset.name), kohya.text, kohya.notes, facts)


def _sweep_points(best: CheckpointResult) -> tuple[CurvePoint, ...]:
    found = []
    for weight, terms in sorted(best.sweep.items(), key=lambda pair: float(pair[0])):
        f, e, bleed = (terms[name]["value"] for name in SERIES)
        known = {name: Estimate(**term) for name, term in terms.items()}
        score = float(clipped_harmonic_mean(np.asarray(f), np.asarray(e)))
        found.append(CurvePoint(float(weight), score, f, e, bleed, known))
    return tuple(found)


def _curve_point(p: CheckpointResult, record: TrialFolder) -> CurvePoint:
    assert p.score is not None
    terms = {name: Estimate(**term) for name, term in {**p.terms, "score": p.score}.items()}
    score, fidelity, editability, bleed = (terms[name].value for name in ("score", *SERIES))
    pictures = scored_by(record, p.step)
    return CurvePoint(p.step, score, fidelity, editability, bleed, terms, p.verdict, tuple(p.broken), pictures)


def _row(trial: FrozenTrial, record: TrialFolder | None, judged: CheckpointResult | None) -> TrialRow:
    """A trial's row; a finalist's figures are those of the finals."""
    recipe, values = sampled_values(trial)
    baseline = trial.user_attrs.get("baseline")
    best = judged or (record.best_result() if record else None)
    return TrialRow(
        number=trial.number,
        uid=trial.user_attrs["uid"],
        recipe=recipe,
        params={} if baseline else values,
        state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        score=Estimate(**best.score) if best and best.score else None,
        best_step=best.step if best else None,
        terms={name: Estimate(**term) for name, term in best.terms.items()} if best else {},
        broken=tuple(best.broken) if best else (),
        reason=trial.user_attrs.get("reason", ""),
        curve=tuple(_curve_point(p, record) for p in record.results if p.score is not None) if record else (),
        overcooked_step=record.overcooked_step() if record else None,
    )
