"""Finds a dataset's trigger, class word, concepts and sub-concept triggers in its captions."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from autolora.data.captions import count_tags, most_common_spellings, tag_key
from autolora.data.sources import Picture
from autolora.data.split import FEWEST_PICTURES
from autolora.errors import DatasetError

CLASS_WORDS = (
    *("1girl", "1boy", "1other", "solo", "girl", "boy", "woman", "man", "person"),
    *("animal", "cat", "dog", "object"),
)
TRIGGER_SHARE = 0.9  # share of the captions that a tag must have to be the trigger
# A tag made only of these words describes many characters, so it is never taken for the trigger.
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
    """The first of CLASS_WORDS that is a tag of most captions, else the first that is a word in most captions.

    Raises:
        DatasetError: no class word is in most captions.
    """
    words = [set(re.findall(r"\w+", picture.caption.casefold())) for picture in pictures]
    for captions in (_key_sets(pictures), words):
        for word in CLASS_WORDS:
            if 2 * sum(word in caption for caption in captions) > len(pictures):
                return word
    raise DatasetError(
        f"no class word in most captions (looked for {', '.join(CLASS_WORDS[:6])} ...): "
        "set dataset.class_word=1girl, or the base model's word for such an image"
    )


def find_trigger(pictures: Sequence[Picture], class_word: str | None) -> str:
    """The character's trigger, spelled as in the captions.

    It is the first word, or group of words, of the folder names that is a tag of every caption. Otherwise it is the
    only tag in 90% of the captions that is not a class word and not made of common words.

    Raises:
        DatasetError: no tag or several tags could be the trigger.
    """
    counts, spelling = _count_keys(pictures), _spellings(pictures)
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
        raise DatasetError(f"which tag is the trigger? {listed} are all in most captions: set dataset.trigger=WORD")
    raise DatasetError(
        "no tag could be the trigger: add a word of your own to every caption, or name a word of the captions with "
        "dataset.trigger=WORD"
    )


def check_trigger(pictures: Sequence[Picture], trigger: str) -> str:
    """The trigger that the user named, spelled as in the captions.

    Raises:
        DatasetError: no caption has it.
    """
    spelling = _spellings(pictures)
    if tag_key(trigger) in spelling:
        return spelling[tag_key(trigger)]
    if any(tag_key(trigger) in tag_key(picture.caption) for picture in pictures):
        return trigger  # a word in a sentence
    counts = _count_keys(pictures)
    similar = difflib.get_close_matches(tag_key(trigger), list(counts), 3)
    listed = ", ".join(spelling[tag] for tag in similar or [tag for tag, _ in counts.most_common(3)])
    kind = "similar tags" if similar else "most frequent tags"
    raise DatasetError(f"dataset.trigger={trigger} is in no caption ({kind}: {listed}): name a tag of the captions")


def concepts_by_tag(
    pictures: Sequence[Picture], tags: Sequence[str] | None, trigger: str, class_word: str
) -> tuple[Picture, ...]:
    """The images with the sub-concepts that their tags indicate; images of several folders keep their concepts.

    An image belongs to the first of `tags` in its caption; without one it keeps its folder's concept. If `tags` is
    None, uncommon tags that never occur together are used: at least two tags, each in at least three captions, that
    leave no image without a tag, or at least three images and at most a fifth of all.

    Raises:
        DatasetError: a tag is in no caption, or the folders already define the concepts.
    """
    counts, spelling = _count_keys(pictures), _spellings(pictures)
    if len({picture.concept for picture in pictures}) > 1:
        if tags:
            raise DatasetError("dataset.concepts applies to images in one folder, but there are several: remove it")
        return tuple(pictures)
    unknown = [tag for tag in tags or () if tag_key(tag) not in counts]
    if unknown:
        raise DatasetError(f"dataset.concepts: {', '.join(unknown)} in no caption: name tags of the captions")
    concepts = [tag_key(tag) for tag in tags] if tags is not None else _exclusive_tags(pictures, trigger, class_word)
    assigned = []
    for picture, keys in zip(pictures, _key_sets(pictures), strict=True):
        concept = next((spelling[tag] for tag in concepts if tag in keys), picture.concept)
        assigned.append(replace(picture, concept=concept))
    return tuple(assigned)


def _exclusive_tags(pictures: Sequence[Picture], trigger: str, class_word: str) -> list[str]:
    """Uncommon tags that never occur together and are in nearly all captions; empty unless there are at least two."""
    excluded = (tag_key(trigger), tag_key(class_word))
    captions = _key_sets(pictures)
    counts = _count_keys(pictures)
    chosen: list[str] = []
    for tag, count in counts.most_common():
        if count < FEWEST_PICTURES or tag in excluded or _is_common(tag):
            continue
        if not any(tag in keys and keys.intersection(chosen) for keys in captions):
            chosen.append(tag)
    left = sum(not keys.intersection(chosen) for keys in captions)
    complete = len(chosen) > 1 and (left == 0 or FEWEST_PICTURES <= left <= len(captions) / 5)
    return chosen if complete else []


def own_trigger(members: Sequence[Picture], others: Sequence[Picture], trigger: str, class_word: str) -> str:
    """A sub-concept's own trigger: a tag of all its captions and of no other concept's; else the main trigger.

    A tag in the folder's name is preferred, then a tag that is not made of common words, then the first tag in the
    captions. Without other concepts, only a tag in the folder's name is used.

    Args:
        members: the images of the sub-concept.
        others: the images of all other concepts.
        trigger: the main trigger.
        class_word: of the dataset.
    """
    counts = _count_keys(members)
    excluded = set(_count_keys(others)) | {tag_key(trigger), tag_key(class_word), *CLASS_WORDS}
    candidates = [tag for tag, count in counts.items() if count == len(members) and tag not in excluded]
    folder = _words(members[0].concept)
    named = [tag for tag in candidates if _words(tag) in folder]
    if not named and not others:
        return trigger
    best = min(named or candidates, key=_is_common, default=None)
    return trigger if best is None else _spellings(members)[best]


def _key_sets(pictures: Sequence[Picture]) -> list[set[str]]:
    """The `tag_key` of the tags of each caption."""
    return [{tag_key(tag) for tag in picture.tags} for picture in pictures]


def _count_keys(pictures: Sequence[Picture]) -> Counter[str]:
    """The number of captions with each tag, by `tag_key`, in order of first appearance."""
    return count_tags((picture.tags for picture in pictures), tag_key)


def _spellings(pictures: Sequence[Picture]) -> dict[str, str]:
    """The most frequent spelling of each tag, by `tag_key`."""
    return most_common_spellings((picture.tags for picture in pictures), tag_key)


def _words(text: str) -> str:
    """The words of a tag or folder name between spaces, ` mona fit_a `, so that `in` compares whole words."""
    return " " + re.sub(r"[\s_,]+", " ", tag_key(text)).strip() + " "


def _is_common(tag: str) -> bool:
    """Whether a tag is made of common words only, or has no letters."""
    words = re.findall(r"[^\W_]+", tag)
    return tag in CLASS_WORDS or all(word in _COMMON_WORDS or word in CLASS_WORDS or word.isdigit() for word in words)
