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
from autolora.study.finals import Finalist, final_scorer, hold_finals
from autolora.study.trial import Point, Record
from autolora.study.tune import Plan, records, spent_seconds
from autolora.study.workbench import Workbench

SCORE_TOLERANCE = 0.005  # a half-precision file may move the score by this much


def finish(plan: Plan, study: Study, work: Workbench, bars: Bars) -> str:
    """Choose, export, prove the file, write report and result; returns the summary for a person."""
    found = records(plan, study)
    scorer, finalists = _finals(plan, study, found, work, bars)
    winner = finalists[0]
    exported = export_best(winner.record, winner.point, work, plan.folder / "best", plan.settings.name)
    _prove(work, scorer, winner, exported.path, bars)
    page = _report(plan, study, work, found, finalists, exported.path, bars)
    result = _result(plan, study, found, finalists, exported)
    write_atomic(plan.folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return _summary(found, finalists, exported, page)


def study_report(plan: Plan, study: Study, work: Workbench, bars: Bars) -> Path:
    """Write `report/index.html` from what the study's folder holds."""
    found = records(plan, study)
    _, finalists = _finals(plan, study, found, work, bars)
    return _report(plan, study, work, found, finalists, None, bars)


def _finals(
    plan: Plan, study: Study, found: list[tuple[FrozenTrial, Record]], work: Workbench, bars: Bars
) -> tuple[Scorer, list[Finalist]]:
    began = time.perf_counter()
    scorer = final_scorer(work, bars)
    finalists = hold_finals(found, scorer, work, plan.settings.finalists, plan.folder, bars)
    spent = study.user_attrs.get("scoring_seconds", 0.0) + time.perf_counter() - began
    study.set_user_attr("scoring_seconds", spent)
    return scorer, finalists


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
        probe = next(p for p in work.scorer.probes if p.group == "trigger")
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
    finalists: list[Finalist],
    export_path: Path | None,
    bars: Bars,
) -> Path:
    winner = finalists[0]
    trial, best = winner.trial, winner.point
    judged = {one.trial.number: one.point for one in finalists}
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
        bleed_limit=work.scorer.settings.bleed_limit,
    )
    return write_report(content, plan.folder / "report" / "index.html")


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
    probes = {
        group: [p for p in work.scorer.probes if p.group == group] for group in ("trigger", "novel", "class_only")
    }
    chosen: list[tuple[str, Probe, int]] = [("with the trigger", p, p.seeds[0]) for p in probes["trigger"][::3][:3]]
    chosen += [("the character in another outfit", p, p.seeds[0]) for p in probes["novel"][:2]]
    chosen += [("without the trigger", p, p.seeds[0]) for p in probes["class_only"][:5]]
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
    plan: Plan, study: Study, found: list[tuple[FrozenTrial, Record]], finalists: list[Finalist], exported: Exported
) -> dict[str, Any]:
    """`result.json`: what programs read."""
    winner = finalists[0]
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
        "ties": [one.trial.number for one in finalists[1:] if one.overlaps(winner)],
        "verdict": winner.point.verdict,
        "export": str(exported.path),
    }


def _summary(found: list[tuple[FrozenTrial, Record]], finalists: list[Finalist], exported: Exported, page: Path) -> str:
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
                f"at step {last.step}"
            )
    winner = finalists[0]
    p = winner.point
    lines.append(
        f"best: trial {winner.trial.number} ({winner.record.run.name}) at step {p.step}, weight {p.weight:g}: "
        f"score {p.score['value']:.3f} ({p.score['low']:.3f} to {p.score['high']:.3f}), {p.verdict}"
    )
    ties = [str(one.trial.number) for one in finalists[1:] if one.overlaps(winner)]
    if ties:
        lines.append(f"not to be told from it by score: trial {' and '.join(ties)}")
    lines += [f"LoRA:   {exported.path}", f"report: {page}"]
    return "\n".join(lines)
