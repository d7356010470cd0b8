"""Exports a checkpoint, and verifies that the files are what was trained and scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from autolora.adapters.base import State
from autolora.adapters.deltas import has_output_norms, is_plain
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.diffusers_copy import FOLDER, NAME, write_diffusers
from autolora.export.key_names import has_diffusers_format
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import compare_renders, jitter, verify_deltas
from autolora.export.write import DTYPES, ExportedFiles, export_paths, file_stem
from autolora.files import atomic_files, remove_leftovers
from autolora.progress import Bars
from autolora.publish.export import DORA_SUFFIX, PLAIN_LORA_SUFFIX, PlainLora, export_best, export_plain_lora
from autolora.sampling import Images, RenderRequest, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorer import Scorer


@dataclass(frozen=True)
class RoundtripReport:
    """The programs that read the adapter's file as it was trained, and what is known of the files beside it."""

    read_by: tuple[str, ...]
    plain_lora_score: Estimate | None = None  # None: there is none, or nothing can be measured
    left_out: tuple[str, ...] = ()  # sentences on copies that could not be made
    dora: Path | None = None  # the adapter's own file where the plain LoRA is the main file


def export_verified(
    trial_folder: TrialFolder,
    result: CheckpointResult,
    session: Session,
    folder: Path,
    study: str,
    scorer: Scorer | None,
    bars: Bars,
) -> tuple[ExportedFiles, PlainLora | None, RoundtripReport]:
    """Export a checkpoint; the files get their names in `folder` once they are verified.

    An adapter that is no plain LoRA gets a plain LoRA beside it. A DoRA's plain LoRA is the main file, because the
    common programs render DoRA differently. A copy that cannot be made or verified is left out, and the report says so.

    Args:
        trial_folder: the trial.
        result: its checkpoint, as it was scored last.
        session: what it was trained and scored on.
        folder: receives the files; what an interrupted export left there is removed.
        study: the name of the study or run, kept in the metadata.
        scorer: scores the plain LoRA beside the file; None: it is not scored.
        bars: where progress is shown.

    Returns:
        The main file with the diffusers copy, the plain LoRA, and what was verified.

    Raises:
        ExportError: the adapter's file is not what was trained; the folder stays as it was.
        StorageError: the folder cannot be written.
    """
    state, model = trial_folder.load(result), session.context.model
    with writing_to(folder), atomic_files(folder) as hidden:
        try:
            exported = export_best(trial_folder, result, session, hidden, study)
            read_by, left_out = verify_export(session, state, exported.path)
        except ExportError as error:
            message = str(error).replace(str(hidden), str(folder))
            raise ExportError(f"{message}; nothing was exported, {folder} stays as it was") from error
        plain_lora, plain_score = None, None
        if not is_plain(state):
            with _left_out("the plain LoRA", hidden, left_out):
                made = export_plain_lora(trial_folder, result, session, hidden, study)
                plain_score = verify_plain_lora(session, made, scorer, bars)
                plain_lora = made
        copied = state if has_diffusers_format(state) else plain_lora.state if plain_lora else None
        if session.export.diffusers and copied is not None:
            with _left_out("the copy for diffusers", hidden, left_out):
                copy = write_diffusers(copied, hidden / FOLDER, DTYPES[session.export.dtype])
                if model.source is not None:
                    DiffusersReference(copy, model.source, model).verify_deltas(copied)
                exported = replace(exported, diffusers=copy)
    dora = folder / exported.path.name if plain_lora and has_output_norms(state) else None
    exported = exported.moved(hidden, folder)
    plain_lora = replace(plain_lora, files=plain_lora.files.moved(hidden, folder)) if plain_lora else None
    if plain_lora and dora:
        exported = replace(plain_lora.files, diffusers=exported.diffusers)
    written = [exported, *([plain_lora.files] if plain_lora else [])]
    remove_stale(folder, session.context.dataset.trigger, written, dora)
    for sentence in left_out:
        bars.log(sentence)
    return exported, plain_lora, RoundtripReport(read_by, plain_score, tuple(left_out), dora)


@contextmanager
def _left_out(what: str, hidden: Path, left_out: list[str]) -> Iterator[None]:
    """Remove the files of a copy that cannot be made or verified, and keep the reason: the LoRA itself is exported."""
    before = set(hidden.rglob("*"))
    try:
        yield
    except ExportError as error:
        for path in set(hidden.rglob("*")) - before:
            if path.is_file():
                path.unlink()
        reason = str(error).replace(f"{hidden}/", "")
        left_out.append(f"{what} was left out, because it could not be verified: {reason}")


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Let one process at a time write to a folder of exports; what one that was killed left there is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        remove_leftovers(folder)
        yield


def remove_stale(folder: Path, trigger: str, written: list[ExportedFiles], dora: Path | None = None) -> None:
    """Remove files of an earlier export that this one did not write: they hold another LoRA."""
    stems = {file_stem(f"{trigger}{suffix}") for suffix in ("", PLAIN_LORA_SUFFIX, DORA_SUFFIX)}
    kept = {files.path.stem for files in written} | ({dora.stem} if dora else set())
    stale = [path for stem in stems - kept for path in export_paths(folder, stem)]
    stale += [] if written[0].diffusers else [folder / FOLDER / NAME]
    for path in stale:
        path.unlink(missing_ok=True)


def verify_export(session: Session, state: State, path: Path) -> tuple[tuple[str, ...], list[str]]:
    """Reload the adapter's own file as each program does, and a plain LoRA by diffusers' loader; all must agree.

    The file itself is not scored: equal weight changes give equal renders.

    Args:
        session: what the adapter was trained on.
        state: the adapter.
        path: its file.

    Returns:
        The programs that read the file as it was trained, and why diffusers does not load it, if that is so.

    Raises:
        ExportError: weight changes or renders differ.
    """
    model = session.context.model
    programs = verify_deltas(state, path, model).read_by
    loaded = read_lora(path, model)
    if not is_plain(state) or model.source is None:
        return programs, []
    try:
        reference = DiffusersReference(path, model.source, model)
    except ExportError as error:
        return programs, [str(error).replace(f"{path.parent}/", "")]
    _check_in_diffusers(session, state, loaded, reference)
    return (*programs, "diffusers"), []


def verify_plain_lora(session: Session, plain_lora: PlainLora, scorer: Scorer | None, bars: Bars) -> Estimate | None:
    """Reload a plain LoRA as each program and diffusers do, and return its score; None without a scorer.

    Raises:
        ExportError: weight changes or renders differ, or diffusers does not load it.
    """
    model, state = session.context.model, plain_lora.state
    verify_deltas(state, plain_lora.path, model)
    loaded = read_lora(plain_lora.path, model)
    if model.source is not None:
        _check_in_diffusers(session, state, loaded, DiffusersReference(plain_lora.path, model.source, model))
    session.context.adapter.load(loaded)
    return session.score(scorer, bars).score if scorer is not None else None


def _check_in_diffusers(session: Session, state: State, loaded: State, reference: DiffusersReference) -> None:
    reference.verify_deltas(state)
    if reference.can_render:
        check_renders(session, loaded, reference)


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
