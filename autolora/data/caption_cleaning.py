"""Cleaning of captions: duplicate, superfluous, contradictory, rating, meta and quality tags are removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from autolora.data.captions import booru_key, is_sentence, join_tags, most_common_spellings, tag_key
from autolora.data.concepts import Concept, Dataset, edit_captions, trigger_keys
from autolora.data.sources import Picture
from autolora.data.vocabulary import exclusive_group, implied_by, kind_of, noun_of

UNWANTED_KINDS = ("rating", "meta", "quality")


@dataclass(frozen=True)
class Removal:
    """A tag that cleaning removes, the reason, and the number of places."""

    tag: str
    reason: str  # duplicate, superfluous, contradictory, rating, meta or quality
    count: int


def clean_captions(dataset: Dataset, keep_tags: int, validation: bool) -> Dataset:
    """The dataset with cleaned captions.

    Args:
        dataset: the dataset.
        keep_tags: the first tags of each caption that are never removed.
        validation: whether the captions of validation images are cleaned too.
    """
    fixed = fixed_keys(dataset)
    counts = {concept.name: _remaining_counts(concept, fixed, keep_tags) for concept in dataset.concepts}

    def clean(picture: Picture, concept: Concept) -> str:
        removed = _removed_tags(picture, fixed, keep_tags, counts[concept.name])
        return join_tags(t for i, t in enumerate(picture.tags) if i not in removed) if removed else picture.caption

    return edit_captions(dataset, clean, validation)


def clean_report(dataset: Dataset, keep_tags: int = 0) -> tuple[Removal, ...]:
    """What cleaning removes from the training captions, the most frequent first."""
    fixed = fixed_keys(dataset)
    removed: Counter[tuple[str, str]] = Counter()
    for concept in dataset.concepts:
        counts = _remaining_counts(concept, fixed, keep_tags)
        for picture in concept.pictures:
            reasons = _removed_tags(picture, fixed, keep_tags, counts)
            removed.update((booru_key(picture.tags[i]), reason) for i, reason in reasons.items())
    spelling = most_common_spellings(tag_lists(dataset.pictures))
    return tuple(Removal(spelling[key], reason, count) for (key, reason), count in removed.most_common())


def fixed_keys(dataset: Dataset) -> frozenset[str]:
    """The `tag_key` of the triggers and the class word, which no edit removes."""
    return trigger_keys(dataset) | {tag_key(dataset.class_word)}


def tag_lists(pictures: Iterable[Picture]) -> list[tuple[str, ...]]:
    """The tags of each caption that is a list of tags; sentences are left out."""
    return [picture.tags for picture in pictures if not is_sentence(picture.caption)]


def _remaining_counts(concept: Concept, fixed: frozenset[str], keep: int) -> Counter[str]:
    """How often each tag remains, by `booru_key`, before contradictions are resolved: then the frequent tag stays."""
    counts: Counter[str] = Counter()
    for picture in concept.pictures:
        removed = {} if is_sentence(picture.caption) else _needless_tags(picture.tags, fixed, keep)
        counts.update(booru_key(tag) for i, tag in enumerate(picture.tags) if i not in removed)
    return counts


def _removed_tags(picture: Picture, fixed: frozenset[str], keep: int, counts: Mapping[str, int]) -> dict[int, str]:
    """The indices of the tags that cleaning removes from a caption, with the reason; never all of its tags."""
    if is_sentence(picture.caption):
        return {}
    tags = picture.tags
    removed = dict(_needless_tags(tags, fixed, keep))
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


@lru_cache(maxsize=1 << 14)  # the trials of a study clean the same captions again
def _needless_tags(tags: tuple[str, ...], fixed: frozenset[str], keep: int) -> Mapping[int, str]:
    """The indices of unwanted, duplicate and superfluous tags, with the reason."""
    is_fixed = [tag_key(tag) in fixed for tag in tags]
    removed: dict[int, str] = {}
    seen: set[str] = set()
    for i, tag in enumerate(tags):
        if is_fixed[i]:
            if tag_key(tag) in seen and i >= keep:
                removed[i] = "duplicate"
            seen.add(tag_key(tag))
    seen = {booru_key(tag) for tag in seen}
    for i, tag in enumerate(tags):
        if i < keep or is_fixed[i]:
            seen.add(booru_key(tag))
        elif booru_key(tag) in seen:
            removed[i] = "duplicate"
        elif kind_of(tag) in UNWANTED_KINDS:
            removed[i] = kind_of(tag)
        else:
            seen.add(booru_key(tag))
    by_noun: dict[str, list[str]] = {}
    for i, tag in enumerate(tags):
        if i not in removed and not is_fixed[i]:
            by_noun.setdefault(noun_of(tag), []).append(tag)
    for i, tag in enumerate(tags):
        if i >= keep and i not in removed and not is_fixed[i] and implied_by(tag, by_noun[noun_of(tag)]):
            removed[i] = "superfluous"
    return removed
