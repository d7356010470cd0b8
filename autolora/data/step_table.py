"""The step ledger: how often a recipe shows each concept; a step is one image shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autolora.data.captions import mentions
from autolora.data.concepts import Dataset

OVERLAP_RISK = 2.0  # from here on what concepts share overcooks before any of them is done
OVERFITS = "may overcook before the outfits are done"


@dataclass(frozen=True)
class StepTableRow:
    """How often one concept is shown; steps are images shown.

    `overlap`: how often its trigger is shown, by all concepts, for each step meant for it (1 = no overlap).
    """

    concept: str
    images: int
    repeats: float  # of each image, an epoch
    steps_per_epoch: int
    steps_total: int
    overlap: float

    @property
    def risk(self) -> str:
        """What the overlap may lead to, in words; empty where there is none."""
        return OVERFITS if self.overlap >= OVERLAP_RISK else ""


@dataclass(frozen=True)
class StepTable:
    """A row for each concept, then one for the main trigger, which every concept's captions share."""

    rows: tuple[StepTableRow, ...]
    epochs: int
    class_images: Mapping[str, int] = field(
        default_factory=dict
    )  # steps per epoch of what is shown against bleed, by kind

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
        """Images shown in an epoch, all concepts and what is shown beside them."""
        return sum(row.steps_per_epoch for row in self.concepts) + sum(self.class_images.values())

    @property
    def steps_total(self) -> int:
        """Images shown in all epochs."""
        return self.steps_per_epoch * self.epochs


def make_step_table(
    dataset: Dataset, images_by_concept: Sequence[int], epochs: int, beside: Mapping[str, int] | None = None
) -> StepTable:
    """Steps (images shown) of each concept and, in the last row, of the main trigger: the sum over concepts.

    A caption without a trigger does not train it, so pictures count by the share of captions that carry it.

    Args:
        dataset: with the captions it is trained with.
        images_by_concept: each concept's steps per epoch.
        epochs: how many there are.
        beside: steps per epoch of what is shown beside the concepts, by kind.
    """

    def shown(trigger: str) -> float:
        """Images an epoch whose caption carries the trigger."""
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
    steps, meant = shown(dataset.trigger), sum(images_by_concept) / len(images_by_concept)
    total, repeats = round(steps * epochs), steps / max(1, images)
    rows.append(StepTableRow(dataset.trigger, images, repeats, round(steps), total, steps / meant))
    return StepTable(tuple(rows), epochs, beside or {})
