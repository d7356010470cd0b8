"""Captions, written as booru tags or as sentences: splitting, comparing and replacing their tags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from autolora.files import composed

_ESCAPED = re.compile(r"\\([()\[\]{}])")
_BRACKET = re.compile(r"(?<!\\)([()])")
_ARTICLES = frozenset(("a", "an", "the"))
_SENTENCE_WORDS = 3  # tags have fewer words on average: only a few common danbooru tags have four


@lru_cache(maxsize=1 << 14)  # the trials of a study edit the same captions again
def split_tags(caption: str) -> tuple[str, ...]:
    r"""The tags of a caption, in order; runs of white space become one space, empty tags are dropped.

    Escapes such as `\(` are kept, so that `join_tags(split_tags(c))` changes no tag.
    """
    return tuple(tag for part in caption.split(",") if (tag := " ".join(part.split())))


def join_tags(tags: Iterable[str]) -> str:
    """The inverse of `split_tags`: the tags, separated by commas."""
    return ", ".join(tags)


def escape_tag(tag: str) -> str:
    r"""A tag with its parentheses escaped for prompt boxes, `mona (game)` -> `mona \(game\)`; never escaped twice."""
    return _BRACKET.sub(r"\\\1", tag)


def unescape_tag(tag: str) -> str:
    r"""A tag without prompt escapes: `mona \(game\)` -> `mona (game)`."""
    return _ESCAPED.sub(r"\1", tag)


@lru_cache(maxsize=1 << 16)
def tag_key(tag: str) -> str:
    """A key that is equal for all spellings of a tag: escapes, case, white space and Unicode's normalization."""
    return " ".join(composed(unescape_tag(tag)).casefold().split())


@lru_cache(maxsize=1 << 16)
def booru_key(tag: str) -> str:
    """As `tag_key`, with underscores as spaces: equal for the same booru tag, although CLIP reads other tokens."""
    return " ".join(tag_key(tag).replace("_", " ").split()) or tag_key(tag)


@lru_cache(maxsize=1 << 14)
def is_sentence(caption: str) -> bool:
    """Whether a caption is natural language: its parts between commas have more than three words on average.

    A caption whose first part has at least four words, one of them an article, is a sentence too.
    """
    parts = [tag_key(part).split() for part in split_tags(caption)]
    if not parts:
        return False
    opens_as_sentence = len(parts[0]) > _SENTENCE_WORDS and not _ARTICLES.isdisjoint(parts[0])
    return opens_as_sentence or sum(map(len, parts)) > _SENTENCE_WORDS * len(parts)


def count_tags(captions: Iterable[Sequence[str]], key: Callable[[str], str] = booru_key) -> Counter[str]:
    """The number of captions with each tag, by `key`, in order of first appearance.

    Args:
        captions: the tags of each caption.
        key: makes the spellings of one tag equal.
    """
    return Counter(tag for tags in captions for tag in dict.fromkeys(map(key, tags)))


def most_common_spellings(captions: Iterable[Sequence[str]], key: Callable[[str], str] = booru_key) -> dict[str, str]:
    """The most frequent spelling of each tag, by `key`; arguments as in `count_tags`."""
    counts = Counter(tag for tags in captions for tag in tags)
    return {key(tag): tag for tag, _ in reversed(counts.most_common())}


def has_tag(caption: str, tag: str) -> bool:
    """Whether a caption has a tag, in any of its spellings."""
    return tag_key(tag) in {tag_key(t) for t in split_tags(caption)}


def replace_tag(caption: str, old: str, new: str) -> str:
    """The caption with every spelling of the tag `old` replaced by `new`, which may be several tags.

    Tags of `new` that the caption has elsewhere are not inserted again.
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
    """The caption without `tag`, in any of its spellings."""
    return join_tags(t for t in split_tags(caption) if tag_key(t) != tag_key(tag))


def mentions(caption: str, trigger: str) -> bool:
    """Whether a caption contains a trigger: as a tag, or, in a sentence, as whole words."""
    return _words_of(trigger).search(caption) is not None if is_sentence(caption) else has_tag(caption, trigger)


def replace_trigger(caption: str, trigger: str, new: str) -> str:
    """As `replace_tag`; in a sentence the first mention becomes the tags of `new`, further mentions are removed."""
    if not is_sentence(caption):
        return replace_tag(caption, trigger, new)
    if not mentions(caption, trigger):
        return caption
    added = iter([join_tags(tag for tag in split_tags(new) if not mentions(caption, tag))])
    return re.sub(r"  +", " ", _words_of(trigger).sub(lambda _: next(added, ""), caption)).strip()


def _words_of(tag: str) -> re.Pattern[str]:
    """A pattern that finds the spellings of a tag in a sentence."""
    words = r"\s+".join(re.escape(word) for word in composed(unescape_tag(tag)).split())
    return re.compile(r"(?<!\w)" + re.sub(r"(\\[()\[\]{}])", r"\\\\?\1", words) + r"(?!\w)", re.IGNORECASE)
