"""autolora as a library; the commands of the command line use the same functions.

    import autolora

    settings = autolora.configure("~/mona", model="sdxl", model_path="~/models/base.safetensors")
    run = autolora.recipe("guide-prodigy", dim=16, images_per_concept=300)
    session = autolora.open_session(settings, [run])
    for result in autolora.train(session, run, "runs/mona"):
        print(result.step, result.summary)
    print(autolora.export(session, run, "runs/mona").path)

Importing it changes nothing in the process: no environment variable, no warning filter, no log level. Messages go to the
logger `autolora`; progress goes to the function that is passed as `on_progress`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.progress import Bars, ProgressUpdate
from autolora.settings import Settings, build_run, build_settings

if TYPE_CHECKING:  # these import torch, which takes seconds
    from autolora.data.concepts import Dataset
    from autolora.evaluation.result import CheckpointResult
    from autolora.evaluation.session import Session
    from autolora.models.base import BaseModel
    from autolora.publish.export import PlainLora
    from autolora.publish.roundtrip import RoundtripReport
    from autolora.train.run import Run

OnProgress = Callable[[ProgressUpdate], None]
SECTIONS = ("adapter", "optimizer", "schedule", "train", "captions")  # of a recipe
GROUPS = ("adapter", "optimizer", "schedule")  # whose kind can be chosen by name


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
class StudyResult:
    """The outcome of a study."""

    folder: Path
    lora: Path  # the exported file
    report: Path  # a web page
    facts: dict[str, Any]  # the content of `result.json`
    unmeasured: bool  # True: nothing could be scored, and the lowest validation loss was chosen


def recipe(name: str = "guide-adamw", **values: Any) -> Run:
    """Return a recipe of `conf/recipe/` with some keys set.

    Args:
        name: the recipe's name.
        values: keys by their last part, `dim=16`, or whole with `**{"train.seed": 1}`; `adapter="loha"`,
            `optimizer="adamw"` and `schedule="cosine"` choose another kind.

    Raises:
        ConfigError: no such recipe, kind or key, a key that several sections have, or a value that cannot be.
    """
    kinds = [f"{group}={values[group]}" for group in GROUPS if group in values]
    config = cfg.compose("train", [f"recipe={name}", *kinds])
    keys = {_full_key(config, key): value for key, value in values.items() if key not in GROUPS}
    return build_run(cfg.with_values(config, keys))


def _full_key(config: Mapping[str, Any], key: str) -> str:
    if "." in key:
        section, _, name = key.partition(".")
        if section not in config or name.split(".")[0] not in config[section]:
            raise ConfigError(f"a recipe has no key `{key}`")
        return key
    sections = [section for section in SECTIONS if key in config[section]]
    if len(sections) != 1:
        which = f"write it whole: {', '.join(f'{s}.{key}' for s in sections)}" if sections else "it has no such key"
        raise ConfigError(f"`{key}` of a recipe: {which}")
    return f"{sections[0]}.{key}"


def configure(
    dataset: str | Path,
    *,
    model: str = "paperdoll",
    model_path: str | Path | None = None,
    scoring: str | None = None,
    study: str | Path | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings of a training run or a study.

    Args:
        dataset: the folder of captioned images.
        model: a preset of `conf/model/`, such as `sdxl`.
        model_path: the base model's file or folder; None: the preset's own.
        scoring: a preset of `conf/scoring/`; None: `paperdoll` for the synthetic test world, else `character`.
        study: a study of `studies/`, or the path of a YAML file; None: no study.
        out: the folder of the study or the run; None: below `runs/`.
        storage: the URL of the study's storage, see docs/scaling.md; None: SQLite in its folder.
        values: further keys, such as `{"budget.n_trials": 5}`.

    Raises:
        ConfigError: a name, a key or a value that cannot be.
    """
    scoring = scoring or ("paperdoll" if model == "paperdoll" else "character")
    given = {"dataset.path": dataset, "model.path": model_path, "out": out, **(values or {})}
    overrides = [f"model={model}", f"scoring={scoring}"]
    overrides += [f"{key}={_as_override(value)}" for key, value in given.items() if value is not None]
    source = str(study) if study is not None else None
    config = cfg.compose("tune" if source else "train", overrides, source)
    if storage is not None:
        config.storage = storage
    return build_settings(config, source, overrides)


def _as_override(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_override(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


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
    from autolora import models

    return models.load_model(settings.model)


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


def train(
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
        StudyError: the training diverged.
    """
    from autolora.evaluation.trial_folder import TrialFolder
    from autolora.train.loop import Job, TrainingSlot
    from autolora.train.loop import train as train_rounds

    trial_folder = TrialFolder.open(Path(folder).expanduser(), run)
    yield from trial_folder.results
    jobs = iter([Job(run, trial_folder.latest())])
    with _bars(on_progress, bars) as shown:
        bar = shown.add(run.name, run.images_per_epoch(session.context.dataset) * run.train.epochs)

        def on_step(slot: TrainingSlot) -> None:
            shown.set(bar, slot.step)
            if slot.relief:
                shown.log(slot.relief)
                slot.relief = ""

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


def export(
    session: Session, run: Run, folder: str | Path, *, on_progress: OnProgress | None = None, bars: Bars | None = None
) -> Export:
    """Export the best checkpoint of a folder that `train` filled to its `best/`, with a model card, and verify the file.

    Raises:
        StudyError: no checkpoint is scored yet.
        ExportError: the file is not what was trained; nothing is replaced.
    """
    from autolora.evaluation.trial_folder import TrialFolder
    from autolora.publish.model_card import write_card_alone
    from autolora.publish.roundtrip import export_proved

    trial_folder = TrialFolder.open(Path(folder).expanduser(), run)
    best = trial_folder.best_result()
    if best is None:
        raise StudyError(f"no checkpoint in {folder} is scored yet: train first")
    with _bars(on_progress, bars) as shown:
        target = trial_folder.path / "best"
        files, plain_lora, roundtrip = export_proved(
            trial_folder, best, session, target, run.name, session.scorer, shown
        )
        write_card_alone(session, trial_folder, best, files.path, shown)
    return Export(files.path, best, trial_folder.summary(), files.diffusers, plain_lora, roundtrip)


@contextmanager
def _bars(on_progress: OnProgress | None, bars: Bars | None) -> Iterator[Bars]:
    """The bars of the caller, or quiet ones of our own."""
    if bars:
        yield bars
        return
    with Bars(quiet=True, on_progress=on_progress) as quiet:
        yield quiet


logging.getLogger("autolora").addHandler(logging.NullHandler())
