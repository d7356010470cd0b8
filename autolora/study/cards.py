"""What the dashboard shows of a trial: its best checkpoint's pictures beside the base model's, and a note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from optuna import Trial
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from optuna_dashboard import save_note
from optuna_dashboard.artifact import get_artifact_path
from PIL import Image

from autolora.files import atomic_path
from autolora.sampling import Pictures
from autolora.scoring.scorecard import Rendered
from autolora.scoring.scorer import Scorer
from autolora.study.artifacts import Store
from autolora.study.samples import labelled
from autolora.study.trial import Point, Record

PROMPTS = 2  # with the trigger, and as many without
SEEDS = 4  # columns


def keep_grid(folder: Path, step: int, scorer: Scorer, rendered: Rendered) -> None:
    """Write the grid of a checkpoint's renders: prompts x seeds, trigger on and off, the base model's beside."""
    with atomic_path(folder / f"{step}.png") as temporary:
        picture_grid(scorer, rendered).save(temporary, format="PNG")


def picture_grid(scorer: Scorer, rendered: Rendered) -> Image.Image:
    """Two rows a prompt, at the strongest weight: the base model's pictures, and the same seeds with the LoRA."""
    weight = max(weight for _, weight in rendered)
    probes = [p for group in ("trigger", "class_only") for p in scorer.of(group)[:PROMPTS]]
    rows = [
        row
        for probe in probes
        if (probe, weight) in rendered
        for row in (
            (f"base: {probe.base_prompt}", _columns(scorer.base_pictures[probe])),
            (f"LoRA at {weight:g}: {probe.prompt}", _columns(rendered[probe, weight])),
        )
    ]
    return labelled(rows)


def _columns(pictures: Pictures) -> Pictures:
    """As many pictures as there are columns; white where a prompt has fewer."""
    missing = SEEDS - len(pictures)
    if missing <= 0:
        return pictures[:SEEDS]
    return np.concatenate([pictures, np.full((missing, *pictures.shape[1:]), 255, np.uint8)])


def note_text(record: Record, reason: str, picture: str | None) -> str:
    """A trial's note in Markdown: verdict, remedy, scorecard, and the picture by its path on the dashboard."""
    best = record.best()
    if best is None:
        return f"**{reason}**"
    lines = [f"**{best.verdict}**", "", f"Best checkpoint: step {best.step}, {reason}."]
    advice = record.remedy(best) if best.by_weight else ""
    lines += ["", f"Try {advice}."] if advice else []
    if best.terms:
        lines += ["", "| term | value | 95% interval | limit |", "|---|---|---|---|"]
        lines += [_row(best, name) for name in best.terms]
    lines += ["", f"![trigger on and off, beside the base model]({picture})"] if picture else []
    return "\n".join(lines)


def _row(best: Point, name: str) -> str:
    term, broken = best.terms[name], best.constraints.get(name)
    kept = "" if broken is None else ("broken" if broken > 0 else "kept")
    return f"| {name} | {term['value']:.3f} | {term['low']:.3f} to {term['high']:.3f} | {kept} |"


def show_trial(trial: Trial, record: Record, reason: str, store: Store) -> None:
    """Give the dashboard a trial's picture and note; to be called before the trial is told."""
    best, link = record.best(), None
    path = record.samples / f"{best.step if best else 0}.png"
    if path.is_file():
        known = [meta.artifact_id for meta in get_all_artifact_meta(trial) if meta.filename == path.name]
        found = known[0] if known else upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
        link = get_artifact_path(trial, found)
    save_note(trial, note_text(record, reason, link))
