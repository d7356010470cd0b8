"""The scored checkpoints of a trial, without their weights; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, ConfigDict, Field

from autolora.received import Finite, Interval, Weight, read_json
from autolora.scoring.settings import BELOW

if TYPE_CHECKING:  # these modules import torch
    from autolora.scoring.scorecard import Scorecard
    from autolora.train.checkpoint import Checkpoint

RISEN = 1.05  # how far a validation loss must have risen to be told from noise
DIVERGED = -10.0  # a finite objective below any score, so that the sampler learns to stay away


Terms = dict[str, Interval]


@dataclass(frozen=True)
class CheckpointResult:
    """One scored checkpoint on a trial's curve."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=0, le=2**53)]
    train_loss: float
    val_loss: float
    val_ratios: Annotated[list[float], Field(min_length=1)]  # by timestep, low noise first, relative to the base's
    objective: Finite = DIVERGED
    score: Interval | None = None  # None where nothing was rendered
    weight: Finite = 1.0
    terms: Terms = field(default_factory=dict)
    by_weight: dict[Weight, Terms] = field(default_factory=dict)
    constraints: dict[str, Finite] = field(default_factory=dict)
    bleed_rate: dict[str, Finite] = field(default_factory=dict)
    bleed_by_prompt: dict[str, Finite] = field(default_factory=dict)  # share with the character, by prompt without it
    verdict: str = ""
    unmeasurable: dict[str, str] = field(default_factory=dict)  # why a term is missing
    second: dict[Weight, Terms] = field(default_factory=dict)  # by weight, by another encoder
    diverged: bool = False
    sweep: dict[Weight, Terms] = field(default_factory=dict)  # terms at more weights, by weight
    tags: list[str] = field(default_factory=list)  # of the character, as a tagger sees it
    tag_bleed: dict[Weight, Interval] = field(default_factory=dict)  # how much oftener without trigger, by weight
    averaged: list[int] = field(default_factory=list)  # steps of the checkpoints that it is the average of
    strength: Finite = 1.0  # what its change of the base model was multiplied by after training

    @property
    def val_ratio(self) -> float:
        """The validation loss relative to the base model's, over all buckets."""
        return sum(self.val_ratios) / len(self.val_ratios)

    @property
    def describe_place(self) -> str:
        """The checkpoint in words: the images shown up to it, and how it was changed after training."""
        changes = [f"average of {', '.join(map(str, self.averaged))}"] if self.averaged else []
        changes += [f"times {self.strength:g}"] if self.strength != 1 else []
        return f"{self.step} images" + (f" ({', '.join(changes)})" if changes else "")

    @property
    def summary(self) -> str:
        """The score, where there is one, and the verdict."""
        if self.score is None:
            return self.verdict
        return "score {value:.3f} ({low:.3f} to {high:.3f}), ".format(**self.score) + self.verdict

    @property
    def broken(self) -> list[str]:
        """Names of the broken constraints."""
        return [name for name, value in self.constraints.items() if value > 0]


def _whole(result: CheckpointResult) -> CheckpointResult:
    """Refuse a result that lacks what every scored checkpoint has."""
    if result.score and not {"fidelity", "likeness", "editability", "bleed_class"} <= result.terms.keys():
        raise ValueError("a scored checkpoint lacks a term")
    by_weight = [*result.by_weight.values(), *result.second.values(), *result.sweep.values()]
    if not all({"fidelity", "bleed_class"} <= terms.keys() for terms in by_weight):
        raise ValueError("a scored checkpoint lacks a term at a weight")
    if result.by_weight and "bleed_class" not in result.constraints:
        raise ValueError("a scored checkpoint lacks its limit of bleed")
    return result


WholeResult = Annotated[CheckpointResult, AfterValidator(_whole)]  # as it is read from a file or a storage


class TrialResults:
    """The scored checkpoints of one trial in the order of training, and the folder that they lie in."""

    path: Path
    results: list[CheckpointResult]

    def __init__(self, path: Path, results: list[CheckpointResult]) -> None:
        self.path, self.results = path, results

    @property
    def samples(self) -> Path:
        """The folder of the renders that were kept for the report."""
        return self.path / "samples"

    def best_result(self) -> CheckpointResult | None:
        """The checkpoint of the highest objective, the earliest of equals; None before the first one."""
        return max(self.results, key=lambda result: result.objective, default=None)

    def best_objective(self) -> float:
        """The highest objective; that of a diverged trial before the first checkpoint."""
        return max((result.objective for result in self.results), default=DIVERGED)

    def scored_step(self) -> int:
        """Images shown up to the last scored checkpoint; 0 before the first one."""
        return self.results[-1].step if self.results else 0

    def overcooked_step(self) -> int | None:
        """Images shown up to the first checkpoint from which on every checkpoint is overcooked."""
        step = None
        for result in reversed(self.results):
            if not overcooked(result):
                break
            step = result.step
        return step


