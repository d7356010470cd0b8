"""The step table: how often a recipe shows each concept; a step is one image shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autolora.data.captions import mentions
from autolora.data.concepts import Dataset

OVERLAP_RISK = 2.0  # from this overlap on, the shared trigger is overfitted before the single outfits are learned
OVERFITS = "may overfit before the outfits are learned"


@dataclass(frozen=True)
class StepTableRow:
    """How often one concept is shown; steps are images shown.

    `overlap` is the number of times its trigger is shown, by all concepts, per step of the concept: 1 = no overlap.
    """

    concept: str
    images: int
    repeats: float  # per image and epoch
    steps_per_epoch: int
    steps_total: int
    overlap: float

    @property
    def risk(self) -> str:
        """The risk of a large overlap in words; empty for a small one."""
        return OVERFITS if self.overlap >= OVERLAP_RISK else ""


@dataclass(frozen=True)
class StepTable:
    """One row per concept, then a row for the main trigger, which the captions of all concepts share."""

    rows: tuple[StepTableRow, ...]
    epochs: int
    class_images: Mapping[str, int] = field(default_factory=dict)  # images against bleed shown per epoch, by kind

    @property
    def concepts(self) -> tuple[StepTableRow, ...]:
        """The rows of the concepts."""
        return self.rows[:-1]

    @property
    def character(self) -> StepTableRow:
        """The row of the main trigger."""
        return self.rows[-1]

    @property
    def steps_per_epoch(self) -> int:
        """Images shown per epoch, class images included."""
        return sum(row.steps_per_epoch for row in self.concepts) + sum(self.class_images.values())

    @property
    def steps_total(self) -> int:
        """Images shown in all epochs."""
        return self.steps_per_epoch * self.epochs


def make_step_table(
    dataset: Dataset, images_by_concept: Sequence[int], epochs: int, class_images: Mapping[str, int] | None = None
) -> StepTable:
    """The step table of a dataset; the last row, of the main trigger, sums over the concepts.

    A caption without a trigger does not train it, so images count by the share of captions with the trigger.

    Args:
        dataset: with the captions used in training.
        images_by_concept: images shown per epoch of each concept.
        epochs: number of epochs.
        class_images: images shown per epoch in addition to the concepts, by kind.
    """

    def shown(trigger: str) -> float:
        """Images shown per epoch whose caption has the trigger."""
        return sum(
            steps * sum(mentions(p.caption, trigger) for p in concept.pictures) / len(concept.pictures)
            for concept, steps in zip(dataset.concepts, images_by_concept, strict=True)
        )

    rows = [
        StepTableRow(
            concept=concept.name,
            images=len(concept.pictures),
            repeats=steps / len(concept.pictures),
            steps_per_epoch=steps,
            steps_total=steps * epochs,
            overlap=shown(concept.trigger) / steps,
        )
        for concept, steps in zip(dataset.concepts, images_by_concept, strict=True)
    ]
    images = sum(mentions(picture.caption, dataset.trigger) for picture in dataset.pictures)
    steps, mean_steps = shown(dataset.trigger), sum(images_by_concept) / len(images_by_concept)
    total, repeats = round(steps * epochs), steps / max(1, images)
    rows.append(StepTableRow(dataset.trigger, images, repeats, round(steps), total, steps / mean_steps))
    return StepTable(tuple(rows), epochs, class_images or {})
