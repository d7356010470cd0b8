"""Concepts, the dataset they make up, and the step ledger: how often a recipe shows each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from autolora.data.captions import has_tag, join_tags, split_tags
from autolora.data.sources import Picture, list_problems, read_folder
from autolora.data.split import split_held_out
from autolora.data.triggers import check_trigger, find_class_word, find_trigger, own_trigger
from autolora.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class DatasetSettings:
    """Where the pictures are and what they teach; a null trigger or class word is found from the captions."""

    path: str = ""  # a kohya-style or plain folder of captioned pictures
    trigger: str | None = None  # the word that calls the character
    class_word: str | None = None  # what the base model calls such a picture: 1girl, 1boy, ...
    held_out_share: float = 0.15  # of each concept's pictures, kept from training for scoring
    held_out_min: int = 3  # at least this many, where a concept has six pictures or more
    seed: int = 0  # which pictures are held out

    def __post_init__(self) -> None:
        wrong = []
        if not 0.0 < self.held_out_share <= 0.5:
            wrong.append(f"dataset.held_out_share={self.held_out_share}: must be above 0 and at most 0.5")
        if self.held_out_min < 1:
            wrong.append(f"dataset.held_out_min={self.held_out_min}: must be at least 1")
        for key, word in (("trigger", self.trigger), ("class_word", self.class_word)):
            if word is not None and (not word.strip() or "," in word):
                wrong.append(f"dataset.{key}={word!r}: must be one tag, or null to have it found")
        if wrong:
            raise ConfigError("; ".join(wrong))


@dataclass(frozen=True)
class Concept:
    """One outfit or form: its class tokens, its own trigger (else the main one) and its training pictures."""

    name: str
    trigger: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Dataset:
    """A character's training pictures by concept, and the pictures held out for scoring."""

    name: str
    root: Path
    trigger: str
    class_word: str
    concepts: tuple[Concept, ...]
    held_out: tuple[Picture, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every training picture."""
        return tuple(picture for concept in self.concepts for picture in concept.pictures)


def load_dataset(settings: DatasetSettings) -> Dataset:
    """Read a folder, find its concepts and triggers, and hold pictures out.

    Raises:
        DatasetError: the folder cannot be trained on as it is; all reasons at once.
    """
    if not settings.path.strip():
        raise DatasetError("no dataset given: add dataset.path=FOLDER with your captioned pictures")
    root = Path(settings.path).expanduser()
    pictures = read_folder(root)
    by_concept: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_concept.setdefault(picture.concept, []).append(picture)
    problems: list[str] = []
    class_word = trigger = ""
    try:
        class_word = settings.class_word or find_class_word(pictures)
    except DatasetError as error:
        problems.append(str(error))
    try:
        trigger = check_trigger(pictures, settings.trigger) if settings.trigger else find_trigger(pictures, class_word)
    except DatasetError as error:
        problems.append(str(error))
    try:
        train, held_out = split_held_out(by_concept, settings.held_out_share, settings.held_out_min, settings.seed)
    except DatasetError as error:
        problems.append(str(error))
    if problems:
        raise DatasetError(list_problems(str(root), problems))
    concepts = []
    for name, members in by_concept.items():
        others = [picture for picture in pictures if picture.concept != name]
        concepts.append(Concept(name, own_trigger(members, others, trigger, class_word), train[name]))
    return Dataset(root.resolve().name, root, trigger, class_word, tuple(concepts), held_out)


def strip_triggers(caption: str, dataset: Dataset) -> str:
    """The caption without the character's and the sub-concepts' trigger words."""
    triggers = {dataset.trigger, *(concept.trigger for concept in dataset.concepts)}
    return join_tags([tag for tag in split_tags(caption) if tag not in triggers])


def with_captions(dataset: Dataset, change: Callable[[str, int], str]) -> Dataset:
    """The dataset with other captions: `change` gets each training caption and its concept's number."""
    concepts = [
        replace(one, pictures=tuple(replace(p, caption=change(p.caption, number)) for p in one.pictures))
        for number, one in enumerate(dataset.concepts)
    ]
    return replace(dataset, concepts=tuple(concepts))


def without_triggers(dataset: Dataset) -> Dataset:
    """The dataset with no trigger in any training caption."""
    return with_captions(dataset, lambda caption, _: strip_triggers(caption, dataset))


def describe(dataset: Dataset) -> str:
    """A few lines for a person: triggers, class word, each concept's pictures, in training and held out."""
    tagged = sum(has_tag(picture.caption, dataset.trigger) for picture in dataset.pictures)
    head = [
        f"{dataset.name}: {len(dataset.pictures)} pictures to train on, {len(dataset.held_out)} held out",
        f"trigger: {dataset.trigger} (in {tagged} of {len(dataset.pictures)} captions)",
        f"class word: {dataset.class_word}",
        "",
    ]
    rows = [("concept", "trigger", "training", "held out", "sizes")]
    for concept in dataset.concepts:
        held_out = [picture for picture in dataset.held_out if picture.concept == concept.name]
        sizes = sorted({(p.width * p.height, f"{p.width}x{p.height}") for p in (*concept.pictures, *held_out)})
        ends = dict.fromkeys([sizes[0][1], sizes[-1][1]])
        rows.append((concept.name, concept.trigger, str(len(concept.pictures)), str(len(held_out)), " to ".join(ends)))
    return "\n".join([*head, *_table(rows, left=2)])


@dataclass(frozen=True)
class LedgerRow:
    """How often one concept is shown; steps are images shown.

    `overlap`: how often its trigger is shown, by all concepts, for each step meant for it (1 = no overlap).
    """

    concept: str
    images: int
    repeats: float  # of each image, an epoch
    steps_per_epoch: int
    steps_total: int
    overlap: float


@dataclass(frozen=True)
class Ledger:
    """A row for each concept, then one for the main trigger, which every concept's captions share."""

    rows: tuple[LedgerRow, ...]
    epochs: int
    beside: Mapping[str, int] = field(default_factory=dict)  # steps per epoch of what is shown against bleed, by kind

    @property
    def concepts(self) -> tuple[LedgerRow, ...]:
        """The rows of the concepts."""
        return self.rows[:-1]

    @property
    def character(self) -> LedgerRow:
        """The row of the main trigger."""
        return self.rows[-1]

    @property
    def steps_per_epoch(self) -> int:
        """Images shown in an epoch, all concepts and what is shown beside them."""
        return sum(row.steps_per_epoch for row in self.concepts) + sum(self.beside.values())

    @property
    def steps_total(self) -> int:
        """Images shown in all epochs."""
        return self.steps_per_epoch * self.epochs

    def text(self) -> str:
        """The ledger as a small table."""
        rows = [("", "images", "repeats", "steps/epoch", "steps", "overlap")]
        for row in self.rows:
            steps = (str(row.steps_per_epoch), str(row.steps_total))
            rows.append((row.concept, str(row.images), f"{row.repeats:.1f}", *steps, f"x{row.overlap:.3g}"))
        rows += [
            (kind, "", "", str(steps), str(steps * self.epochs), "") for kind, steps in self.beside.items() if steps
        ]
        return "\n".join(_table(rows, left=1))


def step_ledger(
    dataset: Dataset, steps_per_concept: int, epochs: int, beside: Mapping[str, int] | None = None
) -> Ledger:
    """Steps (images shown) of each concept and, in the last row, of the main trigger: the sum over concepts.

    A caption without a trigger does not train it, so pictures count by the share of captions that carry it.
    `beside`: steps per epoch of what is shown beside the concepts, by kind.
    """

    def shown(trigger: str) -> float:
        """Images an epoch whose caption carries the trigger."""
        shares = (sum(has_tag(p.caption, trigger) for p in c.pictures) / len(c.pictures) for c in dataset.concepts)
        return steps_per_concept * sum(shares)

    rows = [
        LedgerRow(
            concept=concept.name,
            images=len(concept.pictures),
            repeats=steps_per_concept / len(concept.pictures),
            steps_per_epoch=steps_per_concept,
            steps_total=steps_per_concept * epochs,
            overlap=shown(concept.trigger) / steps_per_concept,
        )
        for concept in dataset.concepts
    ]
    images = sum(has_tag(picture.caption, dataset.trigger) for picture in dataset.pictures)
    steps = shown(dataset.trigger)
    total = round(steps * epochs)
    repeats = steps / max(1, images)
    rows.append(LedgerRow(dataset.trigger, images, repeats, round(steps), total, steps / steps_per_concept))
    return Ledger(tuple(rows), epochs, beside or {})


def epoch_order(images: int, steps: int, generator: torch.Generator) -> list[int]:
    """Which of a concept's pictures each step of an epoch shows: whole shuffled passes, then a part of one.

    So no picture is shown more than once more often than another.

    Raises:
        ValueError: no images, or a negative number of steps.
    """
    if images < 1 or steps < 0:
        raise ValueError(f"need at least one image and no negative steps, got {images} and {steps}")
    order: list[int] = []
    while len(order) < steps:
        order += torch.randperm(images, generator=generator).tolist()
    return order[:steps]


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table, its first `left` columns aligned left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
