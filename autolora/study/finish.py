"""The end of a study: the best checkpoint exported, proved and scored again, the report and `result.json` written."""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from autolora.errors import StudyError
from autolora.export.write import Exported
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.study.budget import add_seconds, spent_seconds, training_seconds
from autolora.study.evidence import report_study
from autolora.study.export_best import Twin
from autolora.study.finals import Finals, hold_finals
from autolora.study.finals_words import seeds_in_words
from autolora.study.plan import Plan
from autolora.study.plots import save_plots
from autolora.study.preference import by_preference
from autolora.study.proof import Proof, export_proved
from autolora.study.trial import Record
from autolora.study.tune import records
from autolora.study.warm_start import WINNER
from autolora.study.workbench import Workbench


def finish(plan: Plan, study: Study, work: Workbench, bars: Bars) -> str:
    """Choose, export, prove the file, write report and result; returns the summary for a person."""
    found = records(plan, study)
    finals = _finals(plan, study, found, work, bars)
    winner = finals.winner
    score = winner.point.score["value"] if winner.point.score else None
    folder, name = plan.folder / "best", plan.settings.name
    exported, twin, proof = export_proved(winner.record, winner.point, work, folder, name, finals.scorer, bars, score)
    page = report_study(plan, study, work, found, finals, exported.path, bars)
    result = _result(plan, study, found, finals, exported) | _files(twin, proof)
    save_plots(study, plan.files, winner.point.sweep)
    study.set_user_attr(WINNER, winner.trial.number)
    write_atomic(plan.folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return _summary(found, finals, exported, page) + (f"\n{twin_in_words(twin, proof)}" if twin else "")


def study_report(plan: Plan, study: Study, work: Workbench, bars: Bars) -> Path:
    """Write `report/index.html` from what the study's folder holds, and the card of what it exported."""
    found = records(plan, study)
    finals = _finals(plan, study, found, work, bars)
    result = plan.folder / "result.json"
    exported = Path(json.loads(result.read_text("utf-8"))["export"]) if result.is_file() else None
    still = exported if exported and exported.is_file() else None
    return report_study(plan, study, work, found, finals, still, bars)


def _finals(plan: Plan, study: Study, found: list[tuple[FrozenTrial, Record]], work: Workbench, bars: Bars) -> Finals:
    """The finals; what they took is added to the study's seconds.

    Raises:
        StudyError: no trial has a scored checkpoint.
    """
    if not found:
        reasons = [trial.user_attrs["reason"] for trial in study.trials if "reason" in trial.user_attrs]
        why = f"the last trial {reasons[-1]}" if reasons else "run it longer"
        raise StudyError(f"no trial of this study has a scored checkpoint yet; {why}")
    began = time.perf_counter()
    finals = hold_finals(plan, found, work, bars, partial(by_preference, plan, study._storage, work, bars))
    add_seconds(study, finals.training_seconds, time.perf_counter() - began - finals.training_seconds)
    return finals


def _result(
    plan: Plan,
    study: Study,
    found: list[tuple[FrozenTrial, Record]],
    finals: Finals,
    exported: Exported,
) -> dict[str, Any]:
    """`result.json`: what programs read."""
    winner = finals.winner
    states = Counter(trial.state.name for trial in study.trials)
    return {
        "study": plan.settings.name,
        "seconds": round(spent_seconds(study), 1),
        "training_seconds": round(training_seconds(study), 1),
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
        "choice": finals.choice,
        "training_seeds": {number: [p.score for p in points] for number, points in finals.retrained.items()},
        "sweep": winner.point.sweep,
        "tag_bleed": {"tags": winner.point.tags, **winner.point.tag_bleed},
        "verdict": winner.point.verdict,
        "export": str(exported.path),
        "diffusers": str(exported.diffusers) if exported.diffusers else None,
    }


def _files(twin: Twin | None, proof: Proof) -> dict[str, Any]:
    """What the files are good for."""
    if twin is None:
        return {"read_by": proof.read_by}
    return {"read_by": proof.read_by, "plain": twin_as_dict(twin, proof)}


def twin_as_dict(twin: Twin, proof: Proof) -> dict[str, Any]:
    """The plain LoRA beside the file, for programs."""
    score = proof.twin_score.as_dict() if proof.twin_score else None
    return {"path": str(twin.path), "dim": twin.dim, "distance": round(twin.apart, 4), "score": score}


def twin_in_words(twin: Twin, proof: Proof) -> str:
    """The plain LoRA beside the file, for a person."""
    score = f", score {proof.twin_score.value:.3f}" if proof.twin_score else ""
    readers = ", ".join(proof.read_by) or "LyCORIS"
    return f"plain:  {twin.path} (dim {twin.dim}, {twin.apart:.1%} off{score}), for programs other than {readers}"


def _fate(record: Record) -> str:
    """How an unchanged recipe ended, and what may help."""
    last, step = record.curve[-1], record.overcooked_step()
    said = f"at step {last.step} {last.verdict}"
    if last.capture:
        share = max(last.capture.values())
        said = f"overcooked after step {step}" if step else "did not overcook"
        said += f": without the trigger, {share:.0%} of renders show the character at step {last.step}"
    advice = record.remedy(last)
    return f"{record.run.name} {said}" + (f"; try {advice}" if advice else "")


def _summary(found: list[tuple[FrozenTrial, Record]], finals: Finals, exported: Exported, page: Path) -> str:
    """The last words of a study."""
    lines = [_fate(record) for trial, record in found if trial.user_attrs.get("baseline")]
    winner, p = finals.winner, finals.winner.point
    name = f"trial {winner.trial.number} ({winner.record.run.name})"
    lines.append(f"best: {name} at {p.place}: {p.words}")
    if finals.ties:
        lines.append(f"not to be told from it by score: trial {' and '.join(map(str, finals.ties))}")
    lines += [seeds_in_words(finals)] if finals.retrained else []
    lines += [finals.choice] if finals.choice else []
    lines += [f"LoRA:   {exported.path}", f"report: {page}"]
    lines += [f"for diffusers: {exported.diffusers.parent}"] if exported.diffusers else []
    return "\n".join(lines)
