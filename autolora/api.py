"""autolora as a library; the commands of the command line use the same functions.

    import autolora

    settings = autolora.configure("~/mona", model="sdxl", model_path="~/models/base.safetensors")
    run = autolora.recipe("guide-prodigy", dim=16, images_per_concept=300)
    session = autolora.open_session(settings, [run])
    for result in autolora.train_recipe(session, run, "runs/mona"):
        print(result.step, result.summary)
    print(autolora.export_best(session, run, "runs/mona").path)

Importing it changes nothing in the process: no environment variable, no warning filter, no log level. Messages go to
the logger `autolora`; progress goes to the function that is passed as `on_progress`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora.errors import StudyError
from autolora.files import expand_user
from autolora.presets import configure, recipe
from autolora.progress import Bars, ProgressUpdate
from autolora.settings import Settings

if TYPE_CHECKING:  # these import torch, which takes seconds
    from autolora.data.concepts import Dataset
    from autolora.evaluation.lora_files import ScoredFile
    from autolora.evaluation.result import CheckpointResult
    from autolora.evaluation.session import Session
    from autolora.export.compatibility import CompatibilityReport
    from autolora.models.base import BaseModel
    from autolora.publish.export import PlainLora
    from autolora.publish.roundtrip import RoundtripReport
    from autolora.study.results.progress import StudyProgress
    from autolora.train.run import Run

__all__ = [
    "configure",
    "export_best",
    "load_dataset",
    "load_model",
    "open_session",
    "recipe",
    "run_study",
    "score_lora",
    "train_recipe",
    "verify_lora",
]
OnProgress = Callable[[ProgressUpdate], None]


@dataclass(frozen=True)
class Export:
    """An exported LoRA, verified."""

    path: Path  # the file
    checkpoint: CheckpointResult
    facts: dict[str, Any]  # recipe, score, terms, broken limits and what may help
    diffusers: Path | None  # a copy as diffusers saves one, where `export.diffusers` asks for it
    plain_lora: PlainLora | None  # a LoRA near to it, where not every program reads the file's own kind
    roundtrip: RoundtripReport


@dataclass(frozen=True)
class Scores:
    """The scores of LoRA files."""

    files: tuple[Path, ...]  # all that were found
    results: list[ScoredFile]  # the best first
    refused: dict[Path, str]  # why the others cannot be read
    unread: dict[Path, str] = field(default_factory=dict)  # what files change that their scores do not cover


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study."""

    folder: Path  # with the report in `report/index.html`
    lora: Path  # the exported file
    facts: dict[str, Any]  # the content of `result.json`
    text: str  # the same for a person
    unmeasured: bool  # True: nothing could be scored, and the lowest validation loss was chosen


def load_dataset(settings: Settings) -> Dataset:
    """Read the dataset of the settings.

    Raises:
        DatasetError: every problem of the dataset, a line each.
    """
    from autolora.data import concepts

    return concepts.load_dataset(settings.dataset)


def load_model(settings: Settings) -> BaseModel:
    """Load the base model of the settings.

    Raises:
        ModelError: it is missing, of another kind, or broken.
    """
    from autolora.models import load

    return load.load_model(settings.model)


def open_session(
    settings: Settings,
    runs: Sequence[Run] = (),
    *,
    dataset: Dataset | None = None,
    on_progress: OnProgress | None = None,
    bars: Bars | None = None,
) -> Session:
    """Load dataset and model, and prepare what training and scoring need: latents, base renders, class images.

    Args:
        settings: dataset, model, scoring and cache folder.
        runs: all that may train in the session; none: the settings' own.
        dataset: the dataset, where it was read before.
        on_progress: is called whenever a task has moved.
        bars: progress bars to draw in its place.

    Raises:
        AutoloraError: what is missing or cannot be, each kind by its own class.
    """
    from autolora.evaluation import session

    dataset = load_dataset(settings) if dataset is None else dataset
    with _bars(on_progress, bars) as shown:
        return session.open_session(settings, dataset, list(runs) or [settings.run], shown)


def train_recipe(
    session: Session,
    run: Run,
    folder: str | Path,
    *,
    on_progress: OnProgress | None = None,
    bars: Bars | None = None,
) -> Iterator[CheckpointResult]:
    """Train a recipe, and yield every checkpoint as it is scored; what was interrupted is continued.

    Args:
        session: what it trains on.
        run: the recipe.
        folder: receives the checkpoints and their scores.
        on_progress: is called whenever a task has moved.
        bars: progress bars to draw in its place.

    Raises:
        StudyError: the training diverged; or the folder holds results of something else, or of other images.
    """
    from autolora.evaluation.identity import claim_folder, recipe_owner
    from autolora.evaluation.trial_folder import TrialFolder
    from autolora.train.loop import train as train_rounds
    from autolora.train.slot import Job, TrainingSlot

    claim_folder(folder := expand_user(folder), recipe_owner(run, session.identity))
    trial_folder = TrialFolder.open(folder, run)
    yield from trial_folder.results
    jobs = iter([Job(run, trial_folder.latest())])
    with _bars(on_progress, bars) as shown:
        bar = shown.add(run.name, run.images_per_epoch(session.context.dataset) * run.train.epochs)

        def on_step(slot: TrainingSlot) -> None:
            shown.set(bar, slot.step)
            if slot.memory_note:
                shown.log(slot.memory_note)
                slot.memory_note = ""

        for ready in train_rounds(lambda: next(jobs, None), session.context, on_step):
            checkpoint = ready[0].checkpoint
            assert checkpoint is not None
            if checkpoint.diverged:
                raise StudyError(
                    f"{run.name} diverged after {checkpoint.step} images: lower optimizer.lr or set "
                    "train.scale_weight_norms"
                )
            if trial_folder.scored_step() != checkpoint.step:
                results = trial_folder.results
                result = session.measure(checkpoint, results, results, shown, trial_folder.samples)
                trial_folder.append(checkpoint, result)
                yield result


