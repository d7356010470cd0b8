"""Random draws of a training run with a torch generator: the order of images, and the order and dropout of tags."""

from __future__ import annotations

import torch

from autolora.data.captions import join_tags, split_tags


def epoch_order(images: int, shown: int, generator: torch.Generator) -> list[int]:
    """The indices of the images that a concept shows in one epoch: shuffled passes over all images, the last cut short.

    No image is shown more than once more often than another.

    Args:
        images: number of images of the concept.
        shown: how many images the epoch shows.
        generator: source of the random order.

    Raises:
        ValueError: `images` is below 1 or `shown` is negative.
    """
    if images < 1 or shown < 0:
        raise ValueError(f"expected at least one image and a non-negative count, got {images} and {shown}")
    order: list[int] = []
    while len(order) < shown:
        order += torch.randperm(images, generator=generator).tolist()
    return order[:shown]


def shuffle_tags(caption: str, keep: int, generator: torch.Generator) -> str:
    """The caption with its tags in random order; the first `keep` tags stay in place."""
    tags = split_tags(caption)
    fixed, rest = tags[:keep], tags[keep:]
    order: list[int] = torch.randperm(len(rest), generator=generator).tolist()
    return join_tags([*fixed, *(rest[i] for i in order)])


def drop_tags(caption: str, keep: int, share: float, generator: torch.Generator) -> str:
    """The caption without a random share of its tags; the first `keep` tags always stay.

    Each tag is dropped independently with probability `share`.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share of tags to drop must be between 0 and 1, got {share}")
    tags = split_tags(caption)
    fixed, rest = tags[:keep], tags[keep:]
    draws: list[float] = torch.rand(len(rest), generator=generator, dtype=torch.float64).tolist()  # in [0, 1)
    return join_tags([*fixed, *(tag for tag, draw in zip(rest, draws, strict=True) if draw >= share)])
