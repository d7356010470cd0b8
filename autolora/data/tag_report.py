"""Which tags the captions carry, what the triggers should absorb, and how often each tag trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autolora.data.caption_recipe import LEVELS, CaptionRecipe, apply_captions, tags_to_absorb, trigger_keys
from autolora.data.captions import booru_key, count_tags, is_sentence, mentions, spell_tags, tag_key
from autolora.data.concepts import Concept, Dataset
from autolora.data.step_table import OVERFITS, OVERLAP_RISK
from autolora.data.vocabulary import kind_of
from autolora.errors import ConfigError

ABSORBED_SHARE = 0.9  # of the captions: a tag this frequent cannot be told from the trigger
RISKS = {
    "capture": "every caption shows the class word, so it learns the character: add regularization images",
    OVERFITS: "the outfits share the main trigger: decouple, or fewer steps",
    "absorbed": "nearly every caption shows it, so it becomes a part of the trigger, or takes a part of it",
}


@dataclass(frozen=True)
class TagRow:
    """How often a tag is in the training captions."""

    tag: str
    kind: str  # as `kind_of`, or trigger, or class word
    count: int  # captions
    shares: Mapping[str, float]  # of each concept's captions
    absorbed: tuple[str, ...]  # concepts in all of whose captions it is, so that their trigger will absorb it


@dataclass(frozen=True)
class TagSteps:
    """How often a recipe is expected to show a tag; a step is one image shown."""

    tag: str
    kind: str
    steps_per_epoch: float
    steps_total: float
    overlap: float  # steps for each step of the concept meant: its own trigger's, else the mean of those that carry it
    risk: str  # one of RISKS, or empty


def tag_rows(dataset: Dataset) -> tuple[TagRow, ...]:
    """Every tag of the training captions, the most frequent first; of sentences only triggers and class word count."""
    counts = {concept.name: _counts(dataset, concept) for concept in dataset.concepts}
    sizes = {concept.name: len(concept.pictures) for concept in dataset.concepts}
    spelling = spell_tags(p.caption for p in dataset.pictures) | {booru_key(word): word for word in _words(dataset)}
    rows = []
    for key, count in sum(counts.values(), Counter[str]()).most_common():
        shares = {name: own[key] / sizes[name] for name, own in counts.items()}
        kind = _kind(spelling[key], dataset)
        fixed = kind in ("trigger", "class word")
        absorbed = () if fixed else tuple(name for name, own in counts.items() if own[key] == sizes[name])
        rows.append(TagRow(spelling[key], kind, count, shares, absorbed))
    return tuple(rows)


def absorbed_by_level(
    dataset: Dataset, share: float = CaptionRecipe.absorb_min_share
) -> dict[str, dict[str, tuple[str, ...]]]:
    """For each level of pruning the tags that each trigger would absorb, after cleaning; triggers without any left out.

    Args:
        dataset: as it was read.
        share: of the captions with a trigger must carry a tag.
    """
    cleaned = apply_captions(CaptionRecipe(), dataset, seed=0)
    levels = {level: tags_to_absorb(cleaned, level, share) for level in LEVELS if LEVELS[level]}
    return {level: {word: tags for word, tags in found.items() if tags} for level, found in levels.items()}


def images_by_tag(dataset: Dataset, steps_by_concept: Mapping[str, int], epochs: int) -> tuple[TagSteps, ...]:
    """How often each tag trains: the sum over concepts of their steps times the share of their captions with the tag.

    Args:
        dataset: with the captions it is trained with.
        steps_by_concept: images of each concept shown per epoch, by its name.
        epochs: how many there are.

    Raises:
        ConfigError: steps for other concepts than the dataset's, or fewer than one.
    """
    names = [concept.name for concept in dataset.concepts]
    if set(steps_by_concept) != set(names) or min(steps_by_concept.values()) < 1 or epochs < 1:
        raise ConfigError(
            f"steps of {', '.join(names)} and epochs must each be at least 1, got {dict(steps_by_concept)} and {epochs}"
        )
    found = []
    for row in tag_rows(dataset):
        # whole multiples come out exact: the count is multiplied first
        steps = sum(
            steps_by_concept[c.name] * round(row.shares[c.name] * len(c.pictures)) / len(c.pictures)
            for c in dataset.concepts
        )
        meant = [steps_by_concept[c.name] for c in dataset.concepts if tag_key(c.trigger) == tag_key(row.tag)]
        if tag_key(row.tag) == tag_key(dataset.trigger):
            meant = list(steps_by_concept.values())
        meant = meant or [steps_by_concept[name] for name, share in row.shares.items() if share]
        overlap = steps * len(meant) / sum(meant)
        found.append(TagSteps(row.tag, row.kind, steps, steps * epochs, overlap, _risk(row, overlap, dataset)))
    return tuple(found)


def _risk(row: TagRow, overlap: float, dataset: Dataset) -> str:
    """What may come of it, as RISKS words it."""
    share = row.count / len(dataset.pictures)
    if row.kind == "class word":
        return "capture" if share == 1 else ""
    if row.kind == "trigger":
        main = tag_key(row.tag) == tag_key(dataset.trigger)
        return OVERFITS if main and overlap >= OVERLAP_RISK else ""
    return "absorbed" if share >= ABSORBED_SHARE else ""


def _counts(dataset: Dataset, concept: Concept) -> Counter[str]:
    """In how many of a concept's captions each tag is, by `booru_key`."""
    captions = [picture.caption for picture in concept.pictures]
    told = [c for c in captions if is_sentence(c)]
    words = {booru_key(word): word for word in _words(dataset)}
    found = {key: count for key, word in words.items() if (count := sum(mentions(c, word) for c in told))}
    return count_tags(captions) + Counter(found)


def _words(dataset: Dataset) -> tuple[str, ...]:
    return (dataset.class_word, *(concept.trigger for concept in dataset.concepts), dataset.trigger)


def _kind(tag: str, dataset: Dataset) -> str:
    if tag_key(tag) in trigger_keys(dataset):
        return "trigger"
    return "class word" if tag_key(tag) == tag_key(dataset.class_word) else kind_of(tag)