def export_best(
    session: Session, run: Run, folder: str | Path, *, on_progress: OnProgress | None = None, bars: Bars | None = None
) -> Export:
    """Export the best checkpoint of a folder that `train_recipe` filled to its `best/`, with a model card; verify it.

    Raises:
        StudyError: no checkpoint is scored yet.
        ExportError: the file is not what was trained; nothing is replaced.
    """
    from autolora.evaluation.trial_folder import TrialFolder
    from autolora.publish.model_card import write_card_alone
    from autolora.publish.roundtrip import export_verified

    trial_folder = TrialFolder.open(expand_user(folder), run)
    best = trial_folder.best_result()
    if best is None:
        raise StudyError(f"no checkpoint in {folder} is scored yet: train first")
    with _bars(on_progress, bars) as shown:
        target = trial_folder.path / "best"
        files, plain_lora, roundtrip = export_verified(
            trial_folder, best, session, target, run.name, session.scorer, shown
        )
        write_card_alone(session, trial_folder, best, files.path, shown)
    return Export(files.path, best, trial_folder.summary(), files.diffusers, plain_lora, roundtrip)


def score_lora(
    settings: Settings,
    lora: str | Path,
    *,
    dataset: Dataset | None = None,
    on_progress: OnProgress | None = None,
    bars: Bars | None = None,
) -> Scores:
    """Score LoRA files of any trainer against a dataset.

    Args:
        settings: dataset, model and scoring.
        lora: a file, or a folder of files.
        dataset: the dataset, where it was read before.
        on_progress: is called whenever a task has moved.
        bars: progress bars to draw in its place.

    Raises:
        ConfigError: there is no file.
        ExportError: none of the files can be read.
        Unmeasurable: nothing can be scored on this dataset.
    """
    from autolora.evaluation import lora_files

    files = lora_files.find_lora_files(str(lora))
    states, refused = lora_files.read_lora_files(files, model := load_model(settings))
    left_out = lora_files.unread_in(states, model)
    with _bars(on_progress, bars) as shown:
        session = open_session(settings, lora_files.runs_of_files(states), dataset=dataset, bars=shown)
        return Scores(tuple(files), lora_files.score_lora_files(session, states, shown), refused, left_out)


def verify_lora(settings: Settings, lora: str | Path) -> CompatibilityReport:
    """Return which programs read a LoRA file, and whether all of them read it alike.

    Raises:
        ExportError: it is no LoRA file of this base model.
    """
    from autolora.export.compatibility import check_compatibility

    return check_compatibility(expand_user(lora), load_model(settings))


def run_study(
    settings: Settings,
    *,
    dataset: Dataset | None = None,
    on_checkpoint: Callable[[StudyProgress, bool], None] = lambda progress, trial_ended: None,
    on_progress: OnProgress | None = None,
    bars: Bars | None = None,
) -> StudyResult:
    """Run a study, or continue it, to its exported LoRA and its report.

    Args:
        settings: of `configure(..., study=NAME)`.
        dataset: the dataset, where it was read before.
        on_checkpoint: is called after every checkpoint, with how the study stands and whether a trial ended.
        on_progress: is called whenever a task has moved.
        bars: progress bars to draw in its place.

    Raises:
        ConfigError: the settings name no study, or a range or a recipe that cannot be.
        StudyError: the study was started differently, or no checkpoint of it is scored.
    """
    from autolora.study import full_study

    dataset = load_dataset(settings) if dataset is None else dataset
    with _bars(on_progress, bars) as shown:
        text, unmeasured = full_study.run_full_study(settings, dataset, shown, on_checkpoint)
    facts = json.loads((settings.folder / "result.json").read_text("utf-8"))
    return StudyResult(settings.folder, Path(facts["export"]), facts, text, unmeasured)


def _bars(on_progress: OnProgress | None, bars: Bars | None) -> AbstractContextManager[Bars]:
    """The bars of the caller, or quiet ones of our own."""
    return nullcontext(bars) if bars else Bars(quiet=True, on_progress=on_progress)


logging.getLogger("autolora").addHandler(logging.NullHandler())