def from_losses(checkpoint: Checkpoint, base_losses: Sequence[float]) -> CheckpointResult:
    """The result of a checkpoint before it is rendered; `base_losses` are the base model's validation losses."""
    return CheckpointResult(
        step=checkpoint.step,
        train_loss=checkpoint.train_loss,
        val_loss=checkpoint.val_loss,
        val_ratios=[round(a / b, 4) for a, b in zip(checkpoint.val_losses, base_losses, strict=True)],
    )


def unmeasured_result(blank: CheckpointResult, reason: str) -> CheckpointResult:
    """The result of a checkpoint that cannot be rendered: its objective is its validation loss, lower being better."""
    verdict = f"unmeasured: validation loss {blank.val_ratio:.0%} of the base model's"
    return replace(blank, objective=-blank.val_ratio, verdict=verdict, unmeasurable={"score": reason})


def unpromising_result(
    blank: CheckpointResult, earlier_results: Sequence[CheckpointResult], min_fidelity: float
) -> CheckpointResult:
    """The result of a checkpoint whose validation loss shows that it has learnt nothing yet, or has collapsed.

    Args:
        blank: the result from its losses.
        own: the earlier results of its trial. A loss above an earlier one, or above the base model's, means that the
            training has collapsed and that more images would not help.
        min_fidelity: the limit that it is assumed to miss entirely.
    """
    loss, earlier = blank.val_ratio, [result.val_ratio for result in earlier_results]
    gone = loss > 1 or any(past > 1 or loss > RISEN * past for past in earlier)
    fault, so = ("collapsed", "") if gone else ("undercooked", "still ")
    after = f" after {min(earlier):.0%}" if gone and earlier and min(earlier) < loss else ""
    verdict = f"{fault}: validation loss {so}{loss:.0%} of the base model's{after}, not rendered"
    return replace(blank, objective=-BELOW, constraints={fault: min_fidelity}, verdict=verdict)


def with_scorecard(before: CheckpointResult, card: Scorecard) -> CheckpointResult:
    """The same checkpoint with the scores of a scorecard."""
    return replace(
        before,
        objective=card.objective,
        score=card.score.as_dict(),
        weight=card.weight,
        terms={name: term.as_dict() for name, term in card.terms.items()},
        by_weight={w: {n: t.as_dict() for n, t in terms.items()} for w, terms in card.by_weight.items()},
        constraints=card.constraints,
        bleed_rate=card.bleed_rate,
        bleed_by_prompt=card.bleed_by_prompt,
        verdict=card.verdict,
        unmeasurable=card.unmeasurable,
        second={w: {n: t.as_dict() for n, t in terms.items()} for w, terms in card.second.items()},
    )


def load_results(folder: Path) -> list[CheckpointResult]:
    """Read the results of a trial's checkpoints, without their weights; an empty list before the first one.

    Raises:
        BrokenFile: the file was written by another version of autolora, or is broken.
    """
    return read_json(folder / "curve.json", list[WholeResult]) or []


def ties(one: CheckpointResult, other: CheckpointResult) -> bool:
    """Whether the intervals of two scores overlap, so that neither is known to be better."""
    if one.score is None or other.score is None:
        return False
    return one.score["low"] <= other.score["high"] and other.score["low"] <= one.score["high"]


def overcooked(result: CheckpointResult) -> bool:
    """Whether bleed is above its limit at the strongest weight."""
    return not result.diverged and bool(result.by_weight) and _bleed(result) > _bleed_limit(result)


def certainly_overcooked(result: CheckpointResult) -> bool:
    """Whether the whole interval of bleed is above its limit at the strongest weight."""
    return overcooked(result) and _bleed(result, "low") > _bleed_limit(result)


def _bleed(result: CheckpointResult, end: str = "value") -> float:
    return result.by_weight[max(result.by_weight, key=float)]["bleed_class"][end]


def _bleed_limit(result: CheckpointResult) -> float:
    """The limit of bleed, from the constraint, which is the highest upper bound minus the limit."""
    return max(terms["bleed_class"]["high"] for terms in result.by_weight.values()) - result.constraints["bleed_class"]
