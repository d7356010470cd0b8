"""Captions as people write them: comma-separated booru tags, and the operations training and probes need."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

_ESCAPED = re.compile(r"\\([()\[\]{}])")
_BRACKET = re.compile(r"(?<!\\)([()])")


def split_tags(caption: str) -> tuple[str, ...]:
    r"""The tags of a caption, in order; runs of white space become one space, empty tags are dropped.

    Escapes such as `\(` stay as written, so that `join_tags(split_tags(c))` changes no tag.
    """
    return tuple(tag for part in caption.split(",") if (tag := " ".join(part.split())))


def join_tags(tags: Iterable[str]) -> str:
    """The caption that `split_tags` takes apart again."""
    return ", ".join(tags)


def escape_tag(tag: str) -> str:
    r"""A tag as prompt boxes want it, `mona (game)` -> `mona \(game\)`; never escaped twice."""
    return _BRACKET.sub(r"\\\1", tag)


def unescape_tag(tag: str) -> str:
    r"""A tag without the prompt escapes: `mona \(game\)` -> `mona (game)`."""
    return _ESCAPED.sub(r"\1", tag)


def tag_key(tag: str) -> str:
    """What the spellings of one tag share: escapes, case and white space do not count (nor for CLIP)."""
    return " ".join(unescape_tag(tag).casefold().split())


def has_tag(caption: str, tag: str) -> bool:
    """Whether a caption carries a tag, in any of its spellings."""
    return tag_key(tag) in {tag_key(t) for t in split_tags(caption)}


def shuffle_tags(caption: str, keep: int, generator: torch.Generator) -> str:
    """The caption with its tags in a random order, the first `keep` left where they are."""
    tags = split_tags(caption)
    fixed, rest = tags[:keep], tags[keep:]
    order: list[int] = torch.randperm(len(rest), generator=generator).tolist()
    return join_tags([*fixed, *(rest[i] for i in order)])


def drop_tags(caption: str, keep: int, share: float, generator: torch.Generator) -> str:
    """The caption without a random share of its tags, each dropped on its own; the first `keep` always stay.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share of tags to drop must be between 0 and 1, got {share}")
    tags = split_tags(caption)
    fixed, rest = tags[:keep], tags[keep:]
    draws: list[float] = torch.rand(len(rest), generator=generator, dtype=torch.float64).tolist()  # in [0, 1)
    return join_tags([*fixed, *(tag for tag, draw in zip(rest, draws, strict=True) if draw >= share)])


def replace_tag(caption: str, old: str, new: str) -> str:
    """The caption with every spelling of the tag `old` replaced by `new`, which may be several tags.

    Tags of `new` that the caption carries elsewhere already are left where they are: nothing comes in twice.
    """
    tags, key = split_tags(caption), tag_key(old)
    present = {tag_key(tag) for tag in tags} - {key}
    result: list[str] = []
    for tag in tags:
        if tag_key(tag) != key:
            result.append(tag)
            continue
        for added in split_tags(new):
            if tag_key(added) not in present:
                present.add(tag_key(added))
                result.append(added)
    return join_tags(result)


def strip_tag(caption: str, tag: str) -> str:
    """The caption without any spelling of `tag`."""
    return join_tags(t for t in split_tags(caption) if tag_key(t) != tag_key(tag))
