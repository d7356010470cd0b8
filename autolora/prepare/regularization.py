"""Class images for regularization: images of the class and of the trigger's words, rendered by the base model."""

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
from autolora.scoring.eval_prompts import trigger_words

SEED_OFFSET = 700_000  # above the seeds of all evaluation prompts, so that bleed is not measured on training images
# Measured on development character 5 with one training seed. Without class images bleed is 93 to 97%. With half a
# class image per training image it is 0 to 7%, with a quarter 5 to 23% and more likeness. 48 different class images,
# each shown 25 times, are as good as 192. With 12, each shown 100 times, bleed is 2 to 20%. With one class image per
# training image, 24 different ones are enough.
MOST_REPEATS = 25  # times that one class image is shown
FEWEST_IMAGES = 48
DEFAULT_COUNT = ModelSettings.num_class_images  # if the number of images shown in training is not known


def class_prompts(dataset: Dataset, class_tags: Sequence[str], count: int) -> list[str]:
    """The prompts of `count` class images: 3 of 4 are the class word alone, the others add tags.

    The tags are the model's `class_tags`, or the training captions without triggers if the model has none. Without any
    tags the LoRA no longer follows prompts. With more of them likeness drops, because the class images then contradict
    the trigger in every tag. (Development character 9 with the class word alone in all, 3/4 and 1/4 of the prompts:
    likeness .78, .79, .59; bleed .04, .06, .19 by the attribute classifier; editability .49, .83, .91.) If the trigger
    is made of several words, half of the other prompts are one of these words alone, so that `Mona_Taco` does not bring
    in what `mona` and `taco` mean to the base model.

    Args:
        dataset: the dataset.
        class_tags: prompts of the model's settings that are added to the class word.
        count: number of prompts.
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
    """The base model's renders of the prompts as training images, without duplicates; cached renders are reused.

    Args:
        prompts: one per image; they become the captions.
        renders: the base model's renders.
        first_seed: of the scoring; class images use seeds far above it.
        advance: called with the number of finished renders.
    """
    requests = [(prompt, first_seed + SEED_OFFSET + i) for i, prompt in enumerate(prompts)]
    renders.render(requests, advance)
    side = renders.model.resolution
    pictures = {}
    for prompt, seed in requests:
        path = renders.path(prompt, seed)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        pictures[digest] = Picture(path, prompt, "", side, side, digest, bucket=(side, side))
    return tuple(pictures.values())


@dataclass(frozen=True)
class Regularization:
    """A suggestion: the number of class images, how many are shown per training image, and their prompts."""

    count: int
    reg_ratio: float
    prompts: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The suggestion in words, with the settings to change."""
        prompts = ", ".join(f"`{prompt}`" for prompt in self.prompts)
        return (
            f"{self.count} regularization images of {prompts} "
            f"(train.reg_ratio={self.reg_ratio:g} model.num_class_images={self.count})"
        )


def suggest_regularization(
    bleed_by_prompt: Mapping[str, float], reg_ratio: float = 0.0, images_shown: int | None = None
) -> Regularization:
    """The number and prompts of class images to add against a measured bleed.

    Args:
        bleed_by_prompt: for each prompt without a trigger, the share of its renders that show the character; the class
            word is first.
        reg_ratio: class images per training image in the measured training run.
        images_shown: training images shown in that run; None if unknown.
    """
    worst = max(bleed_by_prompt.values())
    ratio = min(reg_ratio + (0.5 if worst >= 0.5 else 0.25), 4.0)
    count = DEFAULT_COUNT
    if images_shown is not None:
        count = max(FEWEST_IMAGES, math.ceil(ratio * images_shown / MOST_REPEATS))
    class_word, *others = bleed_by_prompt
    bleeding = (p for p in others if bleed_by_prompt[p] and bleed_by_prompt[p] >= worst / 2)
    return Regularization(count, ratio, (class_word, *bleeding))
