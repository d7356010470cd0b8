"""The contents of a study's report as frozen dataclasses; `page.write_report` turns a `Report` into a web page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from autolora.data.step_table import StepTable
from autolora.scoring.intervals import Estimate

STATES = ("complete", "pruned", "failed", "running", "waiting")  # waiting: its worker returned it to the queue


@dataclass(frozen=True)
class CurvePoint:
    """A scored checkpoint after `at` images shown, or the exported LoRA at weight `at`."""

    at: float
    score: float
    fidelity: float
    editability: float
    bleed_class: float
    terms: Mapping[str, Estimate] = field(default_factory=dict)  # these terms and more, if their intervals are known
    verdict: str = ""
    broken: tuple[str, ...] = ()  # names of the broken constraints
    renders: tuple[Image.Image, ...] = ()  # some of the renders that it was scored by


@dataclass(frozen=True)
class TrialRow:
    """A trial, with the scores of its best checkpoint.

    `params` are the sampled values (empty for a baseline), `reason` says why the trial stopped or failed, and
    `overcooked_step` is the number of images shown from which on bleed stays above its limit.

    Raises:
        ValueError: the state is not one of `STATES`.
    """

    number: int
    uid: str
    recipe: str
    params: Mapping[str, object]
    state: str
    score: Estimate | None = None
    best_step: int | None = None
    terms: Mapping[str, Estimate] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    reason: str = ""
    curve: tuple[CurvePoint, ...] = ()
    overcooked_step: int | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {self.state!r}")


@dataclass(frozen=True)
class Pair:
    """Images by title of a prompt with its triggers and of the prompt `without` them, at the same seed."""

    prompt: str
    without: str
    seed: int
    images: Mapping[str, Image.Image]


@dataclass(frozen=True)
class Sample:
    """A prompt and a seed that every column of the gallery renders."""

    prompt: str
    seed: int
    group: str = ""


@dataclass(frozen=True)
class Column:
    """The renders of one model: an image of each sample, by the images shown in training and by LoRA weight.

    A base model has one entry, after 0 images. `step` is the checkpoint of the renders in `by_weight`; the page first
    shows those at `weight`.
    """

    name: str
    by_step: Mapping[int, tuple[Image.Image, ...]]
    by_weight: Mapping[float, tuple[Image.Image, ...]] = field(default_factory=dict)
    step: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Gallery:
    """The models side by side: the base model first, the best last; `step_weight` is the weight of all `by_step`."""

    samples: tuple[Sample, ...]
    columns: tuple[Column, ...]
    step_weight: float = 1.0


@dataclass(frozen=True)
class OutfitMatrix:
    """How often renders of one outfit pass for another: `shares[prompted][matched]`, with the nearest render of each.

    Each field has one entry per outfit, in the order of `names`.
    """

    names: tuple[str, ...]
    real: tuple[Image.Image, ...]  # a training image of each outfit
    shares: tuple[tuple[Estimate, ...], ...]
    renders: tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True)
class Effect:
    """The effect of one parameter of a recipe: the score of every trial by the parameter's value.

    `importance` is None if there are too few trials, and `log` says whether the values were sampled on a log scale.
    """

    recipe: str
    name: str
    importance: Estimate | None
    values: tuple[object, ...]
    scores: tuple[Estimate, ...]
    trials: tuple[int, ...]
    log: bool = False


@dataclass(frozen=True)
class Costs:
    """The time and the number of images shown that a study took."""

    training_seconds: float
    scoring_seconds: float
    images: int  # by all trials
    best_images: int  # up to the exported checkpoint
    baseline_images: int  # by the longest baseline, if it trains to its end


@dataclass(frozen=True)
class Reproduction:
    """The recipe of the exported LoRA for reuse: as a config, as commands, and what sd-scripts cannot reproduce."""

    yaml: str
    command: str
    kohya: str
    kohya_notes: tuple[str, ...]
    facts: Mapping[str, str]  # what must be equal for the same result


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    `best` is the number of the exported trial, `baselines` are the numbers of the baselines by recipe, `command`
    resumes the study, and `max_bleed` is drawn as a limit into the curves.
    """

    study: str
    verdict: str
    dataset: str
    seconds: float
    trials: tuple[TrialRow, ...]
    gallery: Gallery | None = None
    pairs: tuple[Pair, ...] = ()
    matrix: OutfitMatrix | None = None
    effects: tuple[Effect, ...] = ()
    step_table: StepTable | None = None  # of the exported recipe
    costs: Costs | None = None
    reproduction: Reproduction | None = None
    best: int | None = None
    baselines: Mapping[str, int] = field(default_factory=dict)
    export_path: Path | None = None
    command: str = ""
    model: str = ""
    activation_text: str = ""
    weight: float | None = None  # the recommended weight of the exported LoRA
    class_word: str = "1girl"
    max_bleed: float | None = None
    notes: tuple[str, ...] = ()  # sentences below the verdict, such as why the study stopped
    sweep: tuple[CurvePoint, ...] = ()  # the exported LoRA by weight
    refresh_seconds: int | None = None  # how often the page reloads itself; None if the study is finished

    def trial(self, number: int | None) -> TrialRow | None:
        """The trial of this number; None if there is none."""
        return next((trial for trial in self.trials if trial.number == number), None)
