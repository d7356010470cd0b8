"""What a report is made of; `page.write_report` turns it into one web page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from autolora.scoring.intervals import Estimate

STATES = ("complete", "pruned", "failed", "running")


@dataclass(frozen=True)
class CurvePoint:
    """A scored checkpoint `at` so many images shown, or the exported LoRA `at` a weight."""

    at: float
    score: float
    fidelity: float
    editability: float
    bleed_class: float


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
class GridRow:
    """One prompt and seed, drawn by several models: column title to picture; rows of one `group` stand together."""

    prompt: str
    seed: int
    images: Mapping[str, Image.Image]
    group: str = ""


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    `best` is the number of the trial that was exported, `baselines` names those of unchanged recipes to compare it
    with, `command` continues the study, and `bleed_limit` is drawn into the curves.
    """

    study: str
    verdict: str
    dataset: str
    seconds: float
    trials: tuple[TrialRow, ...]
    grids: tuple[GridRow, ...] = ()
    best: int | None = None
    baselines: Mapping[str, int] = field(default_factory=dict)
    export_path: Path | None = None
    command: str = ""
    model: str = ""
    activation_text: str = ""
    weight: float | None = None  # of the exported LoRA, as recommended
    class_word: str = "1girl"
    bleed_limit: float | None = None
    notes: tuple[str, ...] = ()  # more sentences below the verdict, such as why the study stopped
    sweep: tuple[CurvePoint, ...] = ()  # the exported LoRA by weight

    def trial(self, number: int | None) -> TrialRow | None:
        """The trial of a number, if there is one."""
        return next((trial for trial in self.trials if trial.number == number), None)

    @property
    def grid_groups(self) -> tuple[tuple[str, tuple[GridRow, ...]], ...]:
        """The grid rows by group, in the order of their first rows."""
        names = dict.fromkeys(row.group for row in self.grids)
        return tuple((name, tuple(row for row in self.grids if row.group == name)) for name in names)
