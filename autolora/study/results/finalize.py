"""The end of a study: the finals, the winner exported and verified, the outcome, the report and `result.json`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial

from autolora.errors import StudyError
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.write import ExportedFiles
from autolora.files import write_atomic
from autolora.publish.roundtrip import export_verified
from autolora.study.budget import add_seconds, spent_seconds, training_seconds
from autolora.study.finals.decision import Finals
from autolora.study.finals.preference import apply_preference
from autolora.study.finals.run import run_finals
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.results.facts import save_facts
from autolora.study.results.finals_outcome import gather_outcome
from autolora.study.results.outcome import write_outcome
from autolora.study.results.report_data import write_study_report
from autolora.study.results.summary import describe_copies, plain_lora_as_dict, summarize_study
from autolora.study.running import RunningStudy
from autolora.study.trials import WINNER, load_trials

Trials = Sequence[tuple[FrozenTrial, TrialFolder]]


def finalize_study(running: RunningStudy) -> str:
    """Hold the finals, export and verify the winner, write outcome, report and result; return the result in words.

    Finals that were held before are read back.

    Raises:
        StudyError: no trial has a scored checkpoint.
        MemoryFull: the GPU's memory is too small to score any finalist.
        ExportError: the exported file is not what was trained; nothing was exported.
        StorageError: the study's folder cannot be written.
    """
    definition, study, session = running.definition, running.study, running.session
    trials = load_trials(definition, study, running.bars.log)
    finals = _hold_finals(running, trials)
    winner = finals.winner
    exported, plain_lora, roundtrip = export_verified(
        winner.trial_folder,
        winner.result,
        session,
        definition.folder / "best",
        definition.settings.name,
        finals.scorer,
        running.bars,
    )
    save_facts(running)
    outcome = gather_outcome(running, trials, finals, exported, plain_lora, roundtrip)
    write_outcome(definition, study, outcome)
    page = write_study_report(definition, study)
    result = _result(running, trials, finals, exported)
    result |= {"read_by": roundtrip.read_by, "left_out": roundtrip.left_out}
    if plain_lora:
        result["plain"] = plain_lora_as_dict(plain_lora, roundtrip)
    save_plots(study, definition.trial_files, winner.result.sweep)
    study.set_user_attr(WINNER, winner.trial.number)
    write_atomic(definition.folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    running.clock.beat()
    summary = summarize_study(trials, finals, exported, page)
    score = winner.result.score["value"] if winner.result.score else None
    return "\n".join([summary, *describe_copies(plain_lora, roundtrip, score)])


def _hold_finals(running: RunningStudy, trials: Trials) -> Finals:
    """The finals; their time is added to the study's seconds.

    Raises:
        StudyError: no trial has a scored checkpoint.
    """
    study = running.study
    if not trials:
        reasons = [trial.user_attrs["reason"] for trial in study.trials if "reason" in trial.user_attrs]
        why = f"the last trial {reasons[-1]}" if reasons else "run it longer"
        raise StudyError(f"no trial of this study has a scored checkpoint yet; {why}")
    began = time.perf_counter()
    finals = run_finals(running, trials, partial(apply_preference, running))
    add_seconds(study, finals.training_seconds, time.perf_counter() - began - finals.training_seconds)
    return finals


def _result(running: RunningStudy, trials: Trials, finals: Finals, exported: ExportedFiles) -> dict[str, Any]:
    """The content of `result.json`, for programs."""
    winner, study = finals.winner, running.study
    states = Counter(trial.state.name for trial in study.trials)
    return {
        "study": running.definition.settings.name,
        "seconds": round(spent_seconds(study), 1),
        "training_seconds": round(training_seconds(study), 1),
        "trials": {"complete": states["COMPLETE"], "pruned": states["PRUNED"], "failed": states["FAIL"]},
        "best": {"trial": winner.trial.number, **winner.trial_folder.summary(winner.result)},
        "baselines": {
            trial.user_attrs["baseline"]: {
                "trial": trial.number,
                **trial_folder.summary(),
                "reason": trial.user_attrs.get("reason", ""),
            }
            for trial, trial_folder in trials
            if trial.user_attrs.get("baseline")
        },
        "ties": finals.ties,
        "choice": finals.choice,
        "training_seeds": {number: [p.score for p in results] for number, results in finals.retrained.items()},
        "sweep": winner.result.sweep,
        "tag_bleed": {"tags": winner.result.tags, **winner.result.tag_bleed},
        "verdict": winner.result.verdict,
        "export": str(exported.path),
        "diffusers": str(exported.diffusers) if exported.diffusers else None,
    }
