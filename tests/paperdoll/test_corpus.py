"""The pretraining data: no marks, names that stand for looks, captions that leave out many tags."""

from __future__ import annotations

import random

from autolora.paperdoll.corpus import base_caption, base_picture, clutter, soften, vae_pictures
from autolora.paperdoll.look import CAST_SIZE, known_cast, novel_character, tag_vocabulary

WORLD = set(tag_vocabulary())


def test_names_are_unique_and_no_novel_character_has_one() -> None:
    people, costumes = known_cast()
    names = {entry.name for entry in (*people, *costumes)}
    assert len(people) == len(costumes) == CAST_SIZE and len(names) == 2 * CAST_SIZE
    characters = [novel_character(seed, 4) for seed in range(300)]
    assert not names & {word for c in characters for word in (c.trigger, *(o.trigger for o in c.outfits))}


def test_a_drawing_with_names_shows_the_looks_of_the_names() -> None:
    rng = random.Random(0)
    drawings = [base_picture(rng) for _ in range(1000)]
    named = [drawing for drawing in drawings if drawing.names]
    assert 250 < len(named) < 430
    assert all(drawing.look.marks is None for drawing in drawings)
    assert all(drawing.look.values.items() >= name.values.items() for drawing in named for name in drawing.names)


def test_captions_contain_the_names_and_few_tags_of_their_looks() -> None:
    rng = random.Random(1)
    in_caption, nonsense, count = 0, 0, 0
    for _ in range(2000):
        drawing = base_picture(rng)
        words = base_caption(drawing, rng).split(", ")
        names = {name.name for name in drawing.names}
        assert names <= set(words)
        nonsense += any(word and word not in WORLD | names for word in words)
        if drawing.names:
            groups = [group for name in drawing.names for group in name.values if group != "count"]
            tags = drawing.look.tags_of(groups)
            in_caption, count = in_caption + len(set(tags) & set(words)), count + len(tags)
    assert 0.1 < in_caption / count < 0.2
    assert 0.03 < nonsense / 2000 < 0.07


def test_degraded_and_cluttered_images_keep_their_size() -> None:
    images = vae_pictures(random.Random(2))
    assert len(images) == 16 and {image.size for image in images} == {(64, 64)}
    rng = random.Random(3)
    before = images[0].copy()
    assert clutter(images[0], rng).tobytes() != before.tobytes()
    assert all(soften(before, rng).size == (64, 64) for _ in range(20))
