"""What a study's report shows: its trials, its curves, and pictures side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial
from PIL import Image

from autolora.adapters.base import State
from autolora.progress import Bars
from autolora.report.content import CurvePoint, GridRow, Report, TrialRow
from autolora.report.page import write_report
from autolora.sampling import Shot, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.probes import Probe
from autolora.scoring.scorecard import held_mean
from autolora.study.finals import Finals, disagreement, seeds_in_words, tags_in_words
from autolora.study.plan import Plan
from autolora.study.trial import Point, Record
from autolora.study.tune import spent_seconds
from autolora.study.workbench import Workbench


def report_study(
    plan: Plan,
    study: Study,
    work: Workbench,
    found: list[tuple[FrozenTrial, Record]],
    finals: Finals,
    export_path: Path | None,
    bars: Bars,
) -> Path:
    """Write `report/index.html`; without `export_path` nothing was exported now."""
    winner = finals.winner
    trial, best = winner.trial, winner.point
    judged = {one.trial.number: one.point for one in finals.finalists}
    baselines = {t.user_attrs["baseline"]: t.number for t, _ in found if t.user_attrs.get("baseline")}
    by_uid = {r.folder.name: r for _, r in found}
    rows = tuple(
        _row(t, by_uid.get(t.user_attrs.get("uid", "")), judged.get(t.number))
        for t in study.trials
        if t.user_attrs.get("uid")
    )
    dataset = work.bench.dataset
    notes = [
        seeds_in_words(finals),
        disagreement(finals, work.scoring.second_encoder),
        tags_in_words(best, dataset.class_word),
    ]
    content = Report(
        study=plan.settings.name,
        verdict=best.verdict,
        dataset=dataset.name,
        seconds=spent_seconds(study),
        trials=rows,
        grids=tuple(_grids(work, found, winner.record, best, bars)),
        best=trial.number,
        baselines=baselines,
        export_path=export_path,
        command=" ".join(["autolora tune", plan.study_name, *plan.arguments]),
        model=work.bench.model.name,
        activation_text=", ".join(dict.fromkeys([dataset.trigger, *(c.trigger for c in dataset.concepts)])),
        weight=best.weight,
        class_word=dataset.class_word,
        sweep=_sweep_points(best),
        bleed_limit=work.scoring.bleed_limit,
        notes=tuple(note for note in notes if note),
    )
    return write_report(content, plan.folder / "report" / "index.html")


def _sweep_points(best: Point) -> tuple[CurvePoint, ...]:
    found = []
    for weight, terms in sorted(best.sweep.items(), key=lambda pair: float(pair[0])):
        f, e, bleed = (terms[name]["value"] for name in ("fidelity", "editability", "bleed_class"))
        found.append(CurvePoint(float(weight), float(held_mean(np.asarray(f), np.asarray(e))), f, e, bleed))
    return tuple(found)


def _row(trial: FrozenTrial, record: Record | None, judged: Point | None) -> TrialRow:
    """A trial's row; a finalist's figures are those of the finals."""
    recipe = trial.user_attrs["recipe"]
    baseline = trial.user_attrs.get("baseline")
    best = judged or (record.best() if record else None)
    curve = tuple(
        CurvePoint(
            p.step, p.score["value"], *(p.terms[name]["value"] for name in ("fidelity", "editability", "bleed_class"))
        )
        for p in (record.curve if record else [])
        if p.score is not None
    )
    return TrialRow(
        number=trial.number,
        uid=trial.user_attrs["uid"],
        recipe=recipe,
        params={} if baseline else {k.removeprefix(f"{recipe}/"): v for k, v in trial.params.items() if k != "recipe"},
        state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        score=Estimate(**best.score) if best and best.score else None,
        best_step=best.step if best else None,
        terms={name: Estimate(**term) for name, term in best.terms.items()} if best else {},
        broken=tuple(best.broken) if best else (),
        reason=trial.user_attrs.get("reason", ""),
        curve=curve,
        overcooked_step=record.overcooked_step() if record else None,
    )


def _grids(
    work: Workbench, found: list[tuple[FrozenTrial, Record]], record: Record, best: Point, bars: Bars
) -> list[GridRow]:
    """Same prompts and seeds by the base model, each unchanged recipe's last checkpoint and the best, at its weight."""
    of = work.of
    chosen: list[tuple[str, Probe, int]] = [("with the trigger", p, p.seeds[0]) for p in of("trigger")[::3][:3]]
    chosen += [("the character in another outfit", p, p.seeds[0]) for p in of("novel")[:2]]
    plain = [*of("class_only")[:3], *of("class_context")[:2]]
    chosen += [("without the trigger", p, p.seeds[0]) for p in plain]
    columns: dict[str, tuple[State | None, float]] = {"base model": (None, 0.0)}
    for trial, other in found:
        latest = other.latest()
        if trial.user_attrs.get("baseline") and latest is not None:
            columns[f"{other.run.name}, step {latest.step}"] = (latest.state, 1.0)
    columns[f"best, step {best.step}"] = (record.load(best), best.weight)
    pictures = {}
    with bars.task("rendering the report", len(columns) * len(chosen)) as advance:
        for title, (state, weight) in columns.items():
            if state is not None:
                work.bench.adapter.load(state)
            shots = [Shot(p.base_prompt if state is None else p.prompt, seed, weight) for _, p, seed in chosen]
            pictures[title] = render(work.bench.model, shots, work.render_settings, work.bench.adapter, advance)
    return [
        GridRow(p.prompt, seed, {title: Image.fromarray(pictures[title][i]) for title in columns}, group)
        for i, (group, p, seed) in enumerate(chosen)
    ]
