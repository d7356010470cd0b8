"""Proves that what was exported is what was trained and scored."""

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
from autolora.export.key_names import has_format
from autolora.export.verify import DiffusersReference, compare_pictures, jitter, verify_deltas
from autolora.export.write import DTYPES, Exported, as_in_file, files_of
from autolora.files import atomic_files, remove_leftovers
from autolora.progress import Bars
from autolora.publish.export import TWIN_SUFFIX, PlainLora, export_best
from autolora.sampling import Images, RenderRequest, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorer import Scorer

# Half the last digit that a score is kept with, and a little. What was judged is the adapter as its file holds it, and
# with LoRA, LoHa, DoRA and LoKr of the embedded world the file scores bit for bit the same, in all three dtypes.
SCORE_NOISE = 6e-5


@dataclass(frozen=True)
class RoundtripReport:
    """Which programs make the same of the file, and the score of its plain twin where there is one."""

    read_by: tuple[str, ...]
    twin_score: Estimate | None = None


def export_proved(
    record: TrialFolder,
    best: CheckpointResult,
    session: Session,
    folder: Path,
    study: str,
    scorer: Scorer | None,
    bars: Bars,
    score: float | None = None,
) -> tuple[Exported, PlainLora | None, RoundtripReport]:
    """Export a record's best checkpoint as `export_best` does; files take their names in `folder` once they are proved.

    Args:
        record: the trial.
        best: its best checkpoint as it was judged last.
        work: what it was trained and scored on.
        folder: where the files go; what a killed export left there is removed.
        study: the name of the study or run, kept in the metadata.
        scorer: what scores the files. None: nothing does.
        bars: where progress is shown.
        score: what the checkpoint scored with that. None: only its twin is scored.

    Raises:
        ExportError: a file is not what was trained; what was in the folder stays as it was.
        StorageError: the folder cannot be written.
    """
    remove_leftovers(folder)
    with atomic_files(folder) as hidden:
        exported, twin = export_best(record, best, session, hidden, study)
        try:
            proof = prove(session, record.load(best), exported, twin, scorer, bars, score)
        except ExportError as error:
            words = str(error).replace(str(hidden), str(folder))
            raise ExportError(f"{words}; nothing was exported, {folder} stays as it was") from error
    stale = () if twin else files_of(folder, f"{exported.path.stem}{TWIN_SUFFIX}")
    for path in (*stale, *(() if exported.diffusers else [folder / FOLDER / NAME])):
        path.unlink(missing_ok=True)  # of an earlier export: it would stand for another LoRA
    return exported.moved(hidden, folder), replace(twin, path=folder / twin.path.name) if twin else None, proof


def prove(
    session: Session,
    state: State,
    exported: Exported,
    twin: PlainLora | None,
    scorer: Scorer | None,
    bars: Bars,
    score: float | None = None,
) -> RoundtripReport:
    """Reload the written file as each program does, and by diffusers' own loader; all must agree with the adapter.

    Args:
        work: what it was trained on.
        state: the adapter.
        exported: its file.
        twin: the plain LoRA beside a file that diffusers does not read.
        scorer: what scores the files. None: nothing does.
        bars: where progress is shown.
        score: what the adapter scored with that, and the file must. None: the file is not scored.

    Raises:
        ExportError: changes of weights, score or pictures differ.
    """
    context = session.context
    found = verify_deltas(state, exported.path, context.model)
    held = read_lora(exported.path, context.model)
    context.adapter.load(held)
    if scorer is not None and score is not None:
        check_score(session, state, exported.path, scorer, bars, score)
    plain, path, twin_score = state, exported.path, None
    if twin is not None:
        plain, path = twin.state, twin.path
        verify_deltas(plain, path, context.model)
        held = read_lora(path, context.model)
        context.adapter.load(held)
        twin_score = session.score(scorer, bars).score if scorer is not None else None
    source = context.model.source
    if source is not None:
        loaded = DiffusersReference(path, source, context.model)
        loaded.verify_deltas(plain)
        if loaded.draws:
            check_pictures(session, held, loaded)
        if exported.diffusers is not None:
            copied = state if has_format(state) else plain
            DiffusersReference(exported.diffusers, source, context.model).verify_deltas(copied)
    return RoundtripReport(
        (*found.read_by, "diffusers") if twin is None and source is not None else found.read_by, twin_score
    )


def check_pictures(session: Session, held: State, loaded: DiffusersReference) -> None:
    """A file, which holds this state, must draw in diffusers what it draws here, at every weight.

    Raises:
        ExportError: it does not.
    """
    model, adapter, probe = session.context.model, session.context.adapter, session.of("trigger")[0]
    shots = [RenderRequest(probe.prompt, probe.seeds[0], weight) for weight in session.scoring.weights]

    def drawn(state: State) -> Images:
        adapter.load(state)
        return render(model, shots, session.render_settings, adapter)

    theirs = loaded.render(shots, session.render_settings)
    compare_pictures(drawn(held), theirs, jittered=lambda: drawn(jitter(held)))


def check_score(session: Session, state: State, path: Path, scorer: Scorer, bars: Bars, score: float) -> None:
    """A file, which is in the adapter now, must score what the adapter did.

    A score of another machine, whose renders are not quite the same, is asked for again here.

    Raises:
        ExportError: it does not.
    """
    after, expected = session.score(scorer, bars).score.value, score
    if abs(after - expected) > SCORE_NOISE:
        session.context.adapter.load(as_in_file(state, session.context.model, DTYPES[session.export.dtype]))
        expected = session.score(scorer, bars).score.value
    if abs(after - expected) > SCORE_NOISE:
        raise ExportError(
            f"{path} scores {after:.5f} after reloading, the trial {expected:.5f}; "
            f"a gap of at most {SCORE_NOISE:g} was expected"
        )
    if expected != score:
        bars.log(f"the LoRA scores {expected:.3f} here, where it was judged {score:.3f}: machines render differently")
