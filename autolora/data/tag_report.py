"""Which tags the captions have, which tags the triggers should absorb, and how often each tag is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autolora.data.caption_cleaning import tag_lists
from autolora.data.caption_recipe import LEVELS, CaptionRecipe, apply_captions, tags_to_absorb
from autolora.data.captions import booru_key, count_tags, is_sentence, mentions, most_common_spellings, tag_key
from autolora.data.concepts import Concept, Dataset, trigger_keys
from autolora.data.step_table import OVERFITS, OVERLAP_RISK
from autolora.data.vocabulary import kind_of
from autolora.errors import ConfigError

ABSORBED_SHARE = 0.9  # share of the captions from which the model cannot tell a tag from the trigger
RISKS = {
    "bleed": "every caption has the class word, so it learns the character: add regularization images",
    OVERFITS: "the outfits share the main trigger: set captions.trigger_swap_rate, or show fewer images",
    "absorbed": "nearly every caption has the tag, so the trigger absorbs it, or it takes over a part of the trigger",
}


@dataclass(frozen=True)
class TagRow:
    """How many training captions have a tag."""

    tag: str
    kind: str  # as `kind_of`, or trigger, or class word
    count: int  # captions
    shares: Mapping[str, float]  # of the captions of each concept
    absorbed: tuple[str, ...]  # concepts whose captions all have the tag, so that their trigger absorbs it


@dataclass(frozen=True)
class TagSteps:
    """How often a recipe is expected to show a tag; a step is one image shown.

    `overlap` divides the steps by those of the concept that a trigger belongs to, or by the mean of the concepts whose
    captions have the tag.
    """

    tag: str
    kind: str
    steps_per_epoch: float
    steps_total: float
    overlap: float
    risk: str  # a key of RISKS, or empty


def tag_rows(dataset: Dataset) -> tuple[TagRow, ...]:
    """Every tag of the training captions, the most frequent first; in sentences only triggers and class word count."""
    counts = {concept.name: _count_captions(dataset, concept) for concept in dataset.concepts}
    sizes = {concept.name: len(concept.pictures) for concept in dataset.concepts}
    spelling = most_common_spellings(tag_lists(dataset.pictures))
    spelling |= {booru_key(word): word for word in _triggers_and_class_word(dataset)}
    rows = []
    for key, count in sum(counts.values(), Counter[str]()).most_common():
        shares = {name: of_concept[key] / sizes[name] for name, of_concept in counts.items()}
        kind = _kind(spelling[key], dataset)
        complete = tuple(name for name, of_concept in counts.items() if of_concept[key] == sizes[name])
        absorbed = () if kind in ("trigger", "class word") else complete
        rows.append(TagRow(spelling[key], kind, count, shares, absorbed))
    return tuple(rows)


def absorbed_by_level(
    dataset: Dataset, min_share: float = CaptionRecipe.absorb_min_share
) -> dict[str, dict[str, tuple[str, ...]]]:
    """For each level of `captions.absorb_tags`, the tags that each trigger would absorb after cleaning.

    Triggers that absorb nothing are left out.

    Args:
        dataset: as it was read.
        min_share: share of the captions with a trigger that must have a tag.
    """
    cleaned = apply_captions(CaptionRecipe(), dataset, seed=0)
    levels = {level: tags_to_absorb(cleaned, level, min_share) for level in LEVELS if LEVELS[level]}
    return {level: {trigger: tags for trigger, tags in absorbed.items() if tags} for level, absorbed in levels.items()}


def images_by_tag(dataset: Dataset, steps_by_concept: Mapping[str, int], epochs: int) -> tuple[TagSteps, ...]:
    """How often each tag is shown: the sum over concepts of their steps times the share of captions with the tag.

    Args:
        dataset: with the captions used in training.
        steps_by_concept: images shown per epoch, by the concept's name.
        epochs: number of epochs.

    Raises:
        ConfigError: the steps are not of the dataset's concepts, or a number is below 1.
    """
    names = [concept.name for concept in dataset.concepts]
    if set(steps_by_concept) != set(names) or min(steps_by_concept.values()) < 1 or epochs < 1:
        raise ConfigError(
            f"steps of {', '.join(names)} and epochs must each be at least 1, got {dict(steps_by_concept)} and {epochs}"
        )
    rows = []
    for row in tag_rows(dataset):
        # The count is multiplied before it is divided, so that whole multiples are exact.
        steps = sum(
            steps_by_concept[c.name] * round(row.shares[c.name] * len(c.pictures)) / len(c.pictures)
            for c in dataset.concepts
        )
        reference = [steps_by_concept[c.name] for c in dataset.concepts if tag_key(c.trigger) == tag_key(row.tag)]
        if tag_key(row.tag) == tag_key(dataset.trigger):
            reference = list(steps_by_concept.values())
        reference = reference or [steps_by_concept[name] for name, share in row.shares.items() if share]
        overlap = steps * len(reference) / sum(reference)
        rows.append(TagSteps(row.tag, row.kind, steps, steps * epochs, overlap, _risk(row, overlap, dataset)))
    return tuple(rows)


def _risk(row: TagRow, overlap: float, dataset: Dataset) -> str:
    """The key of RISKS for a tag, or empty."""
    share = row.count / len(dataset.pictures)
    if row.kind == "class word":
        return "bleed" if share == 1 else ""
    if row.kind == "trigger":
        is_main = tag_key(row.tag) == tag_key(dataset.trigger)
        return OVERFITS if is_main and overlap >= OVERLAP_RISK else ""
    return "absorbed" if share >= ABSORBED_SHARE else ""


def _count_captions(dataset: Dataset, concept: Concept) -> Counter[str]:
    """The number of a concept's captions with each tag, by `booru_key`."""
    sentences = [p.caption for p in concept.pictures if is_sentence(p.caption)]
    words = {booru_key(word): word for word in _triggers_and_class_word(dataset)}
    in_sentences = {key: count for key, word in words.items() if (count := sum(mentions(s, word) for s in sentences))}
    return count_tags(tag_lists(concept.pictures)) + Counter(in_sentences)


def _triggers_and_class_word(dataset: Dataset) -> tuple[str, ...]:
    return (dataset.class_word, *(concept.trigger for concept in dataset.concepts), dataset.trigger)


def _kind(tag: str, dataset: Dataset) -> str:
    if tag_key(tag) in trigger_keys(dataset):
        return "trigger"
    return "class word" if tag_key(tag) == tag_key(dataset.class_word) else kind_of(tag)
