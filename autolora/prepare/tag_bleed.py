"""Bleed measured by a tagger: how much more often it finds the character's tags in renders without the trigger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autolora.data.crops import load_cropped
from autolora.data.sources import Picture
from autolora.data.vocabulary import TRAITS, kind_of
from autolora.prepare.tagger import tag_images
from autolora.prepare.tagger_base import Tagger, TaggerSettings
from autolora.sampling import Images
from autolora.scoring.intervals import Array, Estimate, bootstrap_means, estimate

MIN_SHARE = 0.8  # share of the training images that must show a trait for it to belong to the character


def character_tags(tagger: Tagger, pictures: Sequence[Picture]) -> tuple[str, ...]:
    """The traits (hair, eyes, skin, marks) that the tagger finds in most training images; the images need buckets."""
    taggings = tag_images(tagger, [load_cropped(picture) for picture in pictures], TaggerSettings())
    counts = Counter(score.tag for tagging in taggings for score in tagging.tags if kind_of(score.tag) in TRAITS)
    return tuple(tag for tag, count in counts.most_common() if count >= MIN_SHARE * len(pictures))


def tag_bleed(
    tagger: Tagger, tags: Sequence[str], base: Sequence[Images], renders: Sequence[Images], draws: int
) -> Estimate:
    """How much more often a tag of the character is found than in the base model's renders, from -1 to 1.

    The value is the mean over tags.

    Args:
        tagger: finds the tags.
        tags: the character's tags; at least one.
        base: for each prompt without a trigger, the base model's renders; the same number for every prompt.
        renders: the LoRA's renders of the same prompts and seeds.
        draws: number of bootstrap draws, over prompts first, then seeds.
    """
    excess = _found_shares(tagger, tags, renders) - _found_shares(tagger, tags, base)
    return estimate(float(excess.mean()), bootstrap_means(excess, draws, 0))


def _found_shares(tagger: Tagger, tags: Sequence[str], renders: Sequence[NDArray[np.uint8]]) -> Array:
    """The share of the tags that is found in each render, (prompts, seeds)."""
    taggings = tag_images(tagger, np.concatenate(renders), TaggerSettings())
    shares = [len(set(tags) & {score.tag for score in tagging.tags}) / len(tags) for tagging in taggings]
    return np.array(shares).reshape(len(renders), -1)
