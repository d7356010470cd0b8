"""Regularization pictures: other pictures of the class and of the trigger's words, as the base model draws them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset, strip_triggers
from autolora.data.sources import Picture
from autolora.sampling import BaseRenders
from autolora.scoring.probes import trigger_words

FIRST_SEED = 700_000  # beyond scoring.first_seed and every probe, so that bleed is not judged on what was trained


def class_prompts(dataset: Dataset, class_tags: Sequence[str], count: int) -> list[str]:
    """What `count` class pictures show: three of four the class word alone, the others with tags beside it.

    The tags are the model's `class_tags`, or the training captions' visible ones where it has none. Without any the
    prompts are no longer followed; with more of them likeness suffers, as the trigger has all of them against it.
    (On development character 9 all, 3/4, 1/4 alone: likeness .78, .79, .59, bleed .04, .06, .19 by the oracle,
    editability .49, .83, .91.) Where a trigger is made of several words, every second of the others is one of them
    alone, since `Mona_Taco` would drag in what `mona` and `taco` are to the base model.
    """
    captions = [strip_triggers(picture.caption, dataset) for picture in dataset.pictures]
    tagged = [join_tags([dataset.class_word, *split_tags(tags)]) for tags in class_tags] or captions
    words = trigger_words(dataset)
    prompts = []
    for i in range(count):
        turn = i // 4
        if i % 4 != 3:
            prompts.append(dataset.class_word)
        elif words and turn % 2:
            prompts.append(words[turn // 2 % len(words)])
        else:
            prompts.append(tagged[turn % len(tagged)])
    return prompts


def class_pictures(
    prompts: Sequence[str], renders: BaseRenders, first_seed: int, advance: Callable[[int], None] | None = None
) -> tuple[Picture, ...]:
    """The prompts as the base model draws them, as training pictures, each different; what is cached is not drawn."""
    shots = [(prompt, first_seed + FIRST_SEED + i) for i, prompt in enumerate(prompts)]
    renders.render(shots, advance)
    side = renders.model.resolution
    found = {}
    for prompt, seed in shots:
        path = renders.path(prompt, seed)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[digest] = Picture(path, prompt, "", side, side, digest, frame=(side, side))
    return tuple(found.values())
