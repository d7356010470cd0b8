"""Exports a checkpoint, and verifies that the files are what was trained and scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.diffusers_copy import FOLDER, NAME
from autolora.export.key_names import has_diffusers_format
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import compare_renders, jitter, verify_deltas
from autolora.export.write import ExportedFiles, export_paths
from autolora.files import atomic_files, remove_leftovers
from autolora.progress import Bars
from autolora.publish.export import PLAIN_LORA_SUFFIX, PlainLora, export_best
from autolora.sampling import Images, RenderRequest, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorer import Scorer


@dataclass(frozen=True)
class RoundtripReport:
    """The programs that read the file as it was trained, and the score of the plain LoRA beside it."""

    read_by: tuple[str, ...]
    plain_lora_score: Estimate | None = None  # None: there is none, or nothing can be measured


def export_verified(
    trial_folder: TrialFolder,
    result: CheckpointResult,
    session: Session,
    folder: Path,
    study: str,
    scorer: Scorer | None,
    bars: Bars,
) -> tuple[ExportedFiles, PlainLora | None, RoundtripReport]:
    """Export a checkpoint as `export_best` does; the files get their names in `folder` once they are verified.

    Args:
        trial_folder: the trial.
        result: its checkpoint, as it was scored last.
        session: what it was trained and scored on.
        folder: receives the files; what an interrupted export left there is removed.
        study: the name of the study or run, kept in the metadata.
        scorer: scores the plain LoRA beside the file; None: it is not scored.
        bars: where progress is shown.

    Raises:
        ExportError: a file is not what was trained; the folder stays as it was.
        StorageError: the folder cannot be written.
    """
    with writing_to(folder), atomic_files(folder) as hidden:
        exported, plain_lora = export_best(trial_folder, result, session, hidden, study)
        try:
            report = verify_export(session, trial_folder.load(result), exported, plain_lora, scorer, bars)
        except ExportError as error:
            message = str(error).replace(str(hidden), str(folder))
            raise ExportError(f"{message}; nothing was exported, {folder} stays as it was") from error
        remove_stale(folder, exported, plain_lora)
    if plain_lora:
        plain_lora = replace(plain_lora, path=folder / plain_lora.path.name)
    return exported.moved(hidden, folder), plain_lora, report


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Let one process at a time write to a folder of exports; what one that was killed left there is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        remove_leftovers(folder)
        yield


def remove_stale(folder: Path, exported: ExportedFiles, plain_lora: PlainLora | None) -> None:
    """Remove the files of an earlier export that the new one has not, as they hold another LoRA."""
    stale = [] if plain_lora else [*export_paths(folder, f"{exported.path.stem}{PLAIN_LORA_SUFFIX}")]
    for path in [*stale, *([] if exported.diffusers else [folder / FOLDER / NAME])]:
        path.unlink(missing_ok=True)


def verify_export(
    session: Session,
    state: State,
    exported: ExportedFiles,
    plain_lora: PlainLora | None,
    scorer: Scorer | None,
    bars: Bars,
) -> RoundtripReport:
    """Reload the written file as each program does, and by diffusers' own loader; all must agree with the adapter.

    The file itself is not scored: equal weight changes give equal renders.

    Args:
        session: what the adapter was trained on.
        state: the adapter.
        exported: its file.
        plain_lora: the plain LoRA beside a file that diffusers does not read.
        scorer: scores the plain LoRA; None: it is not scored.
        bars: where progress is shown.

    Raises:
        ExportError: weight changes or renders differ.
    """
    context = session.context
    programs = verify_deltas(state, exported.path, context.model).read_by
    loaded = read_lora(exported.path, context.model)
    context.adapter.load(loaded)
    plain_state, path, plain_score = state, exported.path, None
    if plain_lora is not None:
        plain_state, path = plain_lora.state, plain_lora.path
        verify_deltas(plain_state, path, context.model)
        loaded = read_lora(path, context.model)
        context.adapter.load(loaded)
        plain_score = session.score(scorer, bars).score if scorer is not None else None
    source = context.model.source
    if source is not None:
        reference = DiffusersReference(path, source, context.model)
        reference.verify_deltas(plain_state)
        if reference.can_render:
            check_renders(session, loaded, reference)
        if exported.diffusers is not None:
            copied = state if has_diffusers_format(state) else plain_state
            DiffusersReference(exported.diffusers, source, context.model).verify_deltas(copied)
        if plain_lora is None:
            programs = (*programs, "diffusers")
    return RoundtripReport(programs, plain_score)


def check_renders(session: Session, state: State, reference: DiffusersReference) -> None:
    """Compare diffusers' renders of a file, at every weight, with ours of the adapter that the file holds.

    Raises:
        ExportError: they differ.
    """
    model, adapter, prompt = session.context.model, session.context.adapter, session.select("trigger")[0]
    requests = [RenderRequest(prompt.prompt, prompt.seeds[0], weight) for weight in session.scoring.weights]

    def render_state(state: State) -> Images:
        adapter.load(state)
        return render(model, requests, session.render_settings, adapter)

    theirs = reference.render(requests, session.render_settings)
    compare_renders(render_state(state), theirs, jittered=lambda: render_state(jitter(state)))
