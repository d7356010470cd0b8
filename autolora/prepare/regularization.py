"""Regularization pictures: other pictures of the class and of the trigger's words, as the base model draws them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset, strip_triggers
from autolora.data.sources import Picture
from autolora.models.settings import ModelSettings
from autolora.sampling import BaseRenders
from autolora.scoring.probes import trigger_words

FIRST_SEED = 700_000  # beyond scoring.seed and every probe, so that bleed is not judged on what was trained
# On development character 5 (one training seed), without any: 93 to 97% bleed. Half a picture for each own one leaves 0
# to 7%, a quarter 5 to 23% with more likeness. 48 different ones (25 showings each) do as well as 192; of 12 (100
# showings each) 2 to 20% is left; 24 are enough where one is shown for each own one.
MOST_SHOWINGS, FEWEST = 25, 48
UNKNOWN_COUNT = ModelSettings.num_class_images  # where nothing is known of how it was trained


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
        found[digest] = Picture(path, prompt, "", side, side, digest, bucket=(side, side))
    return tuple(found.values())


@dataclass(frozen=True)
class Regularization:
    """How many different pictures, of which prompts, and how many of them shown for each of the dataset's own."""

    count: int
    share: float
    prompts: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What to do, with the settings that do it."""
        of = ", ".join(f"`{prompt}`" for prompt in self.prompts)
        return (
            f"{self.count} regularization images of {of} "
            f"(train.reg_ratio={self.share:g} model.num_class_images={self.count})"
        )


def suggest_regularization(
    leaks: Mapping[str, float], share: float = 0.0, own_steps: int | None = None
) -> Regularization:
    """How many regularization pictures, and of what, the measured bleed asks for.

    Args:
        leaks: by prompt without a trigger, the share of its renders that shows the character; the class word first.
        share: as it was trained, class pictures for each of the dataset's own.
        own_steps: pictures of the dataset shown in the whole bake; None where that is not known.
    """
    worst = max(leaks.values())
    share = min(share + (0.5 if worst >= 0.5 else 0.25), 4.0)
    count = UNKNOWN_COUNT if own_steps is None else max(FEWEST, math.ceil(share * own_steps / MOST_SHOWINGS))
    class_word, *others = leaks
    return Regularization(count, share, (class_word, *(p for p in others if leaks[p] and leaks[p] >= worst / 2)))
