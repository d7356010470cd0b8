"""The end of a study: the best checkpoint exported, proved and scored again, the report and `result.json` written."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial
from PIL import Image

from autolora.adapters.lora import State
from autolora.errors import ExportError
from autolora.export.read import read_lora
from autolora.export.verify import DiffusersTwin, compare_pictures, verify_deltas
from autolora.export.write import Exported
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.report.content import CurvePoint, GridRow, Report, TrialRow
from autolora.report.page import write_report
from autolora.sampling import Shot, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.probes import Probe
from autolora.scoring.scorer import Scorer
from autolora.study.export_best import export_best
from autolora.study.finals import Finalist, Finals, disagreement, final_scorer, hold_finals, sweep_weights
from autolora.study.trial import Point, Record
from autolora.study.tune import Plan, records, spent_seconds
from autolora.study.workbench import Workbench

SCORE_TOLERANCE = 0.005  # a half-precision file may move the score by this much


def finish(plan: Plan, study: Study, work: Workbench, bars: Bars) -> str:
    """Choose, export, prove the file, write report and result; returns the summary for a person."""
    found = records(plan, study)
    finals = _finals(plan, study, found, work, bars)
    winner = finals.winner
    exported = export_best(winner.record, winner.point, work, plan.folder / "best", plan.settings.name)
    _prove(work, finals.scorer, winner, exported.path, bars)
    page = _report(plan, study, work, found, finals, exported.path, bars)
    result = _result(plan, study, found, finals, exported)
    write_atomic(plan.folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return _summary(found, finals, exported, page)


def study_report(plan: Plan, study: Study, work: Workbench, bars: Bars) -> Path:
    """Write `report/index.html` from what the study's folder holds."""
    found = records(plan, study)
    return _report(plan, study, work, found, _finals(plan, study, found, work, bars), None, bars)


def _finals(plan: Plan, study: Study, found: list[tuple[FrozenTrial, Record]], work: Workbench, bars: Bars) -> Finals:
    began = time.perf_counter()
    scorer = final_scorer(work, bars)
    winner, *others = hold_finals(found, scorer, work, plan.settings.finalists, plan.folder, bars)
    winner, sweep = sweep_weights(winner, work, plan.folder, bars)
    spent = study.user_attrs.get("scoring_seconds", 0.0) + time.perf_counter() - began
    study.set_user_attr("scoring_seconds", spent)
    return Finals(scorer, [winner, *others], sweep)


def _prove(work: Workbench, scorer: Scorer, winner: Finalist, path: Path, bars: Bars) -> None:
    """Reload the written file by our reader and by diffusers' own; deltas, pictures and score must agree.

    Raises:
        ExportError: they do not.
    """
    bench, state = work.bench, winner.record.load_best().state
    verify_deltas(state, path, bench.model)
    reloaded = read_lora(path, bench.model)
    bench.adapter.load(reloaded)
    card = work.score(bars, scorer)
    gap = abs(card.score.value - winner.point.score["value"])
    if gap > SCORE_TOLERANCE:
        raise ExportError(
            f"{path} scores {card.score.value:.3f} after reloading, the trial {winner.point.score['value']:.3f}; "
            f"a gap of at most {SCORE_TOLERANCE} was expected"
        )
    folder = getattr(bench.model, "folder", None)
    if folder is not None:
        probe = work.scorer.of("trigger")[0]
        shots = [Shot(probe.prompt, probe.seeds[0], weight) for weight in work.scorer.settings.weights]
        ours = render(bench.model, shots, work.render_settings, bench.adapter)
        twin = DiffusersTwin(path, folder, bench.model)
        twin.verify_deltas(state)
        compare_pictures(ours, twin.render(shots, work.render_settings))


def _report(
    plan: Plan,
    study: Study,
    work: Workbench,
    found: list[tuple[FrozenTrial, Record]],
    finals: Finals,
    export_path: Path | None,
    bars: Bars,
) -> Path:
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
        sweep=_sweep_points(finals.sweep),
        bleed_limit=work.scorer.settings.bleed_limit,
        notes=tuple(note for note in (disagreement(finals.finalists, work.scorer.settings.second_encoder),) if note),
    )
    return write_report(content, plan.folder / "report" / "index.html")


