"""A run: one fully fixed recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field

from autolora.adapters.lora import LoRA
from autolora.errors import ConfigError
from autolora.optim.optimizers import AdamW, Prodigy
from autolora.optim.schedules import Constant, Schedule


@dataclass(frozen=True)
class TrainSettings:
    """How long and on what a run trains; steps are images shown."""

    epochs: int = 8
    steps_per_concept: int = 1000  # per epoch and sub-concept
    steps_main: int = 0  # per epoch of the main concept at least, which all sub-concepts together show
    batch_size: int = 4
    checkpoints_per_epoch: int = 1
    max_norm: float | None = None
    min_snr_gamma: float | None = 5.0
    preserve_share: float = 0.0  # pictures shown for each of the dataset's on which the base's own answer is the target
    min_weight: float = 1.0  # LoRA weight that half of the pictures are trained at, the others at 1
    caption_dropout: float = 0.0  # share of the dataset's captions that are left empty
    preserve_dropout: float = 0.0  # the same of class pictures: keeps the empty caption the base model's own
    shuffle_tags: bool = True
    keep_tags: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        mistakes = [
            f"train.{name} must be at least 1, got {getattr(self, name)}"
            for name in ("epochs", "steps_per_concept", "batch_size", "checkpoints_per_epoch")
            if getattr(self, name) < 1
        ]
        if self.steps_main < 0:
            mistakes.append(f"train.steps_main must be 0 (none) or more, got {self.steps_main}")
        if self.max_norm is not None and self.max_norm <= 0:
            mistakes.append(f"train.max_norm must be above 0 or null, got {self.max_norm}")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            mistakes.append(f"train.min_snr_gamma must be above 0 or null, got {self.min_snr_gamma}")
        if not 0 <= self.preserve_share <= 4:
            mistakes.append(f"train.preserve_share must be from 0 (none) to 4, got {self.preserve_share}")
        if not 0 < self.min_weight <= 1:
            mistakes.append(f"train.min_weight must be above 0 and at most 1, got {self.min_weight}")
        mistakes += [
            f"train.{name} must be 0 or more and below 1, got {getattr(self, name)}"
            for name in ("caption_dropout", "preserve_dropout")
            if not 0 <= getattr(self, name) < 1
        ]
        if self.keep_tags < 0:
            mistakes.append(f"train.keep_tags must be 0 or more, got {self.keep_tags}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))


@dataclass(frozen=True)
class Run:
    """Everything that decides what a LoRA becomes, besides the pictures and the base model."""

    name: str
    adapter: LoRA = field(default_factory=LoRA)
    optimizer: AdamW | Prodigy = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Constant)
    train: TrainSettings = field(default_factory=TrainSettings)

    def fingerprint(self) -> str:
        """16 hex digits that change with anything in the run."""
        kinds = [type(self.optimizer).__name__, type(self.schedule).__name__]
        text = json.dumps([kinds, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def steps_of_each(self, concepts: int) -> int:
        """Images of each of so many sub-concepts shown in one epoch: few of them are shown oftener."""
        return max(self.train.steps_per_concept, math.ceil(self.train.steps_main / concepts))

    def steps_per_epoch(self, concepts: int) -> int:
        """Images shown in one epoch, those beside the concepts included."""
        return self.steps_of_each(concepts) * concepts + sum(self.steps_beside(concepts).values())

    def steps_beside(self, concepts: int) -> dict[str, int]:
        """Images shown in one epoch beside the concepts, to keep the base model as it is, by kind.

        Four of five are class pictures. The fifth is the dataset's own without its triggers: with class pictures alone
        the visible tags still call the character; with own pictures alone the trigger outgrows its guidance and burns.
        """
        shown = round(self.steps_of_each(concepts) * concepts * self.train.preserve_share)
        own = shown // 5
        return {"class pictures": shown - own, "without triggers": own}

    def optimizer_steps(self, concepts: int) -> int:
        """Optimizer steps of the whole run."""
        return self.train.epochs * math.ceil(self.steps_per_epoch(concepts) / self.train.batch_size)
