"""Captions: splitting and joining, and edits that lose or repeat no tag."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.captions import (
    booru_key,
    count_tags,
    escape_tag,
    has_tag,
    is_sentence,
    join_tags,
    mentions,
    most_common_spellings,
    replace_tag,
    replace_trigger,
    split_tags,
    strip_tag,
    tag_key,
    unescape_tag,
)
from tests.data.folders import pictures_of

CAPTIONS = st.text(st.sampled_from("ab Z_,\\()\t\n é日"), max_size=40)
quick = settings(max_examples=60, deadline=None)


@quick
@given(CAPTIONS)
def test_split_and_join_are_inverse(caption: str) -> None:
    tags = split_tags(caption)
    assert split_tags(join_tags(tags)) == tags
    assert all(tag and tag == tag.strip() and "," not in tag for tag in tags)
    assert "".join("".join(tags).split()) == "".join(caption.replace(",", "").split())


def test_replace_and_strip_find_every_spelling_and_insert_nothing_twice() -> None:
    caption = r"1girl, Mona \(game\), blue hair, mona (game)"
    assert replace_tag(caption, "mona (game)", "blue hair, red eyes") == "1girl, red eyes, blue hair"
    assert strip_tag(caption, "MONA  (game)") == "1girl, blue hair"
    assert strip_tag("monaco, mona lisa", "mona") == "monaco, mona lisa"
    assert replace_tag("a, b", "c", "d") == "a, b"
    assert has_tag(caption, "mona (game)")
    assert not has_tag(caption, "mona")
    assert not has_tag("fit_a", "fit a")  # the text encoder reads other tokens


@quick
@given(CAPTIONS, st.sampled_from(["a", "Z", "(", "é"]), st.sampled_from(["new", "a, b", ""]))
def test_replace_leaves_all_other_tags(caption: str, old: str, new: str) -> None:
    others = [t for t in split_tags(caption) if tag_key(t) != tag_key(old)]
    replaced = split_tags(replace_tag(caption, old, new))
    added = {tag_key(tag) for tag in split_tags(new)} - {tag_key(tag) for tag in others}
    assert [t for t in replaced if tag_key(t) not in added] == others
    assert split_tags(strip_tag(caption, old)) == tuple(others)


@quick
@given(st.text(st.sampled_from("ab ()é"), max_size=20))
def test_escapes_are_removed_and_never_doubled(tag: str) -> None:
    assert unescape_tag(escape_tag(tag)) == tag
    assert escape_tag(escape_tag(tag)) == escape_tag(tag)
    assert escape_tag("mona (game)") == r"mona \(game\)"


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("a photo of sks man", True),
        ("a photo of a woman, smiling", True),  # opens with an article
        ("Zorak stands on the beach at night. She smiles, waving at the viewer.", True),
        (
            "zorak, fit_a, a girl with long hair stands on the beach and waves at someone",
            True,
        ),  # few commas, many words
        ("1girl, zorak, looking at viewer, hair over one eye, holding another's wrist", False),
        ("1girl, zorak, fit_a, smile, city, a girl waving at someone", False),  # tags with one phrase
        ("1girl", False),
        ("long_hair, looking_at_viewer_over_the_shoulder", False),
        ("hair over one eye, 1girl, solo", False),  # long, but no article
        ("", False),
        (" , ", False),
    ],
)
def test_sentences_are_distinguished_from_tags(caption: str, sentence: bool) -> None:
    assert is_sentence(caption) is sentence


def test_a_trigger_is_found_and_replaced_in_sentences() -> None:
    caption = "a photo of Zorak  \\(game\\) on a beach, zorak (game) waves, zoraks"
    assert is_sentence(caption)
    assert mentions(caption, "zorak (game)")
    assert mentions(caption, r"ZORAK \(game\)")
    assert not mentions(caption, "zora")
    assert not mentions(caption, "each")
    assert (
        replace_trigger(caption, "zorak (game)", "blue hair, a beach, red eyes")
        == "a photo of blue hair, red eyes on a beach, waves, zoraks"
    )
    assert replace_trigger(caption, "zora", "x") == caption
    assert replace_trigger("a photo of zorak in the city", "zorak", "") == "a photo of in the city"
    assert replace_trigger("1girl, zorak", "zorak", "red eyes, 1girl") == "1girl, red eyes"
    assert mentions("1girl, Zorak", "zorak")
    assert not mentions("1girl, zorak dress", "zorak")  # another tag


def test_tags_are_counted_once_per_caption_in_all_spellings() -> None:
    captions = ["long_hair, smile, Long hair", "long hair", "a photo of a girl with long hair", "long hair, ^_^"]
    tag_lists = [split_tags(caption) for caption in captions if not is_sentence(caption)]
    assert count_tags(tag_lists) == {"long hair": 3, "smile": 1, "^ ^": 1}
    assert list(count_tags(tag_lists)) == ["long hair", "smile", "^ ^"]
    assert count_tags(tag_lists, tag_key) == {"long_hair": 1, "smile": 1, "long hair": 3, "^_^": 1}
    assert most_common_spellings(tag_lists) == {"long hair": "long hair", "smile": "smile", "^ ^": "^_^"}
    assert booru_key(r"Mona_\(game\)") == "mona (game)"
    assert booru_key("_") == "_"


@quick
@given(CAPTIONS, st.sampled_from(["a", "Z", "é"]))
def test_a_replaced_trigger_is_removed(caption: str, trigger: str) -> None:
    replaced = replace_trigger(caption, trigger, "new")
    assert ("new" in replaced) == mentions(caption, trigger)
    if is_sentence(replaced) == is_sentence(caption):  # a shortened sentence may no longer count as one
        assert not mentions(replaced, trigger)
    assert mentions(caption, trigger) or split_tags(replaced) == split_tags(caption)


def test_tags_follow_the_caption() -> None:
    picture = pictures_of(["1girl,  zorak , ,smile"])[0]
    assert picture.tags == ("1girl", "zorak", "smile")
    assert replace(picture, caption="a, b").tags == ("a", "b")
    copy = pickle.loads(pickle.dumps(picture))
    assert copy == picture == pictures_of([picture.caption])[0] and copy.tags == picture.tags
