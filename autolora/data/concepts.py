"""Concepts and the dataset they make up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from autolora.data.buckets import BucketSettings, assign_buckets, choose_buckets, is_enlarged, potential_buckets
from autolora.data.captions import replace_trigger
from autolora.data.sources import Picture, format_problems, read_source
from autolora.data.split import split_validation
from autolora.data.triggers import check_trigger, concepts_by_tag, find_class_word, find_trigger, own_trigger
from autolora.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class DatasetSettings:
    """Where the pictures are and what they teach; a null trigger or class word is found from the captions."""

    path: str = ""  # captioned pictures in any layout of `sources`
    trigger: str | None = None  # the word that calls the character
    class_word: str | None = None  # what the base model calls such a picture: 1girl, 1boy, ...
    concepts: tuple[str, ...] | None = None  # tags that tell the sub-concepts of one folder apart; none: found
    reg_data_dir: str | None = None  # a folder of other pictures of the class; none: the base model draws them
    validation_split: float = 0.15  # of each concept's pictures, kept from training for scoring
    min_validation_images: int = 3  # at least this many, where a concept has six pictures or more
    seed: int = 0  # which pictures are held out
    bucket_upscale: bool = True  # pictures smaller than their bucket are enlarged; else they are left out of training
    buckets: BucketSettings = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        wrong = []
        if not 0.0 < self.validation_split <= 0.5:
            wrong.append(f"dataset.validation_split={self.validation_split}: must be above 0 and at most 0.5")
        if self.min_validation_images < 1:
            wrong.append(f"dataset.min_validation_images={self.min_validation_images}: must be at least 1")
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
    validation: tuple[Picture, ...]
    regularization: tuple[Picture, ...] = ()  # the user's own pictures of the class
    notes: tuple[str, ...] = ()  # what a person should know of how it was read

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
    source = read_source(root, Path(settings.reg_data_dir).expanduser() if settings.reg_data_dir else None)
    pictures = source.pictures
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
        pictures = concepts_by_tag(pictures, settings.concepts, trigger, class_word)
    except DatasetError as error:
        problems.append(str(error))
    by_concept: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_concept.setdefault(picture.concept, []).append(picture)
    try:
        train, validation = split_validation(
            by_concept, settings.validation_split, settings.min_validation_images, settings.seed
        )
    except DatasetError as error:
        problems.append(str(error))
    if problems:
        raise DatasetError(format_problems(str(root), problems))
    concepts = []
    for name, members in by_concept.items():
        others = [picture for picture in pictures if picture.concept != name]
        concepts.append(Concept(name, own_trigger(members, others, trigger, class_word), train[name]))
    known = {picture.sha256 for picture in pictures}
    kept = {picture.sha256: picture for picture in source.regularization if picture.sha256 not in known}
    notes = [*source.notes, *_copies(len(source.regularization) - len(kept))]
    name = root.resolve().stem if root.is_file() else root.resolve().name
    return Dataset(name, root, trigger, class_word, tuple(concepts), validation, tuple(kept.values()), tuple(notes))


def _copies(count: int) -> list[str]:
    """A note on regularization pictures that are left out."""
    return [f"{count} regularization pictures are copies of others or of training pictures and left out"] * (count > 0)


def with_buckets(dataset: Dataset, settings: DatasetSettings, resolution: int) -> Dataset:
    """The dataset with the frame of every picture, of the few that fit all of them best.

    Args:
        dataset: as it was read.
        settings: how many frames, and whether pictures may be enlarged.
        resolution: of the base model, in pixels.

    Raises:
        DatasetError: without enlarging, nothing of a concept is left.
    """
    everything = [*dataset.pictures, *dataset.validation]
    potential = potential_buckets(resolution, settings.buckets)
    frames = choose_buckets([(p.width, p.height) for p in everything], potential, settings.buckets.count)
    concepts, notes = [], list(dataset.notes)
    for concept in dataset.concepts:
        framed = assign_buckets(concept.pictures, frames)
        kept = [p for p in framed if settings.bucket_upscale or not is_enlarged(p)]
        if not kept:
            raise DatasetError(f"{dataset.root}: all pictures of {concept.name} are smaller than what is trained on "
                               "and dataset.bucket_upscale is false: set it to true, or use larger pictures")  # fmt: skip
        if not settings.bucket_upscale:
            notes += [f"{p.path.name}: smaller than its bucket and left out" for p in framed if is_enlarged(p)]
        concepts.append(replace(concept, pictures=tuple(kept)))
    validation, others = (tuple(assign_buckets(p, frames)) for p in (dataset.validation, dataset.regularization))
    return replace(dataset, concepts=tuple(concepts), validation=validation, regularization=others, notes=tuple(notes))


def strip_triggers(caption: str, dataset: Dataset) -> str:
    """The caption without the character's and the sub-concepts' trigger words."""
    triggers = {dataset.trigger, *(concept.trigger for concept in dataset.concepts)}
    for trigger in sorted(triggers, key=len, reverse=True):
        caption = replace_trigger(caption, trigger, "")
    return caption


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
