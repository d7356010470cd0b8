"""Finds a dataset's trigger, class word and sub-concept triggers in its captions, or asks for them."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from autolora.data.captions import split_tags, tag_key
from autolora.data.sources import Picture
from autolora.data.split import FEWEST_PICTURES
from autolora.errors import DatasetError

CLASS_WORDS = (
    *("1girl", "1boy", "1other", "solo", "girl", "boy", "woman", "man", "person"),
    *("animal", "cat", "dog", "object"),
)
TRIGGER_SHARE = 0.9  # of the captions: a tag this frequent may be the trigger
# A tag made only of these words describes what anyone could show, so it is never guessed to be a trigger.
_COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a an and at by from in of on the with up own no multiple very light dark pale tan two tone girls boys
    others 2girls 2boys solo male female focus character original looking viewer back away side red blue
    green yellow orange purple pink brown blonde black white grey gray silver gold aqua teal magenta
    violet hair eyes skin skinned long short medium big large small huge twintails ponytail braid braids
    bangs ahoge bun bob straight curly wavy spiky messy sidelocks tips streak streaked multicolored
    gradient heterochromia pupils lips dress shirt skirt t hoodie suit overalls jacket coat uniform school
    hat cap glasses scarf bow bowtie ribbon gloves boots shoes socks thighhighs pantyhose shorts pants
    jeans sweater kimono robe armor poncho tunic cape cloak vest necktie choker collar earrings jewelry
    necklace bracelet belt bag swimsuit bikini leotard sleeves sleeveless detached hairband hairclip
    ornament flower striped plaid emblem frills apron clothes clothing accessory smile smiling frown open
    closed mouth blush grin expressionless serious happy sad angry crying tongue out teeth fang fangs
    standing sitting lying walking running kneeling upper lower body full portrait cowboy shot close
    behind above below view profile head face arms arm hands hand legs leg down waving crossed raised
    holding weapon sword simple background backgrounds transparent sky night day sunset beach ocean sea
    water meadow grass field forest tree trees flowers city street building room window indoors outdoors
    cloud clouds star stars moon snow rain breasts cleavage navel thighs midriff shoulders bare collarbone
    muscular horns horn ears tail wings halo antlers antennae pointy fur tattoo mole freckles scar mark
    markings cross diamond stripes masterpiece best good high quality highres absurdres detailed score
    rating safe general sensitive photo photograph realistic anime manga illustration drawing painting
    sketch monochrome greyscale comic style cover text signature watermark artist name depth blurry
    """,
    )
)


def find_class_word(pictures: Sequence[Picture]) -> str:
    """The first of CLASS_WORDS that most captions carry as a tag, else as a word of a sentence.

    Raises:
        DatasetError: no class word is that frequent.
    """
    tags = [{tag_key(tag) for tag in split_tags(picture.caption)} for picture in pictures]
    words = [set(re.findall(r"\w+", picture.caption.casefold())) for picture in pictures]
    for found in (tags, words):
        for word in CLASS_WORDS:
            if 2 * sum(word in there for there in found) > len(pictures):
                return word
    raise DatasetError(
        f"no class word in most captions (looked for {', '.join(CLASS_WORDS[:6])} ...): "
        "add dataset.class_word=1girl, or whatever the base model calls such a picture"
    )


def find_trigger(pictures: Sequence[Picture], class_word: str | None) -> str:
    """The character's trigger, spelt as in the captions.

    The first word (or words) of the folders' names that is a tag of every caption; else the one tag in nine
    tenths of the captions that is neither a class word nor made of common words only.

    Raises:
        DatasetError: several tags or none could be the trigger.
    """
    counts = _tag_counts(pictures)
    spelling = _spellings(pictures)
    rare = [tag for tag in counts if not _is_common(tag) and tag != tag_key(class_word or "")]
    folders = [_words(name) for name in dict.fromkeys(picture.concept for picture in pictures)]
    named = [tag for tag in rare if counts[tag] == len(pictures) and all(_words(tag) in f for f in folders)]
    if named:
        return spelling[min(named, key=lambda tag: (folders[0].index(_words(tag)), -len(tag)))]
    frequent = [tag for tag in rare if counts[tag] >= TRIGGER_SHARE * len(pictures)]
    if len(frequent) == 1:
        return spelling[frequent[0]]
    if frequent:
        listed = ", ".join(spelling[tag] for tag in frequent[:5])
        raise DatasetError(f"which tag is the trigger? {listed} are all in most captions: add dataset.trigger=WORD")
    raise DatasetError(
        "no tag could be the trigger: write a word of your own into every caption, or name one that is there "
        "with dataset.trigger=WORD"
    )


