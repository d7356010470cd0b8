"""The evaluation prompts: which prompts are rendered, at which seeds, to score a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset, strip_triggers
from autolora.scoring.settings import ScoringSettings

# Groups of prompts. With triggers: "trigger" (the character, alone and in other scenes), "novel" (in other outfits),
# "style" and "people" (beside somebody). Without: "class_only" (the class word), "class_context" (with other tags),
# "visible" (captions of validation images), "neighbour" (words similar to the trigger), "unrelated".
SEARCH_GROUPS = ("trigger", "novel", "class_only")  # for every checkpoint of the search: all that has a limit
DECIDING_GROUPS = (*SEARCH_GROUPS, "style", "people")  # for finalists: all that enters the score
ALL_GROUPS = (*DECIDING_GROUPS, "class_context", "visible", "neighbour", "unrelated")
CLASS_GROUPS = ("class_only", "class_context", "visible", "neighbour", "unrelated")  # without any trigger


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt of one group, which is rendered at each of its seeds."""

    group: str  # one of ALL_GROUPS
    concept: str  # the sub-concept; empty for the character as a whole
    prompt: str
    base_prompt: str  # the prompt without triggers, for the base model
    seeds: tuple[int, ...]


def in_groups(prompts: Iterable[EvalPrompt], *groups: str, concept: str | None = None) -> list[EvalPrompt]:
    """Return the prompts of some groups, and of one concept if it is given."""
    return [p for p in prompts if p.group in groups and concept in (None, p.concept)]


def render_count(prompts: Iterable[EvalPrompt]) -> int:
    """Return the number of renders of some prompts at one weight."""
    return sum(len(prompt.seeds) for prompt in prompts)


def trigger_words(dataset: Dataset) -> list[str]:
    """Return the words of triggers with several words, such as `mona` and `taco` of `Mona_Taco`."""
    return _words_of_triggers(dataset, lambda words: words if len(words) > 1 else [])


def neighbours(dataset: Dataset) -> list[str]:
    """Return words similar to a trigger: each word of a trigger with several, else the first half of its only word."""
    return _words_of_triggers(
        dataset, lambda words: words if len(words) > 1 else [w[: (len(w) + 1) // 2] for w in words]
    )


def _words_of_triggers(dataset: Dataset, choose: Callable[[list[str]], list[str]]) -> list[str]:
    """Return what `choose` returns for each trigger's words, without triggers and the class word."""
    triggers = dict.fromkeys([dataset.trigger, *(concept.trigger for concept in dataset.concepts)])
    chosen = [word for trigger in triggers for word in choose(re.findall(r"[^\W_]+", trigger))]
    return [word for word in dict.fromkeys(chosen) if word not in triggers and word != dataset.class_word]


def build_eval_prompts(
    dataset: Dataset, settings: ScoringSettings, groups: Collection[str] = SEARCH_GROUPS
) -> tuple[EvalPrompt, ...]:
    """Build the prompts of some groups.

    No two prompts share a seed, so that they are independent for the bootstrap.
    """
    prompts, seed = [], settings.seed
    for group, concept, prompt in _all_prompts(dataset, settings):
        if group in groups:
            count = settings.seeds_per_class_prompt if group in CLASS_GROUPS else settings.seeds_per_trigger_prompt
            seeds = tuple(range(seed, seed + count))
            prompts.append(EvalPrompt(group, concept, prompt, strip_triggers(prompt, dataset), seeds))
            seed += count
    return tuple(prompts)


def _all_prompts(dataset: Dataset, settings: ScoringSettings) -> Iterator[tuple[str, str, str]]:
    """Yield group, concept and prompt of every evaluation prompt."""
    for concept in dataset.concepts:
        words = dict.fromkeys([dataset.class_word, dataset.trigger, concept.trigger])
        yield "trigger", concept.name, join_tags(words)
        for tags in settings.trigger_prompts:
            yield "trigger", concept.name, join_tags([*words, *split_tags(tags)])
        validation = [picture for picture in dataset.validation if picture.concept == concept.name]
        for picture in validation[:2]:
            yield "trigger", concept.name, picture.caption
            yield "visible", concept.name, strip_triggers(picture.caption, dataset)
    for group, tag_lists in (
        ("novel", settings.outfit_prompts),
        ("style", settings.style_prompts),
        ("people", settings.person_prompts),
    ):
        for tags in tag_lists:
            yield group, "", join_tags([dataset.class_word, dataset.trigger, *split_tags(tags)])
    for prompt in (dataset.class_word,) * settings.num_class_renders + settings.bleed_prompts:
        yield "class_only", "", prompt
    for tags in settings.class_prompts:
        yield "class_context", "", join_tags([dataset.class_word, *split_tags(tags)])
    for word in neighbours(dataset):
        yield "neighbour", "", join_tags([dataset.class_word, word])
    for prompt in settings.unrelated_prompts:
        yield "unrelated", "", prompt
