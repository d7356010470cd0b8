"""The probe suite: which prompts, at which seeds, say whether a checkpoint is any good."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset, strip_triggers
from autolora.scoring.settings import ScoringSettings

SEARCH_GROUPS = ("trigger", "novel", "class_only")  # what every checkpoint of a study is asked: all that has a limit
DECIDING_GROUPS = (*SEARCH_GROUPS, "style", "people")  # what finalists are asked: all that counts in the score
ALL_GROUPS = (*DECIDING_GROUPS, "class_context", "visible", "neighbour", "unrelated")
CLASS_GROUPS = ("class_only", "class_context", "visible", "neighbour", "unrelated")  # without any trigger


@dataclass(frozen=True)
class EvalPrompt:
    """One prompt of one group, rendered at each seed; `base_prompt` is its paired prompt for the base model."""

    group: str  # one of ALL_GROUPS
    concept: str  # the sub-concept asked for; empty for the character as such
    prompt: str
    base_prompt: str
    seeds: tuple[int, ...]


def in_groups(probes: Iterable[EvalPrompt], *groups: str, concept: str | None = None) -> list[EvalPrompt]:
    """The probes of some groups, and of one concept where it is given."""
    return [p for p in probes if p.group in groups and concept in (None, p.concept)]


def render_count(probes: Iterable[EvalPrompt]) -> int:
    """Renders that some probes take at one weight."""
    return sum(len(probe.seeds) for probe in probes)


def trigger_words(dataset: Dataset) -> list[str]:
    """The words of triggers that are made of several, such as `mona` and `taco` of `Mona_Taco`."""
    return _parts(dataset, lambda parts: parts if len(parts) > 1 else [])


def neighbours(dataset: Dataset) -> list[str]:
    """What a prompt may hold by chance of the triggers: a word of several, else the first half of the only one."""
    return _parts(dataset, lambda parts: parts if len(parts) > 1 else [p[: (len(p) + 1) // 2] for p in parts])


def _parts(dataset: Dataset, choose: Callable[[list[str]], list[str]]) -> list[str]:
    """What is chosen of each trigger's words, none of it a trigger or the class word itself."""
    triggers = dict.fromkeys([dataset.trigger, *(concept.trigger for concept in dataset.concepts)])
    chosen = [word for trigger in triggers for word in choose(re.findall(r"[^\W_]+", trigger))]
    return [word for word in dict.fromkeys(chosen) if word not in triggers and word != dataset.class_word]


def build_eval_prompts(
    dataset: Dataset, settings: ScoringSettings, groups: Collection[str] = SEARCH_GROUPS
) -> tuple[EvalPrompt, ...]:
    """The probes of the groups asked for, each with seeds of its own.

    No seed is used by two prompts, so that prompts are independent draws for the bootstrap.
    """
    probes, seed = [], settings.seed
    for group, name, prompt in _prompts(dataset, settings):
        if group in groups:
            count = settings.seeds_per_class_prompt if group in CLASS_GROUPS else settings.seeds_per_trigger_prompt
            probes.append(
                EvalPrompt(group, name, prompt, strip_triggers(prompt, dataset), tuple(range(seed, seed + count)))
            )
            seed += count
    return tuple(probes)


def _prompts(dataset: Dataset, settings: ScoringSettings) -> Iterator[tuple[str, str, str]]:
    """Group, concept and prompt of the whole suite; those that name a concept make up the outfit matrix."""
    for concept in dataset.concepts:
        words = dict.fromkeys([dataset.class_word, dataset.trigger, concept.trigger])
        yield "trigger", concept.name, join_tags(words)
        for context in settings.trigger_prompts:
            yield "trigger", concept.name, join_tags([*words, *split_tags(context)])
        validation = [picture for picture in dataset.validation if picture.concept == concept.name]
        for picture in validation[:2]:
            yield "trigger", concept.name, picture.caption
            yield "visible", concept.name, strip_triggers(picture.caption, dataset)
    asked = [dataset.class_word, dataset.trigger]
    for group, contexts in (
        ("novel", settings.outfit_prompts),
        ("style", settings.style_prompts),
        ("people", settings.person_prompts),
    ):
        for context in contexts:
            yield group, "", join_tags([*asked, *split_tags(context)])
    for prompt in (dataset.class_word,) * settings.num_class_renders + settings.bleed_prompts:
        yield "class_only", "", prompt
    for context in settings.class_prompts:
        yield "class_context", "", join_tags([dataset.class_word, *split_tags(context)])
    for word in neighbours(dataset):
        yield "neighbour", "", join_tags([dataset.class_word, word])
    for prompt in settings.unrelated_prompts:
        yield "unrelated", "", prompt
