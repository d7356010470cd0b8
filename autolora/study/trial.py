"""One trial: its curve of scored checkpoints, its best one, and when to stop it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autolora.adapters.base import State
from autolora.errors import StudyError
from autolora.files import atomic_path, write_atomic
from autolora.prepare.regularization import suggest_regularization
from autolora.scoring.scorecard import BELOW, Scorecard
from autolora.scoring.verdict import remedy
from autolora.train import checkpoint as checkpoints
from autolora.train.checkpoint import Checkpoint
from autolora.train.run import Run

RISEN = 1.05  # how far a validation loss must have risen to be told from noise
DIVERGED = -10.0  # a finite objective below any score, so that the sampler learns to stay away


@dataclass(frozen=True)
class Point:
    """One scored checkpoint on a trial's curve."""

    step: int
    train_loss: float
    val_loss: float
    val_ratios: list[float]  # by timestep bucket, low noise first, relative to the base model's
    objective: float = DIVERGED
    score: dict[str, float] | None = None  # None where nothing was rendered
    weight: float = 1.0
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    by_weight: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    constraints: dict[str, float] = field(default_factory=dict)
    capture: dict[str, float] = field(default_factory=dict)
    leaks: dict[str, float] = field(default_factory=dict)  # share with the character, by prompt without its trigger
    verdict: str = ""
    unmeasurable: dict[str, str] = field(default_factory=dict)  # why a term is missing
    second: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # by weight, by another encoder
    diverged: bool = False
    sweep: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # terms at more weights, by weight
    tags: list[str] = field(default_factory=list)  # of the character, as a tagger sees it
    tag_bleed: dict[str, dict[str, float]] = field(default_factory=dict)  # how much oftener without trigger, by weight
    averaged: list[int] = field(default_factory=list)  # steps of the checkpoints that it is the average of
    strength: float = 1.0  # what its change of the base model was multiplied by after training

    @property
    def val_ratio(self) -> float:
        """The validation loss relative to the base model's, over all buckets."""
        return sum(self.val_ratios) / len(self.val_ratios)

    @property
    def place(self) -> str:
        """Where on its trial's curve it lies, in words."""
        made = [f"average of {', '.join(map(str, self.averaged))}"] if self.averaged else []
        made += [f"times {self.strength:g}"] if self.strength != 1 else []
        return f"step {self.step}" + (f" ({', '.join(made)})" if made else "")

    @property
    def words(self) -> str:
        """The score, where there is one, and the verdict."""
        if self.score is None:
            return self.verdict
        return "score {value:.3f} ({low:.3f} to {high:.3f}), ".format(**self.score) + self.verdict

    @property
    def broken(self) -> list[str]:
        """Names of the broken constraints."""
        return [name for name, value in self.constraints.items() if value > 0]


def unrendered(checkpoint: Checkpoint, base_losses: Sequence[float]) -> Point:
    """What is known of a checkpoint without a render; `base_losses` are the base model's validation losses."""
    return Point(
        step=checkpoint.step,
        train_loss=checkpoint.train_loss,
        val_loss=checkpoint.val_loss,
        val_ratios=[round(a / b, 4) for a, b in zip(checkpoint.val_losses, base_losses, strict=True)],
    )


def unmeasured_point(blank: Point, reason: str) -> Point:
    """A checkpoint that only its validation loss can speak for: the lower, relative to the base model's, the better."""
    verdict = f"unmeasured: validation loss {blank.val_ratio:.0%} of the base model's"
    return replace(blank, objective=-blank.val_ratio, verdict=verdict, unmeasurable={"score": reason})


def unpromising_point(blank: Point, own: Sequence[Point], fidelity_limit: float) -> Point:
    """A checkpoint whose validation loss says that it shows nothing yet, or nothing any more.

    Args:
        blank: the checkpoint as its losses show it.
        own: the earlier points of its trial: one that was nearer to the pictures, or had left even the base model
            behind, has collapsed, and more steps would not help.
        fidelity_limit: how far it is held to lie from what is enough.
    """
    loss, earlier = blank.val_ratio, [p.val_ratio for p in own]
    gone = loss > 1 or any(past > 1 or loss > RISEN * past for past in earlier)
    fault, so = ("collapsed", "") if gone else ("undercooked", "still ")
    after = f" after {min(earlier):.0%}" if gone and earlier and min(earlier) < loss else ""
    verdict = f"{fault}: validation loss {so}{loss:.0%} of the base model's{after}, not rendered"
    return replace(blank, objective=-BELOW, constraints={fault: fidelity_limit}, verdict=verdict)


def judged(before: Point, card: Scorecard) -> Point:
    """The same checkpoint by another scorecard."""
    return replace(
        before,
        objective=card.objective,
        score=card.score.as_dict(),
        weight=card.weight,
        terms={name: term.as_dict() for name, term in card.terms.items()},
        by_weight={w: {n: t.as_dict() for n, t in terms.items()} for w, terms in card.by_weight.items()},
        constraints=card.constraints,
        capture=card.capture,
        leaks=card.leaks,
        verdict=card.verdict,
        unmeasurable=card.unmeasurable,
        second={w: {n: t.as_dict() for n, t in terms.items()} for w, terms in card.second.items()},
    )