def _sweep_points(sweep: Point) -> tuple[CurvePoint, ...]:
    found = []
    for weight, terms in sorted(sweep.by_weight.items(), key=lambda pair: float(pair[0])):
        f, e, bleed = (terms[name]["value"] for name in ("fidelity", "editability", "bleed_class"))
        held = min(max(f, 0.0), 1.0), min(max(e, 0.0), 1.0)
        found.append(CurvePoint(float(weight), 2 * held[0] * held[1] / max(sum(held), 1e-9), f, e, bleed))
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
    )
    return TrialRow(
        number=trial.number,
        uid=trial.user_attrs["uid"],
        recipe=recipe,
        params={} if baseline else {k.removeprefix(f"{recipe}/"): v for k, v in trial.params.items() if k != "recipe"},
        state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        score=Estimate(**best.score) if best else None,
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
    of = work.scorer.of
    chosen: list[tuple[str, Probe, int]] = [("with the trigger", p, p.seeds[0]) for p in of("trigger")[::3][:3]]
    chosen += [("the character in another outfit", p, p.seeds[0]) for p in of("novel")[:2]]
    chosen += [("without the trigger", p, p.seeds[0]) for p in of("class_only")[:5]]
    columns: dict[str, tuple[State | None, float]] = {"base model": (None, 0.0)}
    for trial, other in found:
        latest = other.latest()
        if trial.user_attrs.get("baseline") and latest is not None:
            columns[f"{other.run.name}, step {latest.step}"] = (latest.state, 1.0)
    columns[f"best, step {best.step}, weight {best.weight:g}"] = (record.load_best().state, best.weight)
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


def _result(
    plan: Plan, study: Study, found: list[tuple[FrozenTrial, Record]], finals: Finals, exported: Exported
) -> dict[str, Any]:
    """`result.json`: what programs read."""
    winner = finals.winner
    states = Counter(trial.state.name for trial in study.trials)
    return {
        "study": plan.settings.name,
        "seconds": round(spent_seconds(study), 1),
        "trials": {"complete": states["COMPLETE"], "pruned": states["PRUNED"], "failed": states["FAIL"]},
        "best": {"trial": winner.trial.number, **winner.record.summary(winner.point)},
        "baselines": {
            trial.user_attrs["baseline"]: {
                "trial": trial.number,
                **record.summary(),
                "reason": trial.user_attrs.get("reason", ""),
            }
            for trial, record in found
            if trial.user_attrs.get("baseline")
        },
        "ties": finals.ties,
        "sweep": finals.sweep.by_weight,
        "verdict": winner.point.verdict,
        "export": str(exported.path),
    }


def _summary(found: list[tuple[FrozenTrial, Record]], finals: Finals, exported: Exported, page: Path) -> str:
    """The last words of a study."""
    lines = []
    for trial, record in found:
        if trial.user_attrs.get("baseline"):
            last = record.curve[-1]
            shares = max(last.capture.values())
            step = record.overcooked_step()
            fate = f"overcooked after step {step}" if step else "did not overcook"
            lines.append(
                f"{record.run.name} {fate}: without the trigger, {shares:.0%} of renders show the character "
                f"at step {last.step}" + (f"; try {advice}" if (advice := record.remedy(last)) else "")
            )
    winner = finals.winner
    p = winner.point
    lines.append(
        f"best: trial {winner.trial.number} ({winner.record.run.name}) at step {p.step}, weight {p.weight:g}: "
        f"score {p.score['value']:.3f} ({p.score['low']:.3f} to {p.score['high']:.3f}), {p.verdict}"
    )
    if finals.ties:
        lines.append(f"not to be told from it by score: trial {' and '.join(map(str, finals.ties))}")
    lines += [f"LoRA:   {exported.path}", f"report: {page}"]
    return "\n".join(lines)
