"""The probe suite: which prompts, at which seeds, say whether a checkpoint is any good."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset
from autolora.scoring.settings import ScoringSettings


@dataclass(frozen=True)
class Probe:
    """One prompt of one group, rendered at each seed; `base_prompt` is its paired prompt for the base model."""

    group: str  # trigger | novel | class_only
    concept: str  # the sub-concept asked for; empty for the character as such
    prompt: str
    base_prompt: str
    seeds: tuple[int, ...]


def strip_triggers(prompt: str, dataset: Dataset) -> str:
    """The prompt without the character's and the sub-concepts' trigger words."""
    triggers = {dataset.trigger, *(concept.trigger for concept in dataset.concepts)}
    return join_tags([tag for tag in split_tags(prompt) if tag not in triggers])


def build_probes(dataset: Dataset, settings: ScoringSettings) -> tuple[Probe, ...]:
    """Trigger, novel-context and class-only probes of a dataset, each with seeds of its own.

    No seed is used by two prompts, so that prompts are independent draws for the bootstrap.
    """
    prompts: list[tuple[str, str, str]] = []  # group, concept, prompt
    for concept in dataset.concepts:
        words = dict.fromkeys([dataset.class_word, dataset.trigger, concept.trigger])
        prompts.append(("trigger", concept.name, join_tags(words)))
        for context in settings.contexts:
            prompts.append(("trigger", concept.name, join_tags([*words, *split_tags(context)])))
        held_out = [picture for picture in dataset.held_out if picture.concept == concept.name]
        prompts += [("trigger", concept.name, picture.caption) for picture in held_out[:2]]
    for override in settings.overrides:
        prompts.append(("novel", "", join_tags([dataset.class_word, dataset.trigger, *split_tags(override)])))
    for context in ("",) * settings.class_alone + settings.class_contexts:
        prompts.append(("class_only", "", join_tags([dataset.class_word, *split_tags(context)])))
    prompts += [("class_only", "", prompt) for prompt in settings.extra_bleed]
    probes, seed = [], settings.first_seed
    for group, name, prompt in prompts:
        count = settings.class_seeds if group == "class_only" else settings.trigger_seeds
        seeds = tuple(range(seed, seed + count))
        seed += count
        probes.append(Probe(group, name, prompt, strip_triggers(prompt, dataset), seeds))
    return tuple(probes)
