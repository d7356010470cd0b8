"""Bleed as a tagger reads it: how much oftener the character's own tags are seen without its trigger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autolora.data.crops import load_cropped
from autolora.data.sources import Picture
from autolora.data.vocabulary import TRAITS, kind_of
from autolora.prepare.tagger import tag_pictures
from autolora.prepare.tagger_base import Tagger, TaggerSettings
from autolora.sampling import Images
from autolora.scoring.intervals import Array, Estimate, bootstrap_means, estimate

SHARE = 0.8  # of the training pictures must show a trait for it to be the character's


def character_tags(tagger: Tagger, pictures: Sequence[Picture]) -> tuple[str, ...]:
    """The traits (hair, eyes, skin, marks) that the tagger sees in most training pictures; those need frames."""
    found = tag_pictures(tagger, [load_cropped(picture) for picture in pictures], TaggerSettings())
    counts = Counter(one.tag for tagging in found for one in tagging.tags if kind_of(one.tag) in TRAITS)
    return tuple(tag for tag, count in counts.most_common() if count >= SHARE * len(pictures))


def tag_bleed(
    tagger: Tagger, tags: Sequence[str], base: Sequence[Images], shown: Sequence[Images], draws: int
) -> Estimate:
    """How much oftener a tag of the character is seen than on the base model's renders, from -1 to 1, mean over tags.

    Args:
        tagger: what sees tags.
        tags: the character's; at least one.
        base: the base model's renders of prompts without the trigger, as many of each prompt.
        shown: the LoRA's, of the same prompts and seeds.
        draws: of the bootstrap, over prompts first, then seeds.
    """
    excess = _seen(tagger, tags, shown) - _seen(tagger, tags, base)
    return estimate(float(excess.mean()), bootstrap_means(excess, draws, 0))


def _seen(tagger: Tagger, tags: Sequence[str], pictures: Sequence[NDArray[np.uint8]]) -> Array:
    """The share of the tags that is seen in each picture, (prompts, seeds)."""
    found = tag_pictures(tagger, np.concatenate(pictures), TaggerSettings())
    shares = [len(set(tags) & {one.tag for one in tagging.tags}) / len(tags) for tagging in found]
    return np.array(shares).reshape(len(pictures), -1)
