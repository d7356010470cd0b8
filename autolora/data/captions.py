"""Captions as people write them, booru tags or sentences, and the operations training and probes need."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_ESCAPED = re.compile(r"\\([()\[\]{}])")
_BRACKET = re.compile(r"(?<!\\)([()])")
_ARTICLES = frozenset(("a", "an", "the"))
_SENTENCE_WORDS = 3  # tags are shorter on average: of danbooru's longest usual ones few have four words


@lru_cache(maxsize=1 << 14)  # captions are asked for their tags again and again
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


@lru_cache(maxsize=1 << 16)
def tag_key(tag: str) -> str:
    """What the spellings of one tag share: escapes, case and white space do not count (nor for CLIP)."""
    return " ".join(unescape_tag(tag).casefold().split())


@lru_cache(maxsize=1 << 16)
def booru_key(tag: str) -> str:
    """As `tag_key`, and an underscore is a space: what booru tag is meant, though CLIP reads other tokens."""
    return " ".join(tag_key(tag).replace("_", " ").split()) or tag_key(tag)


@lru_cache(maxsize=1 << 14)
def is_sentence(caption: str) -> bool:
    """Whether a caption is natural language: its parts between commas have more than three words on average.

    One whose first part has four words or more with an article is a sentence too, whatever follows it.
    """
    parts = [tag_key(part).split() for part in split_tags(caption)]
    if not parts:
        return False
    opens = len(parts[0]) > _SENTENCE_WORDS and not _ARTICLES.isdisjoint(parts[0])
    return opens or sum(map(len, parts)) > _SENTENCE_WORDS * len(parts)


def count_tags(captions: Iterable[str]) -> Counter[str]:
    """In how many captions each tag is, by `booru_key`, in order of first appearance; sentences have no tags."""
    tagged = (split_tags(caption) for caption in captions if not is_sentence(caption))
    return Counter(key for tags in tagged for key in dict.fromkeys(map(booru_key, tags)))


def spell_tags(captions: Iterable[str]) -> dict[str, str]:
    """The most frequent spelling of each tag, by `booru_key`."""
    counts = Counter(tag for caption in captions if not is_sentence(caption) for tag in split_tags(caption))
    return {booru_key(tag): tag for tag, _ in reversed(counts.most_common())}


def has_tag(caption: str, tag: str) -> bool:
    """Whether a caption carries a tag, in any of its spellings."""
    return tag_key(tag) in {tag_key(t) for t in split_tags(caption)}


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


def mentions(caption: str, trigger: str) -> bool:
    """Whether a caption calls a trigger: carries it as a tag, or, a sentence, as whole words."""
    return _words_of(trigger).search(caption) is not None if is_sentence(caption) else has_tag(caption, trigger)


def replace_trigger(caption: str, trigger: str, new: str) -> str:
    """As `replace_tag`, and in a sentence the first mention gives way to the tags of `new`, further ones to nothing."""
    if not is_sentence(caption):
        return replace_tag(caption, trigger, new)
    if not mentions(caption, trigger):
        return caption
    added = iter([join_tags(tag for tag in split_tags(new) if not mentions(caption, tag))])
    return re.sub(r"  +", " ", _words_of(trigger).sub(lambda _: next(added, ""), caption)).strip()


def _words_of(tag: str) -> re.Pattern[str]:
    """Finds a tag's spellings in a sentence."""
    words = r"\s+".join(re.escape(word) for word in unescape_tag(tag).split())
    return re.compile(r"(?<!\w)" + re.sub(r"(\\[()\[\]{}])", r"\\\\?\1", words) + r"(?!\w)", re.IGNORECASE)
