"""Exports a checkpoint, and verifies that the files are what was trained and scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

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
from autolora.export.write import DTYPES, ExportedFiles, as_in_file, export_paths
from autolora.files import atomic_files, remove_leftovers
from autolora.progress import Bars
from autolora.publish.export import PLAIN_LORA_SUFFIX, PlainLora, export_best
from autolora.sampling import Images, RenderRequest, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorer import Scorer

# A score is kept with four digits; this is half the last one, and a little more. The adapter is scored as its file
# holds it: with LoRA, LoHa, DoRA and LoKr of the synthetic test world the file's score is bit for bit the same, in all
# three precisions.
SCORE_NOISE = 6e-5


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
    score: float | None = None,
) -> tuple[ExportedFiles, PlainLora | None, RoundtripReport]:
    """Export a checkpoint as `export_best` does; the files get their names in `folder` once they are verified.

    Args:
        trial_folder: the trial.
        result: its checkpoint, as it was scored last.
        session: what it was trained and scored on.
        folder: receives the files; what an interrupted export left there is removed.
        study: the name of the study or run, kept in the metadata.
        scorer: scores the files; None: they are not scored.
        bars: where progress is shown.
        score: the checkpoint's score by that scorer; None: only the plain LoRA is scored.

    Raises:
        ExportError: a file is not what was trained; the folder stays as it was.
        StorageError: the folder cannot be written.
    """
    remove_leftovers(folder)
    with atomic_files(folder) as hidden:
        exported, plain_lora = export_best(trial_folder, result, session, hidden, study)
        try:
            report = verify_export(session, trial_folder.load(result), exported, plain_lora, scorer, bars, score)
        except ExportError as error:
            message = str(error).replace(str(hidden), str(folder))
            raise ExportError(f"{message}; nothing was exported, {folder} stays as it was") from error
    stale = [] if plain_lora else [*export_paths(folder, f"{exported.path.stem}{PLAIN_LORA_SUFFIX}")]
    stale += [] if exported.diffusers else [folder / FOLDER / NAME]
    for path in stale:
        path.unlink(missing_ok=True)  # of an earlier export, so it holds another LoRA
    if plain_lora:
        plain_lora = replace(plain_lora, path=folder / plain_lora.path.name)
    return exported.moved(hidden, folder), plain_lora, report


def verify_export(
    session: Session,
    state: State,
    exported: ExportedFiles,
    plain_lora: PlainLora | None,
    scorer: Scorer | None,
    bars: Bars,
    score: float | None = None,
) -> RoundtripReport:
    """Reload the written file as each program does, and by diffusers' own loader; all must agree with the adapter.

    Args:
        session: what the adapter was trained on.
        state: the adapter.
        exported: its file.
        plain_lora: the plain LoRA beside a file that diffusers does not read.
        scorer: scores the files; None: they are not scored.
        bars: where progress is shown.
        score: the adapter's score by that scorer, which the file must reach; None: only the plain LoRA is scored.

    Raises:
        ExportError: weight changes, score or renders differ.
    """
    context = session.context
    programs = verify_deltas(state, exported.path, context.model).read_by
    loaded = read_lora(exported.path, context.model)
    context.adapter.load(loaded)
    if scorer is not None and score is not None:
        check_score(session, state, exported.path, scorer, bars, score)
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


def check_score(session: Session, state: State, path: Path, scorer: Scorer, bars: Bars, score: float) -> None:
    """Compare the score of a file, which is loaded in the adapter now, with the score of the adapter that it holds.

    If they differ, the adapter is scored again here: another machine's renders are not quite the same.

    Raises:
        ExportError: they differ here too.
    """
    after, expected = session.score(scorer, bars).score.value, score
    if abs(after - expected) > SCORE_NOISE:
        session.context.adapter.load(as_in_file(state, session.context.model, DTYPES[session.export.dtype]))
        expected = session.score(scorer, bars).score.value
    if abs(after - expected) > SCORE_NOISE:
        raise ExportError(
            f"{path} scores {after:.5f} after reloading, the trial {expected:.5f}; "
            f"a difference of at most {SCORE_NOISE:g} was expected"
        )
    if expected != score:
        bars.log(
            f"the LoRA scores {expected:.3f} here, and scored {score:.3f} in the finals: machines render differently"
        )