@dataclass
class Record:
    """A trial's files: `curve.json`, `latest.pt` to continue from, `checkpoints/STEP.safetensors` to export from."""

    folder: Path
    run: Run
    curve: list[Point] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, run: Run) -> Record:
        """The record as it was left; the curve ends where the latest checkpoint stands."""
        record = cls(folder, run)
        latest = record.latest()
        if latest is not None:
            record.curve = [p for p in points_of(folder) if p.step <= latest.step]
        return record

    @property
    def samples(self) -> Path:
        """The folder of what some of its renders looked like."""
        return self.folder / "samples"

    def latest(self) -> Checkpoint | None:
        """The checkpoint to continue from."""
        path = self.folder / "latest.pt"
        return checkpoints.load(path, self.run) if path.is_file() else None

    def best(self) -> Point | None:
        """The best point so far; the earliest of equals."""
        return max(self.curve, key=lambda p: p.objective, default=None)

    def best_objective(self) -> float:
        """The best point's objective; that of a diverged trial before the first point."""
        return max((p.objective for p in self.curve), default=DIVERGED)

    def scored_step(self) -> int:
        """The step of the last scored checkpoint; 0 before the first."""
        return self.curve[-1].step if self.curve else 0

    def load(self, p: Point) -> State:
        """The adapter of a kept point.

        Raises:
            StudyError: its file is missing or broken.
        """
        path = self._file(p)
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise StudyError(
                f"{path} cannot be read ({error}); delete {self.folder} and run the same command"
            ) from error

    def add(self, checkpoint: Checkpoint, new: Point) -> None:
        """Keep a scored checkpoint; the curve is written first, so that no checkpoint lacks its score."""
        self.curve.append(new)
        write_atomic(self.folder / "curve.json", json.dumps([asdict(p) for p in self.curve], indent=1))
        with atomic_path(self._file(new)) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in checkpoint.state.items()}, temporary)
        checkpoints.save(checkpoint, self.folder / "latest.pt")
        best = self.best()
        assert best is not None
        kept = {self._file(p) for p in (*self._beside(best), new)}  # the new one may stand beside the next, better one
        for path in (self.folder / "checkpoints").glob("*.safetensors"):
            if path not in kept:
                path.unlink()

    def key(self, p: Point) -> str:
        """By which the studies that judge checkpoints know one of this trial's."""
        return f"{self.folder.name}@{p.step}"

    def around(self, p: Point) -> list[Point]:
        """A point and those beside it on the curve, of which each was rendered and is kept."""
        return [one for one in self._beside(p) if one.score is not None and self._file(one).is_file()]

    def _beside(self, p: Point) -> list[Point]:
        at = [one.step for one in self.curve].index(p.step)
        return self.curve[max(0, at - 1) : at + 2]

    def _file(self, p: Point) -> Path:
        return self.folder / "checkpoints" / f"{p.step}.safetensors"

    def overcooked_step(self) -> int | None:
        """The first step from which every later checkpoint is overcooked."""
        step = None
        for p in reversed(self.curve):
            if not overcooked(p):
                break
            step = p.step
        return step

    def hopelessly_overcooked(self, patience: int) -> bool:
        """Whether at the last `patience` checkpoints bleed is surely above its limit, and does not fall."""
        last = self.curve[-patience:]
        return len(last) >= patience and all(map(surely_overcooked, last)) and _bleed(last[-1]) >= _bleed(last[0])

    def summary(self, best: Point | None = None) -> dict[str, Any]:
        """The best point, or the one given for it, in the schema of `result.json`."""
        best = best or self.best()
        assert best is not None
        return {
            "recipe": self.run.name,
            "step": best.step,
            "averaged": best.averaged,
            "strength": best.strength,
            "weight": best.weight,
            "score": best.score,
            "terms": best.terms,
            "broken_constraints": best.broken,
            "verdict": best.verdict,
            "remedy": self.remedy(best),
            "unmeasurable": best.unmeasurable,
            "leaks": best.leaks,
        }

    def remedy(self, p: Point) -> str:
        """What may help against what is wrong with a point of this trial."""
        trained = self.run.train
        own = self.scored_step() / (1 + trained.preserve_share + trained.regularization_share)
        options = []
        if p.leaks:
            options.append(suggest_regularization(p.leaks, trained.regularization_share, round(own)).words)
        options.append(f"train.preserve_share={max(0.4, 2 * trained.preserve_share):g}")
        calm = [float(w) for w, terms in p.by_weight.items() if terms["bleed_class"]["high"] <= _bleed_limit(p)]
        before = [one.step for one in self.curve if one.step < (self.overcooked_step() or 0)]
        options += [f"use weight {max(calm):g}"] if calm else []
        options += [f"stop at step {max(before)}"] if before else []
        return remedy(p.constraints, options)


def points_of(folder: Path) -> list[Point]:
    """What a trial's folder says of its checkpoints, without their weights; nothing where it says nothing yet."""
    path = folder / "curve.json"
    return [Point(**p) for p in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def ties(one: Point, other: Point) -> bool:
    """Whether the intervals of two scores overlap: a tie, as far as can be told."""
    if one.score is None or other.score is None:
        return False
    return one.score["low"] <= other.score["high"] and other.score["low"] <= one.score["high"]


def overcooked(p: Point) -> bool:
    """Whether at the strongest judged weight bleed is above its limit."""
    return not p.diverged and bool(p.by_weight) and _bleed(p) > _bleed_limit(p)


def surely_overcooked(p: Point) -> bool:
    """Whether at the strongest judged weight all of bleed's interval is above the limit."""
    return overcooked(p) and _bleed(p, "low") > _bleed_limit(p)


def _bleed(p: Point, end: str = "value") -> float:
    return p.by_weight[max(p.by_weight, key=float)]["bleed_class"][end]


def _bleed_limit(p: Point) -> float:
    """The limit as the constraint holds it: the constraint is the highest upper bound minus the limit."""
    return max(terms["bleed_class"]["high"] for terms in p.by_weight.values()) - p.constraints["bleed_class"]