def check_trigger(pictures: Sequence[Picture], trigger: str) -> str:
    """The trigger that the user named, spelt as in the captions.

    Raises:
        DatasetError: no caption has it.
    """
    spelling = _spellings(pictures)
    if tag_key(trigger) in spelling:
        return spelling[tag_key(trigger)]
    if any(tag_key(trigger) in tag_key(picture.caption) for picture in pictures):
        return trigger  # a word of a sentence
    counts = _tag_counts(pictures)
    near = difflib.get_close_matches(tag_key(trigger), list(counts), 3)
    listed = ", ".join(spelling[tag] for tag in near or [tag for tag, _ in counts.most_common(3)])
    kind = "close to it" if near else "most frequent"
    raise DatasetError(f"dataset.trigger={trigger} is in no caption ({kind}: {listed}): name a tag of the captions")


def concepts_by_tag(
    pictures: Sequence[Picture], tags: Sequence[str] | None, trigger: str, class_word: str
) -> tuple[Picture, ...]:
    """The pictures of one folder with the sub-concept that their tags tell; of several folders as they are.

    A picture belongs to the first of `tags` that it carries, else it stays with its folder. Without any given, tags of
    uncommon words that never meet are taken where at least two of them, in three pictures or more each, leave none or
    at least three pictures over.

    Raises:
        DatasetError: a given tag is in no caption, or the folders say already what the concepts are.
    """
    counts, spelling = _tag_counts(pictures), _spellings(pictures)
    if len({picture.concept for picture in pictures}) > 1:
        if tags:
            raise DatasetError("dataset.concepts is for pictures in one folder, but there are several: remove it")
        return tuple(pictures)
    unknown = [tag for tag in tags or () if tag_key(tag) not in counts]
    if unknown:
        raise DatasetError(f"dataset.concepts: {', '.join(unknown)} in no caption: name tags of the captions")
    chosen = [tag_key(tag) for tag in tags] if tags is not None else _exclusive_tags(pictures, trigger, class_word)
    found = []
    for picture in pictures:
        own = {tag_key(tag) for tag in split_tags(picture.caption)}
        concept = next((spelling[tag] for tag in chosen if tag in own), picture.concept)
        found.append(replace(picture, concept=concept))
    return tuple(found)


def _exclusive_tags(pictures: Sequence[Picture], trigger: str, class_word: str) -> list[str]:
    """Uncommon tags that never meet and, together, are in nearly all captions; none where there are not two."""
    known = (tag_key(trigger), tag_key(class_word))
    rows = [{tag_key(tag) for tag in split_tags(picture.caption)} for picture in pictures]
    counts = _tag_counts(pictures)
    chosen: list[str] = []
    for tag, count in counts.most_common():
        if count < FEWEST_PICTURES or tag in known or _is_common(tag):
            continue
        if not any(tag in row and row.intersection(chosen) for row in rows):
            chosen.append(tag)
    left = sum(not row.intersection(chosen) for row in rows)
    enough = len(chosen) > 1 and (left == 0 or FEWEST_PICTURES <= left <= len(rows) / 5)
    return chosen if enough else []


def own_trigger(members: Sequence[Picture], others: Sequence[Picture], trigger: str, class_word: str) -> str:
    """A sub-concept's own trigger: a tag of all its captions and no other concept's; else the main trigger.

    One in the folder's name comes first, then one that is not made of common words, then the first in the
    captions. With no other concept to compare to, only one in the folder's name counts.
    """
    counts = _tag_counts(members)
    taken = set(_tag_counts(others)) | {tag_key(trigger), tag_key(class_word), *CLASS_WORDS}
    own = [tag for tag, count in counts.items() if count == len(members) and tag not in taken]
    folder = _words(members[0].concept)
    named = [tag for tag in own if _words(tag) in folder]
    if not named and not others:
        return trigger
    best = min(named or own, key=_is_common, default=None)
    return trigger if best is None else _spellings(members)[best]


def _tag_counts(pictures: Sequence[Picture]) -> Counter[str]:
    """In how many captions each tag is, by `tag_key`, in order of first appearance."""
    return Counter(key for p in pictures for key in dict.fromkeys(tag_key(tag) for tag in split_tags(p.caption)))


def _spellings(pictures: Sequence[Picture]) -> dict[str, str]:
    """The most frequent spelling of each tag."""
    counts = Counter(tag for picture in pictures for tag in split_tags(picture.caption))
    return {tag_key(tag): tag for tag, _ in reversed(counts.most_common())}


def _words(text: str) -> str:
    """The words of a tag or folder name between spaces, ` mona fit_a `, so that `in` finds whole words."""
    return " " + re.sub(r"[\s_,]+", " ", tag_key(text)).strip() + " "


def _is_common(tag: str) -> bool:
    """Whether a tag is made of common words only (or of no letters at all)."""
    words = re.findall(r"[^\W_]+", tag)
    return tag in CLASS_WORDS or all(word in _COMMON_WORDS or word in CLASS_WORDS or word.isdigit() for word in words)
