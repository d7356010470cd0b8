"""Edits of captions before training: cleaning, dropping tags, absorbing tags, and swapping the trigger for tags."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autolora.data.caption_cleaning import clean_captions, fixed_keys, tag_lists
from autolora.data.captions import (
    booru_key,
    count_tags,
    is_sentence,
    join_tags,
    mentions,
    most_common_spellings,
    replace_trigger,
    split_tags,
    tag_key,
)
from autolora.data.concepts import Concept, Dataset, edit_captions, trigger_keys
from autolora.data.sources import Picture, format_problems
from autolora.data.vocabulary import OUTFIT, TRAITS, kind_of
from autolora.errors import ConfigError, DatasetError

LEVELS: dict[str, tuple[str, ...]] = {"none": (), "marks": ("marks",), "all": TRAITS}  # kinds the main trigger absorbs


@dataclass(frozen=True)
class CaptionRecipe:
    """How captions are edited before training; no file is changed, and validation captions are not edited."""

    clean: bool = True  # remove duplicate, superfluous, contradictory, rating, meta and quality tags
    drop_tags: tuple[str, ...] = ()  # tags to remove from every caption
    absorb_tags: str = "none"  # tags to remove so that the triggers absorb them: none, marks or all
    absorb_min_share: float = 0.8  # share of the captions with a trigger that must have a tag to absorb it
    trigger_swap_rate: float = 0.0  # share of a sub-concept's images whose main trigger is replaced by tags
    swap_tags: tuple[str, ...] = ()  # the tags that replace it; empty: found in the captions

    def __post_init__(self) -> None:
        wrong = []
        if self.absorb_tags not in LEVELS:
            wrong.append(f"captions.absorb_tags={self.absorb_tags}: must be one of {', '.join(LEVELS)}")
        if not 0 < self.absorb_min_share <= 1:
            wrong.append(f"captions.absorb_min_share={self.absorb_min_share}: must be above 0 and at most 1")
        if not 0 <= self.trigger_swap_rate <= 1:
            wrong.append(f"captions.trigger_swap_rate={self.trigger_swap_rate}: must be from 0 to 1")
        wrong += [
            f"captions.{key}: {tag!r} must be one tag"
            for key, tags in (("drop_tags", self.drop_tags), ("swap_tags", self.swap_tags))
            for tag in tags
            if len(split_tags(tag)) != 1
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))


def apply_captions(
    recipe: CaptionRecipe, dataset: Dataset, seed: int, keep_tags: int = 0, validation: bool = False
) -> Dataset:
    """The dataset with the captions for training; in sentences only a swapped trigger changes.

    Args:
        recipe: the edits, applied in the order of its fields.
        dataset: as it was read.
        seed: selects the images with a swapped trigger; a larger rate adds images to those of a smaller one.
        keep_tags: the first tags of each caption that are neither cleaned away nor absorbed.
        validation: whether validation captions are edited too, for a copy of the folder.

    Raises:
        DatasetError: the recipe cannot be applied to these captions.
    """
    edited = clean_captions(dataset, keep_tags, validation) if recipe.clean else dataset
    if recipe.drop_tags:
        edited = _drop_tags(edited, recipe.drop_tags, validation)
    absorbed = tags_to_absorb(edited, recipe.absorb_tags, recipe.absorb_min_share)
    swap_tags = _swap_tags(recipe, edited) if recipe.trigger_swap_rate else ()
    fixed = fixed_keys(dataset)

    def remove_absorbed(picture: Picture, _: Concept) -> str:
        triggers = [trigger for trigger in absorbed if mentions(picture.caption, trigger)]
        return _without(picture, {booru_key(t) for trigger in triggers for t in absorbed[trigger]}, fixed, keep_tags)

    return _swap_triggers(edit_captions(edited, remove_absorbed, validation), recipe.trigger_swap_rate, swap_tags, seed)


def caption_changes(before: Dataset, after: Dataset) -> list[tuple[Picture, str, str]]:
    """Each image whose caption differs between two versions of a dataset, with the old and the new caption."""
    pairs = zip((*before.pictures, *before.validation), (*after.pictures, *after.validation), strict=True)
    return [(old, old.caption, new.caption) for old, new in pairs if old.caption != new.caption]


def tags_to_absorb(dataset: Dataset, level: str, min_share: float) -> dict[str, tuple[str, ...]]:
    """The tags that each trigger absorbs: frequent tags in the captions that have the trigger.

    The main trigger absorbs traits of the kinds in `LEVELS[level]`. The own trigger of a sub-concept absorbs clothing
    and accessories that are not frequent in another concept too.

    Args:
        dataset: the dataset.
        level: one of `LEVELS`.
        min_share: share of the captions from which a tag is frequent.
    """
    if not LEVELS[level]:
        return {}
    fixed = fixed_keys(dataset)

    def frequent(pictures: Iterable[Picture], trigger: str, kinds: Sequence[str]) -> list[str]:
        tags = _frequent_tags([p for p in pictures if mentions(p.caption, trigger)], min_share)
        return [tag for tag in tags if kind_of(tag) in kinds and tag_key(tag) not in fixed]

    absorbed = {dataset.trigger: tuple(frequent(dataset.pictures, dataset.trigger, LEVELS[level]))}
    for concept in _with_own_trigger(dataset):
        others = [other for other in dataset.concepts if other.trigger != concept.trigger]
        elsewhere = {booru_key(tag) for other in others for tag in _frequent_tags(other.pictures, min_share)}
        tags = frequent(concept.pictures, concept.trigger, OUTFIT)
        absorbed[concept.trigger] = tuple(tag for tag in tags if booru_key(tag) not in elsewhere)
    return absorbed


def _with_own_trigger(dataset: Dataset) -> list[Concept]:
    return [concept for concept in dataset.concepts if tag_key(concept.trigger) != tag_key(dataset.trigger)]


def _frequent_tags(pictures: Sequence[Picture], min_share: float) -> list[str]:
    """The tags in at least a share of the captions, the most frequent first; sentences are not counted."""
    captions = tag_lists(pictures)
    fewest = min_share * len(captions) - 1e-9  # in floating point 0.55 * 100 is above 55
    spelling = most_common_spellings(captions)
    return [spelling[key] for key, count in count_tags(captions).most_common() if count >= fewest]


def _without(picture: Picture, removed: set[str], fixed: frozenset[str], keep: int) -> str:
    """The caption of an image without some tags; an unchanged caption keeps its spelling.

    Args:
        picture: the image.
        removed: the tags, by `booru_key`.
        fixed: tags that stay, by `tag_key`.
        keep: the first tags, which stay too.
    """
    tags = () if is_sentence(picture.caption) else picture.tags
    left = [t for i, t in enumerate(tags) if i < keep or tag_key(t) in fixed or booru_key(t) not in removed]
    return picture.caption if len(left) == len(tags) else join_tags(left)


def _drop_tags(dataset: Dataset, drop: Sequence[str], validation: bool) -> Dataset:
    """The dataset without the tags in `captions.drop_tags`."""
    triggers = [tag for tag in drop if tag_key(tag) in trigger_keys(dataset)]
    if triggers:
        raise DatasetError(
            f"captions.drop_tags={triggers[0]} is a trigger, which the captions need: remove it from the list"
        )
    removed = {booru_key(tag) for tag in drop}
    dropped = edit_captions(dataset, lambda picture, _: _without(picture, removed, frozenset(), 0), validation)
    empty = [f"{p.path.name} has no tag left" for p in (*dropped.pictures, *dropped.validation) if not p.caption]
    if empty:
        raise DatasetError(format_problems("captions.drop_tags leaves captions empty: drop fewer tags", empty))
    return dropped


def _swap_tags(recipe: CaptionRecipe, dataset: Dataset) -> tuple[str, ...]:
    """The tags that replace the main trigger.

    Raises:
        DatasetError: there are none, or a caption would be left without a trigger.
    """
    setting = f"captions.trigger_swap_rate={recipe.trigger_swap_rate}"
    if not _with_own_trigger(dataset):
        raise DatasetError(
            f"{setting}: no sub-concept has a trigger of its own, so captions would be left without a trigger: set it "
            "to 0, or give each outfit its own folder and its own word in the captions"
        )
    if tag_key(dataset.trigger) in map(tag_key, recipe.swap_tags):
        raise DatasetError(
            f"captions.swap_tags: {dataset.trigger} is the trigger that the tags replace: remove it from the list"
        )
    tags = recipe.swap_tags or tags_to_absorb(dataset, "all", recipe.absorb_min_share)[dataset.trigger]
    if not tags:
        raise DatasetError(
            f"{setting}: no tags in the captions describe {dataset.trigger}: list tags that do, for example "
            "captions.swap_tags=[blue hair, red eyes]"
        )
    return tags


def _swap_triggers(dataset: Dataset, rate: float, swap_tags: Sequence[str], seed: int) -> Dataset:
    """The dataset with the main trigger replaced by tags in a share of each sub-concept's images."""
    concepts = {concept.name: concept for concept in dataset.concepts}
    for concept in _with_own_trigger(dataset):
        triggers = (dataset.trigger, concept.trigger)
        with_both = [i for i, p in enumerate(concept.pictures) if all(mentions(p.caption, t) for t in triggers)]
        random.Random(f"decouple {seed} {concept.name}").shuffle(with_both)
        pictures = list(concept.pictures)
        for i in with_both[: int(rate * len(with_both) + 0.5)]:
            present = {booru_key(tag) for tag in pictures[i].tags}
            new = join_tags(tag for tag in swap_tags if booru_key(tag) not in present)
            pictures[i] = replace(pictures[i], caption=replace_trigger(pictures[i].caption, dataset.trigger, new))
        concepts[concept.name] = replace(concept, pictures=tuple(pictures))
    return replace(dataset, concepts=tuple(concepts.values()))
