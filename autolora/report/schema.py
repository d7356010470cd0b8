"""What a report is made of; `page.write_report` turns it into one web page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from autolora.data.step_table import StepTable
from autolora.scoring.intervals import Estimate

STATES = ("complete", "pruned", "failed", "running", "waiting")  # waiting: handed back by its worker


@dataclass(frozen=True)
class CurvePoint:
    """A scored checkpoint `at` so many images shown, or the exported LoRA `at` a weight."""

    at: float
    score: float
    fidelity: float
    editability: float
    bleed_class: float
    terms: Mapping[str, Estimate] = field(default_factory=dict)  # the same and more with intervals, where known
    verdict: str = ""
    broken: tuple[str, ...] = ()  # names of the constraints that it breaks
    pictures: tuple[Image.Image, ...] = ()  # some of what it was scored by


@dataclass(frozen=True)
class TrialRow:
    """A trial, with the scores of its best checkpoint.

    `params` are what the sampler drew (nothing for a recipe run unchanged), `reason` says why the trial stopped or
    failed, and `overcooked_step` is the first step from which bleed stays above its limit.
    """

    number: int
    uid: str
    recipe: str
    params: Mapping[str, object]
    state: str  # one of STATES
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
    """One prompt with its triggers and `without` them, at one seed: pictures by title."""

    prompt: str
    without: str
    seed: int
    images: Mapping[str, Image.Image]


@dataclass(frozen=True)
class Sample:
    """What the models side by side are asked to draw."""

    prompt: str
    seed: int
    group: str = ""


@dataclass(frozen=True)
class Column:
    """One model beside the others: a picture of each sample after so many steps, and at several weights.

    A base model has one entry, after 0 steps; `step` is the checkpoint that the weights are of, `weight` is shown
    first.
    """

    name: str
    by_step: Mapping[int, tuple[Image.Image, ...]]
    by_weight: Mapping[float, tuple[Image.Image, ...]] = field(default_factory=dict)
    step: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Gallery:
    """The models side by side, the base model first, the best last; their steps are all shown at one weight."""

    samples: tuple[Sample, ...]
    columns: tuple[Column, ...]
    step_weight: float = 1.0


@dataclass(frozen=True)
class OutfitMatrix:
    """How often what is asked of one outfit shows another: `shares[asked][shown]`, with the most telling picture."""

    names: tuple[str, ...]
    real: tuple[Image.Image, ...]  # one of the user's pictures of each
    shares: tuple[tuple[Estimate, ...], ...]
    pictures: tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True)
class Effect:
    """What one parameter of a recipe did: its importance, where there were trials enough, and every trial's score."""

    recipe: str
    name: str
    importance: Estimate | None
    values: tuple[object, ...]
    scores: tuple[Estimate, ...]
    trials: tuple[int, ...]
    log: bool = False


@dataclass(frozen=True)
class Costs:
    """What a study took."""

    training_seconds: float
    scoring_seconds: float
    steps: int  # images shown, by all trials
    best_steps: int  # up to the exported checkpoint
    bake_steps: int  # of the longest unchanged recipe, had it run to its end


@dataclass(frozen=True)
class Reproduction:
    """The recipe of the exported LoRA to take away: as a config, as commands, and what the other trainer cannot do."""

    yaml: str
    command: str
    kohya: str
    kohya_notes: tuple[str, ...]
    facts: Mapping[str, str]  # what must be alike for the same result


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    `best` is the number of the trial that was exported, `baselines` names those of unchanged recipes to compare it
    with, `command` continues the study, and `max_bleed` is drawn into the curves.
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
    ledger: StepTable | None = None  # of the exported recipe
    costs: Costs | None = None
    howto: Reproduction | None = None
    best: int | None = None
    baselines: Mapping[str, int] = field(default_factory=dict)
    export_path: Path | None = None
    command: str = ""
    model: str = ""
    activation_text: str = ""
    weight: float | None = None  # of the exported LoRA, as recommended
    class_word: str = "1girl"
    max_bleed: float | None = None
    notes: tuple[str, ...] = ()  # more sentences below the verdict, such as why the study stopped
    sweep: tuple[CurvePoint, ...] = ()  # the exported LoRA by weight
    refresh_seconds: int | None = None  # how soon the page looks for a newer one; None where the study is over

    def trial(self, number: int | None) -> TrialRow | None:
        """The trial of a number, if there is one."""
        return next((trial for trial in self.trials if trial.number == number), None)
