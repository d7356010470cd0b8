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
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.write import Exported
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.publish.export import PlainLora
from autolora.publish.roundtrip import RoundtripReport, export_proved
from autolora.study.budget import add_seconds, spent_seconds, training_seconds
from autolora.study.definition import StudyDefinition
from autolora.study.finals.decision import Finals
from autolora.study.finals.preference import apply_preference
from autolora.study.finals.run import run_finals
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.results.report_data import report_study
from autolora.study.results.summary import _summary, twin_as_dict, twin_in_words
from autolora.study.trials import WINNER, load_trials


def finalize_study(definition: StudyDefinition, study: Study, session: Session, bars: Bars) -> str:
    """Choose, export, prove the file, write report and result; returns the summary for a person."""
    found = load_trials(definition, study)
    finals = _finals(definition, study, found, session, bars)
    winner = finals.winner
    score = winner.point.score["value"] if winner.point.score else None
    folder, name = definition.folder / "best", definition.settings.name
    exported, twin, proof = export_proved(
        winner.record, winner.point, session, folder, name, finals.scorer, bars, score
    )
    page = report_study(definition, study, session, found, finals, exported.path, bars)
    result = _result(definition, study, found, finals, exported) | _files(twin, proof)
    save_plots(study, definition.trial_files, winner.point.sweep)
    study.set_user_attr(WINNER, winner.trial.number)
    write_atomic(definition.folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return _summary(found, finals, exported, page) + (f"\n{twin_in_words(twin, proof)}" if twin else "")


def study_report(definition: StudyDefinition, study: Study, session: Session, bars: Bars) -> Path:
    """Write `report/index.html` from what the study's folder holds, and the card of what it exported."""
    found = load_trials(definition, study)
    finals = _finals(definition, study, found, session, bars)
    result = definition.folder / "result.json"
    exported = Path(json.loads(result.read_text("utf-8"))["export"]) if result.is_file() else None
    still = exported if exported and exported.is_file() else None
    return report_study(definition, study, session, found, finals, still, bars)


def _finals(
    definition: StudyDefinition,
    study: Study,
    found: list[tuple[FrozenTrial, TrialFolder]],
    session: Session,
    bars: Bars,
) -> Finals:
    """The finals; what they took is added to the study's seconds.

    Raises:
        StudyError: no trial has a scored checkpoint.
    """
    if not found:
        reasons = [trial.user_attrs["reason"] for trial in study.trials if "reason" in trial.user_attrs]
        why = f"the last trial {reasons[-1]}" if reasons else "run it longer"
        raise StudyError(f"no trial of this study has a scored checkpoint yet; {why}")
    began = time.perf_counter()
    finals = run_finals(
        definition, found, session, bars, partial(apply_preference, definition, study._storage, session, bars)
    )
    add_seconds(study, finals.training_seconds, time.perf_counter() - began - finals.training_seconds)
    return finals


def _result(
    definition: StudyDefinition,
    study: Study,
    found: list[tuple[FrozenTrial, TrialFolder]],
    finals: Finals,
    exported: Exported,
) -> dict[str, Any]:
    """`result.json`: what programs read."""
    winner = finals.winner
    states = Counter(trial.state.name for trial in study.trials)
    return {
        "study": definition.settings.name,
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


def _files(twin: PlainLora | None, proof: RoundtripReport) -> dict[str, Any]:
    """What the files are good for."""
    if twin is None:
        return {"read_by": proof.read_by}
    return {"read_by": proof.read_by, "plain": twin_as_dict(twin, proof)}
