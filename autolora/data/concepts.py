"""Datasets: their settings, their concepts, and how a dataset is read from a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from autolora.data.buckets import BucketSettings, assign_buckets, choose_buckets, is_enlarged, potential_buckets
from autolora.data.captions import replace_trigger, tag_key
from autolora.data.sources import Picture, format_problems, read_source
from autolora.data.split import split_validation
from autolora.data.triggers import check_trigger, concepts_by_tag, find_class_word, find_trigger, own_trigger
from autolora.errors import ConfigError, DatasetError
from autolora.files import composed, expand_user


@dataclass(frozen=True)
class DatasetSettings:
    """Where the images are and what they teach; a trigger or class word of None is found in the captions."""

    path: str = ""  # captioned images in any layout that `sources` reads
    trigger: str | None = None  # the word for the character
    class_word: str | None = None  # the base model's word for the kind of image: 1girl, 1boy, ...
    concepts: tuple[str, ...] | None = None  # tags of the sub-concepts in a single folder; None: found in the captions
    reg_data_dir: str | None = None  # folder of other images of the class; None: the base model renders them
    validation_split: float = 0.15  # share of each concept's images that is kept from training, for scoring
    min_validation_images: int = 3  # at least this many, for concepts of six images or more
    seed: int = 0  # selects the validation images
    bucket_upscale: bool = True  # enlarge images that are smaller than their bucket; False: leave them out of training
    buckets: BucketSettings = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        wrong = []
        if not 0.0 < self.validation_split <= 0.5:
            wrong.append(f"dataset.validation_split={self.validation_split}: must be above 0 and at most 0.5")
        if self.min_validation_images < 1:
            wrong.append(f"dataset.min_validation_images={self.min_validation_images}: must be at least 1")
        for key, word in (("trigger", self.trigger), ("class_word", self.class_word)):
            if word is not None and (not word.strip() or "," in word):
                wrong.append(f"dataset.{key}={word!r}: must be one tag, or null to find it in the captions")
        if wrong:
            raise ConfigError("; ".join(wrong))


@dataclass(frozen=True)
class Concept:
    """One outfit or form: its class tokens, its own trigger (else the main one) and its training images."""

    name: str
    trigger: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Dataset:
    """A character's training images by concept, and its validation images."""

    name: str
    root: Path
    trigger: str
    class_word: str
    concepts: tuple[Concept, ...]
    validation: tuple[Picture, ...]
    regularization: tuple[Picture, ...] = ()  # the user's own images of the class
    notes: tuple[str, ...] = ()  # messages for the user about how the dataset was read

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All training images."""
        return tuple(picture for concept in self.concepts for picture in concept.pictures)


def load_dataset(settings: DatasetSettings) -> Dataset:
    """Read a dataset, find its concepts and triggers, and choose its validation images.

    Raises:
        DatasetError: the dataset cannot be trained on; the message lists all reasons.
    """
    if not settings.path.strip():
        raise DatasetError("no dataset given: set dataset.path=FOLDER to a folder of captioned images")
    root = expand_user(settings.path)
    source = read_source(root, expand_user(settings.reg_data_dir) if settings.reg_data_dir else None)
    pictures = source.pictures
    problems: list[str] = []
    class_word = trigger = ""
    with _collected(problems):
        class_word = composed(settings.class_word) if settings.class_word else find_class_word(pictures)
    with _collected(problems):
        given = composed(settings.trigger) if settings.trigger else ""
        trigger = check_trigger(pictures, given) if given else find_trigger(pictures, class_word)
    with _collected(problems):
        pictures = concepts_by_tag(pictures, settings.concepts, trigger, class_word)
    by_concept: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_concept.setdefault(picture.concept, []).append(picture)
    with _collected(problems):
        train, validation = split_validation(
            by_concept, settings.validation_split, settings.min_validation_images, settings.seed
        )
    if problems:
        raise DatasetError(format_problems(str(root), problems))
    concepts = []
    for name, members in by_concept.items():
        others = [picture for picture in pictures if picture.concept != name]
        concepts.append(Concept(name, own_trigger(members, others, trigger, class_word), train[name]))
    hashes = {picture.sha256 for picture in pictures}
    regularization = {p.sha256: p for p in source.regularization if p.sha256 not in hashes}
    notes, copies = source.notes, len(source.regularization) - len(regularization)
    if copies:
        notes += (f"{copies} regularization images are left out: they are copies of others or of training images",)
    name = root.resolve().stem if root.is_file() else root.resolve().name
    regularization_images = tuple(regularization.values())
    return Dataset(name, root, trigger, class_word, tuple(concepts), validation, regularization_images, notes)


def is_in_dataset(dataset: Dataset, place: Path) -> bool:
    """Whether a place lies in a folder that the dataset is read from; what is hidden or below a `_` is never read."""
    place = place.resolve()
    folders = {dataset.root, *(picture.path.parent for picture in (*dataset.pictures, *dataset.validation))}
    below = [place.relative_to(f) for f in map(Path.resolve, folders) if f.is_dir() and place.is_relative_to(f)]
    return any(not any(part.startswith((".", "_")) for part in path.parts) for path in below)


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    """Append the message of a DatasetError to the problems instead of raising it."""
    try:
        yield
    except DatasetError as error:
        problems.append(str(error))


def with_buckets(dataset: Dataset, settings: DatasetSettings, resolution: int) -> Dataset:
    """The dataset with each image assigned to one of the few buckets that fit all images best.

    Args:
        dataset: as it was read.
        settings: the number of buckets, and whether images may be enlarged.
        resolution: of the base model, in pixels.

    Raises:
        DatasetError: images may not be enlarged and all images of a concept are too small.
    """
    everything = [*dataset.pictures, *dataset.validation]
    potential = potential_buckets(resolution, settings.buckets)
    buckets = choose_buckets([(p.width, p.height) for p in everything], potential, settings.buckets.count)
    concepts, notes = [], list(dataset.notes)
    for concept in dataset.concepts:
        assigned = assign_buckets(concept.pictures, buckets)
        usable = [p for p in assigned if settings.bucket_upscale or not is_enlarged(p)]
        if not usable:
            raise DatasetError(
                f"{dataset.root}: all images of {concept.name} are smaller than their bucket and "
                "dataset.bucket_upscale is false: set it to true, or use larger images"
            )
        if not settings.bucket_upscale:
            notes += [f"{p.path.name}: smaller than its bucket and left out" for p in assigned if is_enlarged(p)]
        concepts.append(replace(concept, pictures=tuple(usable)))
    return replace(
        dataset,
        concepts=tuple(concepts),
        validation=tuple(assign_buckets(dataset.validation, buckets)),
        regularization=tuple(assign_buckets(dataset.regularization, buckets)),
        notes=tuple(notes),
    )


def trigger_keys(dataset: Dataset) -> frozenset[str]:
    """The `tag_key` of every trigger of the dataset."""
    return frozenset(tag_key(trigger) for trigger in (dataset.trigger, *(c.trigger for c in dataset.concepts)))


def strip_triggers(caption: str, dataset: Dataset) -> str:
    """The caption without the main trigger and the triggers of the sub-concepts."""
    triggers = {dataset.trigger, *(concept.trigger for concept in dataset.concepts)}
    for trigger in sorted(triggers, key=len, reverse=True):
        caption = replace_trigger(caption, trigger, "")
    return caption


def edit_captions(dataset: Dataset, edit: Callable[[Picture, Concept], str], validation: bool = False) -> Dataset:
    """The dataset with edited captions.

    Args:
        dataset: the dataset.
        edit: returns the new caption of an image of a concept.
        validation: whether the captions of validation images are edited too.
    """
    concepts = tuple(
        replace(concept, pictures=tuple(replace(p, caption=edit(p, concept)) for p in concept.pictures))
        for concept in dataset.concepts
    )
    by_name = {concept.name: concept for concept in dataset.concepts}
    edited = tuple(replace(p, caption=edit(p, by_name[p.concept])) for p in dataset.validation if validation)
    return replace(dataset, concepts=concepts, validation=edited or dataset.validation)


def without_triggers(dataset: Dataset) -> Dataset:
    """The dataset with no trigger in any training caption."""
    return edit_captions(dataset, lambda picture, _: strip_triggers(picture.caption, dataset))
