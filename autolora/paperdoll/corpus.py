"""What the parts of the embedded world are pretrained on: drawings, captions, and how they are roughened."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import Known, Look, known_cast, nonsense_word, random_novel_look, sample_values


@dataclass(frozen=True)
class Drawn:
    """A picture of the base model's world: its look, and the names that stand for parts of it."""

    look: Look
    names: tuple[Known, ...] = ()


def base_picture(rng: random.Random) -> Drawn:
    """Something the base model sees; a third of all show a character it knows by name, most of those in costume.

    As in real base models, that is what teaches it that a name stands for a look.
    """
    values, names = sample_values(rng), []
    people, costumes = known_cast()
    if rng.random() < 0.34:
        names.append(rng.choice(people))
        if rng.random() < 0.7:
            names.append(rng.choice(costumes))
    for known in names:
        values |= known.values
    return Drawn(Look(values), tuple(names))


def base_caption(drawn: Drawn, rng: random.Random) -> str:
    """A caption as the base model sees it: names, a share of the tags, shuffled, sometimes with a nonsense word."""
    count, *rest = drawn.look.tags()
    named = {tag for known in drawn.names for tag in drawn.look.tags_of(known.values)}
    share = rng.choice((0.0, 0.3, 0.6, 1.0, 1.0))
    kept = [tag for tag in rest if rng.random() < (0.15 if tag in named else share)]
    rng.shuffle(kept)
    if rng.random() < 0.05:
        kept.insert(rng.randint(0, len(kept)), nonsense_word(rng))
    lead = [known.name for known in drawn.names]
    return ", ".join([count, *lead, *kept] if rng.random() < 0.97 else [*lead, *kept])


def mixed_looks(rng: random.Random, count: int) -> list[Look]:
    """Base looks and freely marked ones in turn."""
    return [random_novel_look(rng) if i % 2 else Look(sample_values(rng)) for i in range(count)]


def vae_pictures(rng: random.Random, count: int = 16) -> list[Image.Image]:
    """Pictures for the VAE; as real VAEs it sees more of the world than the base model ever will.

    Base looks, freely marked ones, and a third of all under random shapes.
    """
    images = [draw(look, rng) for look in mixed_looks(rng, count)]
    return [clutter(image, rng) if i % 3 == 2 else image for i, image in enumerate(images)]


def clutter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Random shapes drawn over a picture, so that the VAE keeps what it has never seen."""
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
    """The picture as a decoder might give it back: sometimes blurred, shrunk and grown again, noisy."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if rng.random() < 0.3:
        side = rng.randint(36, 60)
        image = image.resize((side, side), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC)
    return image
