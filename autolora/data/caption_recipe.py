"""Edits of captions as a recipe that is applied while they are read: clean, drop, prune, decouple."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from autolora.data.captions import (
    booru_key,
    count_tags,
    is_sentence,
    join_tags,
    mentions,
    replace_trigger,
    spell_tags,
    split_tags,
    tag_key,
)
from autolora.data.concepts import Concept, Dataset
from autolora.data.sources import Picture, format_problems
from autolora.data.vocabulary import OUTFIT, TRAITS, exclusive_group, implied_by, kind_of, noun_of
from autolora.errors import ConfigError, DatasetError

LEVELS: dict[str, tuple[str, ...]] = {"none": (), "marks": ("marks",), "all": TRAITS}  # what the main trigger absorbs
UNWANTED = ("rating", "meta", "quality")


@dataclass(frozen=True)
class CaptionRecipe:
    """How captions are edited before training; nothing is written, and the held-out ones stay as they are."""

    clean: bool = True  # duplicates, superfluous, contradictory, rating, meta and quality tags go
    drop_tags: tuple[str, ...] = ()  # tags that go everywhere
    absorb_tags: str = "none"  # which tags the triggers absorb: none, marks, all
    absorb_min_share: float = 0.8  # of the captions with a trigger must carry a tag for that
    trigger_swap_rate: float = (
        0.0  # of a sub-concept's pictures in which the main trigger gives way to descriptive tags
    )
    swap_tags: tuple[str, ...] = ()  # those tags; empty: found in the captions

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


@dataclass(frozen=True)
class Removal:
    """What cleaning takes out: a tag, why, and from how many places."""

    tag: str
    reason: str  # duplicate, superfluous, contradictory, rating, meta, quality
    count: int


def apply_captions(
    recipe: CaptionRecipe, dataset: Dataset, seed: int, keep_tags: int = 0, validation: bool = False
) -> Dataset:
    """The dataset with the captions it is trained with; sentences change only where a trigger gives way.

    Args:
        recipe: what to do, in the order of its fields.
        dataset: as it was read.
        seed: which pictures are decoupled; more of them for a larger share, never others.
        keep_tags: so many first tags of each caption are neither cleaned away nor pruned.
        held_out: whether the held-out captions are cleaned and pruned too, as for a copy of the folder.

    Raises:
        DatasetError: the recipe cannot be applied to these captions.
    """
    triggers = trigger_keys(dataset)
    fixed = triggers | {tag_key(dataset.class_word)}
    edited = _clean(dataset, fixed, keep_tags, validation) if recipe.clean else dataset
    if recipe.drop_tags:
        edited = _drop(edited, recipe.drop_tags, triggers, validation)
    absorbed = tags_to_absorb(edited, recipe.absorb_tags, recipe.absorb_min_share)
    descriptive = _descriptive(recipe, edited) if recipe.trigger_swap_rate else ()

    def prune(caption: str, _: Concept) -> str:
        gone = {booru_key(t) for trigger, tags in absorbed.items() if mentions(caption, trigger) for t in tags}
        return _without(caption, gone, fixed, keep_tags)

    return _decouple(_edit(edited, prune, validation), recipe.trigger_swap_rate, descriptive, seed)


def caption_changes(before: Dataset, after: Dataset) -> list[tuple[Picture, str, str]]:
    """Each picture whose caption a recipe changed, with the old and the new one."""
    pairs = zip((*before.pictures, *before.validation), (*after.pictures, *after.validation), strict=True)
    return [(old, old.caption, new.caption) for old, new in pairs if old.caption != new.caption]


def clean_report(dataset: Dataset, keep_tags: int = 0) -> tuple[Removal, ...]:
    """What cleaning takes out of the training captions, the most frequent first."""
    fixed = trigger_keys(dataset) | {tag_key(dataset.class_word)}
    removed: Counter[tuple[str, str]] = Counter()
    for concept in dataset.concepts:
        counts = _left_counts(concept, fixed, keep_tags)
        for picture in concept.pictures:
            tags = split_tags(picture.caption)
            reasons = _removed(picture.caption, fixed, keep_tags, counts)
            removed.update((booru_key(tags[i]), why) for i, why in reasons.items())
    spelling = spell_tags(picture.caption for picture in dataset.pictures)
    return tuple(Removal(spelling[key], why, count) for (key, why), count in removed.most_common())


def trigger_keys(dataset: Dataset) -> frozenset[str]:
    """Every trigger of the dataset, by `tag_key`."""
    return frozenset(tag_key(trigger) for trigger in (dataset.trigger, *(c.trigger for c in dataset.concepts)))


def tags_to_absorb(dataset: Dataset, level: str, share: float) -> dict[str, tuple[str, ...]]:
    """The tags that each trigger absorbs.

    The main trigger takes the traits of `LEVELS[level]`, a sub-concept's own trigger the clothes and accessories that
    no other concept has as often: tags in at least a share of the captions that carry the trigger.
    """
    if not LEVELS[level]:
        return {}
    fixed = trigger_keys(dataset) | {tag_key(dataset.class_word)}

    def frequent(pictures: Iterable[Picture], trigger: str, kinds: Sequence[str]) -> list[str]:
        tags = _frequent([p.caption for p in pictures if mentions(p.caption, trigger)], share)
        return [tag for tag in tags if kind_of(tag) in kinds and tag_key(tag) not in fixed]

    absorbed = {dataset.trigger: tuple(frequent(dataset.pictures, dataset.trigger, LEVELS[level]))}
    for concept in _with_own_trigger(dataset):
        others = [other for other in dataset.concepts if other.trigger != concept.trigger]
        taken = {booru_key(tag) for other in others for tag in _frequent([p.caption for p in other.pictures], share)}
        own = frequent(concept.pictures, concept.trigger, OUTFIT)
        absorbed[concept.trigger] = tuple(tag for tag in own if booru_key(tag) not in taken)
    return absorbed


def _with_own_trigger(dataset: Dataset) -> list[Concept]:
    return [concept for concept in dataset.concepts if tag_key(concept.trigger) != tag_key(dataset.trigger)]


def _frequent(captions: Sequence[str], share: float) -> list[str]:
    """Tags in at least a share of the captions (sentences aside), the most frequent first."""
    fewest = share * sum(not is_sentence(caption) for caption in captions) - 1e-9  # 0.55 * 100 is above 55
    spelling = spell_tags(captions)
    return [spelling[key] for key, count in count_tags(captions).most_common() if count >= fewest]


def _edit(dataset: Dataset, change: Callable[[str, Concept], str], validation: bool) -> Dataset:
    """The dataset with other captions; `change` gets each caption and its concept."""
    concepts = tuple(
        replace(one, pictures=tuple(replace(p, caption=change(p.caption, one)) for p in one.pictures))
        for one in dataset.concepts
    )
    named = {concept.name: concept for concept in dataset.concepts}
    others = tuple(replace(p, caption=change(p.caption, named[p.concept])) for p in dataset.validation if validation)
    return replace(dataset, concepts=concepts, validation=others or dataset.validation)


def _without(caption: str, gone: set[str], fixed: frozenset[str], keep: int) -> str:
    """The caption without some tags (by `booru_key`) but for fixed and kept ones; as it is written where none goes."""
    tags = () if is_sentence(caption) else split_tags(caption)
    left = [t for i, t in enumerate(tags) if i < keep or tag_key(t) in fixed or booru_key(t) not in gone]
    return caption if len(left) == len(tags) else join_tags(left)


def _drop(dataset: Dataset, drop: Sequence[str], triggers: frozenset[str], validation: bool) -> Dataset:
    """The dataset without the tags that the recipe names."""
    wanted = [tag for tag in drop if tag_key(tag) in triggers]
    if wanted:
        raise DatasetError(
            f"captions.drop_tags={wanted[0]} is a trigger, which the captions need: leave it out of the list"
        )
    gone = {booru_key(tag) for tag in drop}
    dropped = _edit(dataset, lambda caption, _: _without(caption, gone, frozenset(), 0), validation)
    empty = [f"{p.path.name} has no tag left" for p in (*dropped.pictures, *dropped.validation) if not p.caption]
    if empty:
        raise DatasetError(format_problems("captions.drop_tags takes too much: drop fewer tags or add others", empty))
    return dropped


def _clean(dataset: Dataset, fixed: frozenset[str], keep: int, validation: bool) -> Dataset:
    counts = {concept.name: _left_counts(concept, fixed, keep) for concept in dataset.concepts}

    def clean(caption: str, concept: Concept) -> str:
        removed = _removed(caption, fixed, keep, counts[concept.name])
        return join_tags(t for i, t in enumerate(split_tags(caption)) if i not in removed) if removed else caption

    return _edit(dataset, clean, validation)


def _left_counts(concept: Concept, fixed: frozenset[str], keep: int) -> Counter[str]:
    """How often cleaning would leave each tag, contradictions aside: the more frequent of two is believed."""
    counts: Counter[str] = Counter()
    for picture in concept.pictures:
        removed = _needless(picture.caption, fixed, keep)
        counts.update(booru_key(tag) for i, tag in enumerate(split_tags(picture.caption)) if i not in removed)
    return counts


def _removed(caption: str, fixed: frozenset[str], keep: int, counts: Mapping[str, int]) -> dict[int, str]:
    """The places of the tags that cleaning takes out of a caption, and why; never of all it has."""
    removed = dict(_needless(caption, fixed, keep))
    if is_sentence(caption):
        return removed
    tags = split_tags(caption)
    groups: dict[str, list[int]] = {}
    for i, tag in enumerate(tags):
        if i not in removed and (group := exclusive_group(tag)):
            groups.setdefault(group, []).append(i)
    for members in groups.values():
        if len(members) == 1 or exclusive_group(tags[members[0]], tags) is None:
            continue
        stays = [i for i in members if i < keep or tag_key(tags[i]) in fixed]
        stays = stays or [max(members, key=lambda i: counts.get(booru_key(tags[i]), 0))]
        removed |= dict.fromkeys((i for i in members if i not in stays), "contradictory")
    return removed if len(removed) < len(tags) else {}


@lru_cache(maxsize=1 << 14)  # every trial of a study asks again
def _needless(caption: str, fixed: frozenset[str], keep: int) -> Mapping[int, str]:
    """The places of unwanted, double and superfluous tags, and why they go; nothing of a sentence goes."""
    tags = () if is_sentence(caption) else split_tags(caption)
    words = [tag_key(tag) in fixed for tag in tags]
    removed: dict[int, str] = {}
    seen: set[str] = set()
    for i, tag in enumerate(tags):
        if words[i]:
            if tag_key(tag) in seen and i >= keep:
                removed[i] = "duplicate"
            seen.add(tag_key(tag))
    seen = {booru_key(tag) for tag in seen}
    for i, tag in enumerate(tags):
        if i < keep or words[i]:
            seen.add(booru_key(tag))
        elif booru_key(tag) in seen:
            removed[i] = "duplicate"
        elif kind_of(tag) in UNWANTED:
            removed[i] = kind_of(tag)
        else:
            seen.add(booru_key(tag))
    by_noun: dict[str, list[str]] = {}
    for i, tag in enumerate(tags):
        if i not in removed and not words[i]:
            by_noun.setdefault(noun_of(tag), []).append(tag)
    for i, tag in enumerate(tags):
        if i >= keep and i not in removed and not words[i] and implied_by(tag, by_noun[noun_of(tag)]):
            removed[i] = "superfluous"
    return removed


def _descriptive(recipe: CaptionRecipe, dataset: Dataset) -> tuple[str, ...]:
    """The tags that stand for the main trigger.

    Raises:
        DatasetError: there are none, or no caption would have a trigger left.
    """
    asked = f"captions.trigger_swap_rate={recipe.trigger_swap_rate}"
    if not _with_own_trigger(dataset):
        raise DatasetError(
            f"{asked}: no sub-concept has a trigger of its own, so that none would be left: set it to 0, or give each "
            "outfit a folder and a word of its own in its captions"
        )
    if tag_key(dataset.trigger) in map(tag_key, recipe.swap_tags):
        raise DatasetError(
            f"captions.swap_tags: {dataset.trigger} is the trigger that the tags stand for: leave it out"
        )
    found = recipe.swap_tags or tags_to_absorb(dataset, "all", recipe.absorb_min_share)[dataset.trigger]
    if not found:
        raise DatasetError(
            f"{asked}: the captions tell nothing of {dataset.trigger} that could stand for it: give its looks with "
            "captions.swap_tags=[blue hair, red eyes]"
        )
    return found


def _decouple(dataset: Dataset, share: float, descriptive: Sequence[str], seed: int) -> Dataset:
    """In a share of each sub-concept's pictures the descriptive tags stand where the main trigger stood."""
    concepts = {concept.name: concept for concept in dataset.concepts}
    for concept in _with_own_trigger(dataset):
        words = (dataset.trigger, concept.trigger)
        coupled = [i for i, p in enumerate(concept.pictures) if all(mentions(p.caption, word) for word in words)]
        random.Random(f"decouple {seed} {concept.name}").shuffle(coupled)
        pictures = list(concept.pictures)
        for i in coupled[: int(share * len(coupled) + 0.5)]:
            present = {booru_key(tag) for tag in split_tags(pictures[i].caption)}
            new = join_tags(tag for tag in descriptive if booru_key(tag) not in present)
            pictures[i] = replace(pictures[i], caption=replace_trigger(pictures[i].caption, dataset.trigger, new))
        concepts[concept.name] = replace(concept, pictures=tuple(pictures))
    return replace(dataset, concepts=tuple(concepts.values()))
