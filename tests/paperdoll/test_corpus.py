"""What the base model is pretrained on: no marks, names that stand for looks, captions that leave much unsaid."""

from __future__ import annotations

import random

from autolora.paperdoll.corpus import base_caption, base_picture, clutter, soften, vae_pictures
from autolora.paperdoll.look import CAST_SIZE, known_cast, novel_character, tag_vocabulary

WORLD = set(tag_vocabulary())


def test_names_are_distinct_and_no_novel_character_takes_one() -> None:
    people, costumes = known_cast()
    names = {known.name for known in (*people, *costumes)}
    assert len(people) == len(costumes) == CAST_SIZE and len(names) == 2 * CAST_SIZE
    novel = [novel_character(seed, 4) for seed in range(300)]
    assert not names & {word for c in novel for word in (c.trigger, *(o.trigger for o in c.outfits))}


def test_a_named_picture_shows_what_the_names_stand_for() -> None:
    rng = random.Random(0)
    pictures = [base_picture(rng) for _ in range(1000)]
    named = [drawn for drawn in pictures if drawn.names]
    assert 250 < len(named) < 430
    assert all(drawn.look.marks is None for drawn in pictures)
    assert all(drawn.look.values.items() >= known.values.items() for drawn in named for known in drawn.names)


def test_captions_say_the_names_and_mostly_not_what_they_stand_for() -> None:
    rng = random.Random(1)
    said, nonsense, count = 0, 0, 0
    for _ in range(2000):
        drawn = base_picture(rng)
        words = base_caption(drawn, rng).split(", ")
        names = {known.name for known in drawn.names}
        assert names <= set(words)
        nonsense += any(word and word not in WORLD | names for word in words)
        if drawn.names:
            groups = [group for known in drawn.names for group in known.values if group != "count"]
            own = drawn.look.tags_of(groups)
            said, count = said + len(set(own) & set(words)), count + len(own)
    assert 0.1 < said / count < 0.2
    assert 0.03 < nonsense / 2000 < 0.07


def test_the_vae_sees_more_than_the_base_model_and_pictures_keep_their_size() -> None:
    pictures = vae_pictures(random.Random(2))
    assert len(pictures) == 16 and {picture.size for picture in pictures} == {(64, 64)}
    rng = random.Random(3)
    before = pictures[0].copy()
    assert clutter(pictures[0], rng).tobytes() != before.tobytes()
    assert all(soften(before, rng).size == (64, 64) for _ in range(20))
