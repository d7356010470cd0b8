"""The pretraining data of the synthetic test world: drawings, captions, and how drawings are degraded."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import KnownName, Look, known_cast, nonsense_word, random_novel_look, sample_values


@dataclass(frozen=True)
class Drawing:
    """An image of the base model's world: its look, and the names that stand for parts of it."""

    look: Look
    names: tuple[KnownName, ...] = ()


def base_picture(rng: random.Random) -> Drawing:
    """Choose an image for the base model; a third show a character with a name, and most of those a costume with one.

    From these the base model learns that a name stands for a look, as real base models do.
    """
    values, names = sample_values(rng), []
    people, costumes = known_cast()
    if rng.random() < 0.34:
        names.append(rng.choice(people))
        if rng.random() < 0.7:
            names.append(rng.choice(costumes))
    for name in names:
        values |= name.values
    return Drawing(Look(values), tuple(names))


def base_caption(drawing: Drawing, rng: random.Random) -> str:
    """Write a caption for the base model: names and a share of the tags, shuffled, sometimes with a nonsense word."""
    count, *rest = drawing.look.tags()
    named = {tag for name in drawing.names for tag in drawing.look.tags_of(name.values)}
    share = rng.choice((0.0, 0.3, 0.6, 1.0, 1.0))
    tags = [tag for tag in rest if rng.random() < (0.15 if tag in named else share)]
    rng.shuffle(tags)
    if rng.random() < 0.05:
        tags.insert(rng.randint(0, len(tags)), nonsense_word(rng))
    lead = [name.name for name in drawing.names]
    return ", ".join([count, *lead, *tags] if rng.random() < 0.97 else [*lead, *tags])


def mixed_looks(rng: random.Random, count: int) -> list[Look]:
    """Sample looks, alternately of the base model's world and with random marks."""
    return [random_novel_look(rng) if i % 2 else Look(sample_values(rng)) for i in range(count)]


def vae_pictures(rng: random.Random, count: int = 16) -> list[Image.Image]:
    """Draw images for the VAE, which sees more than the base model, as real VAEs do.

    They are looks without and with marks; a third is covered by random shapes.
    """
    images = [draw(look, rng) for look in mixed_looks(rng, count)]
    return [clutter(image, rng) if i % 3 == 2 else image for i, image in enumerate(images)]


def clutter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Draw random shapes over an image, so that the VAE also reconstructs what it has never seen."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 6)):
        color = tuple(rng.randint(0, 255) for _ in range(3))
        x, y, r = rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(1.5, 9)
        points = [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(3)]
        kind = rng.randrange(3)
        if kind == 0:
            pen.polygon(points, fill=color)
        elif kind == 1:
            pen.ellipse([x - r / 2, y - r / 2, x + r / 2, y + r / 2], fill=color)
        else:
            pen.line(points, fill=color, width=rng.randint(1, 3))
    return image


def soften(image: Image.Image, rng: random.Random) -> Image.Image:
    """Degrade an image as a decoder might: sometimes blur it, sometimes scale it down and up again."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if rng.random() < 0.3:
        side = rng.randint(36, 60)
        image = image.resize((side, side), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC)
    return image
