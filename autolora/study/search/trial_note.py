"""What the dashboard shows of a trial: renders of its best checkpoint beside the base model's, and a note."""

from __future__ import annotations

from optuna import Trial
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from optuna_dashboard import save_note
from optuna_dashboard.artifact import get_artifact_path

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.study.artifacts import Store


def note_text(record: TrialFolder, reason: str, picture: str | None) -> str:
    """A trial's note in Markdown: verdict, remedy, scorecard, and the image by its path on the dashboard."""
    best = record.best_result()
    if best is None:
        return f"**{reason}**"
    lines = [f"**{best.verdict}**", "", f"Best checkpoint: {best.step} images, {reason}."]
    advice = record.remedy(best) if best.by_weight else ""
    lines += ["", f"Try {advice}."] if advice else []
    if best.terms:
        lines += ["", "| term | value | 95% interval | limit |", "|---|---|---|---|"]
        lines += [_row(best, name) for name in best.terms]
    lines += ["", f"![trigger on and off, beside the base model]({picture})"] if picture else []
    return "\n".join(lines)


def _row(best: CheckpointResult, name: str) -> str:
    term, broken = best.terms[name], best.constraints.get(name)
    kept = "" if broken is None else ("broken" if broken > 0 else "kept")
    return f"| {name} | {term['value']:.3f} | {term['low']:.3f} to {term['high']:.3f} | {kept} |"


def publish_trial_note(trial: Trial, record: TrialFolder, reason: str, store: Store) -> None:
    """Give the dashboard a trial's image and note; call it before the trial is ended in the storage."""
    best, link = record.best_result(), None
    path = record.samples / f"{best.step if best else 0}.png"
    if path.is_file():
        known = [meta.artifact_id for meta in get_all_artifact_meta(trial) if meta.filename == path.name]
        found = known[0] if known else upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
        link = get_artifact_path(trial, found)
    save_note(trial, note_text(record, reason, link))
