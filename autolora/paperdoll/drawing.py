"""Draws a look with vector shapes on a canvas of 64 units, at any size, with Pillow."""

from __future__ import annotations

import random

from PIL import Image

from autolora.paperdoll.drawing_marks import draw_crest, draw_face_mark, draw_halo
from autolora.paperdoll.look import Look, Marks
from autolora.paperdoll.pen import CLOTH, EYES, HAIR, INK, MARK, SKIN, Color, Pen


def draw(look: Look, rng: random.Random, size: int = 64) -> Image.Image:
    """Draw a look as an RGB image of size x size pixels; `rng` varies its place and its colours slightly."""
    pen = Pen(size, rng)
    v = look.values
    hair, skin = pen.shade(HAIR[v["hair_color"]]), pen.shade(SKIN[v["skin"]], 5)
    tone = pen.shade(HAIR[look.marks.two_tone_color], 5) if look.marks else hair
    _background(pen, v["background"])
    if look.marks and look.marks.crest == "halo":
        draw_halo(pen, MARK[look.marks.crest_color])
    _hair_back(pen, v["hair_style"], hair, tone if look.marks and look.marks.two_tone == "tips" else hair)
    _arms(
        pen, v["pose"], skin, pen.shade(CLOTH[v["outfit_color"]], 7) if v["outfit"] != "overalls" else (240, 240, 244)
    )
    _body(pen, v, look.second_color)
    boy = v["count"] == "1boy"
    pen.poly([(29, 36), (35, 36), (36, 41), (28, 41)], skin)
    pen.oval(32, 26, 13, 12, skin)
    if boy:
        pen.poly([(20.5, 29), (43.5, 29), (39, 38), (25, 38)], skin)
    _face(pen, v, boy)
    _hair_front(pen, v["hair_style"], hair, look.marks, tone)
    _accessory(pen, v["accessory"])
    if look.marks:
        draw_crest(pen, look.marks)
        draw_face_mark(pen, look.marks)
    return pen.image.resize((size, size), Image.Resampling.BOX)


def _background(pen: Pen, name: str) -> None:
    rng = pen.rng
    if name == "white background":
        pen.backdrop(0, 64, pen.shade((250, 250, 250), 4))
    elif name == "blue sky":
        pen.backdrop(0, 64, pen.shade((140, 205, 250)))
        for _ in range(3):
            x, y = rng.uniform(2, 62) * pen.unit, rng.uniform(4, 26) * pen.unit
            pen.draw.ellipse(
                [x - 9 * pen.unit, y - 3 * pen.unit, x + 9 * pen.unit, y + 3 * pen.unit], fill=(255, 255, 255)
            )
    elif name == "night sky":
        pen.backdrop(0, 64, pen.shade((26, 26, 72), 6))
        for _ in range(14):
            x, y, r = rng.uniform(0, 64) * pen.unit, rng.uniform(0, 50) * pen.unit, 0.8 * pen.unit
            pen.draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 250, 200))
    elif name == "beach":
        pen.backdrop(0, 26, pen.shade((170, 225, 250)))
        pen.backdrop(26, 42, pen.shade((30, 130, 200)))
        pen.backdrop(42, 64, pen.shade((244, 220, 160)))
    elif name == "meadow":
        pen.backdrop(0, 30, pen.shade((190, 230, 250)))
        pen.backdrop(30, 64, pen.shade((110, 190, 80)))
    else:
        pen.backdrop(0, 64, pen.shade((205, 190, 200)))
        for x in range(0, 64, 11):
            top = rng.uniform(6, 30)
            pen.draw.rectangle(
                [x * pen.unit, top * pen.unit, (x + 9) * pen.unit, 64 * pen.unit], fill=pen.shade((120, 112, 128), 14)
            )


def _hair_back(pen: Pen, style: str, hair: Color, tips: Color) -> None:
    if style == "long hair":
        pen.oval(32, 26, 16, 15, hair)
        pen.poly([(16, 26), (48, 26), (50, 40), (14, 40)], hair)
        pen.poly([(14, 40), (50, 40), (51, 54), (13, 54)], tips)
    elif style == "twintails":
        pen.oval(32, 25, 15, 13.5, hair)
        for side in (-1, 1):
            pen.oval(32 + side * 20, 28, 5.5, 9, hair)
            pen.oval(32 + side * 21, 39, 4.5, 9, tips)
    elif style == "ponytail":
        pen.oval(32, 25, 15, 13.5, hair)
        pen.oval(48, 16, 7, 6, hair)
        pen.poly([(45, 14), (54, 16), (57, 30), (49, 30)], hair)
        pen.poly([(49, 30), (57, 30), (56, 42), (51, 42)], tips)
    elif style == "short hair":
        pen.oval(32, 25, 15.5, 13.5, hair)
        pen.oval(20, 33, 4, 4.5, tips)
        pen.oval(44, 33, 4, 4.5, tips)
    else:
        spikes = [
            (17, 30),
            (11, 24),
            (17, 21),
            (11, 13),
            (20, 14),
            (21, 5),
            (28, 10),
            (33, 2),
            (37, 10),
            (44, 5),
            (45, 14),
            (53, 13),
            (47, 21),
            (53, 24),
            (47, 30),
        ]
        pen.poly([(x, y) for x, y in spikes], hair)
        if tips != hair:
            for a, b, c in ((0, 1, 2), (2, 3, 4), (4, 5, 6), (6, 7, 8), (8, 9, 10), (10, 11, 12), (12, 13, 14)):
                pen.poly([spikes[a], spikes[b], spikes[c]], tips)


def _hair_front(pen: Pen, style: str, hair: Color, marks: Marks | None, tone: Color) -> None:
    fringe = [
        (18.5, 26),
        (19, 18),
        (24, 13.2),
        (32, 11.8),
        (40, 13.2),
        (45, 18),
        (45.5, 26),
        (42, 20.5),
        (37, 22.5),
        (33, 18.5),
        (27, 22.5),
        (22, 20.5),
    ]
    pen.poly(fringe, hair)
    if marks and marks.two_tone == "left half":
        pen.poly([(18.5, 26), (19, 18), (24, 13.2), (32, 11.8), (33, 18.5), (27, 22.5), (22, 20.5)], tone)
    elif marks and marks.two_tone == "streak":
        pen.poly([(36, 12.2), (42.5, 14.8), (42, 20.5), (37, 22.5)], tone)
    elif marks and marks.two_tone == "tips":
        pen.poly(
            [
                (18.5, 26),
                (18.8, 21),
                (22, 18.5),
                (27, 20),
                (33, 16),
                (37, 20),
                (42, 18.5),
                (45.2, 21),
                (45.5, 26),
                (42, 20.5),
                (37, 22.5),
                (33, 18.5),
                (27, 22.5),
                (22, 20.5),
            ],
            tone,
        )


def _arms(pen: Pen, pose: str, skin: Color, sleeve: Color) -> None:
    for side in (-1, 1):
        raised = pose == "arms up" or (pose == "waving" and side == 1)
        shoulder = (32 + side * 9, 44)
        elbow = (32 + side * 21, 42) if raised else (32 + side * 14, 54)
        hand = (32 + side * 24.5, 26) if raised else (32 + side * 15, 63)
        pen.line([shoulder, elbow], sleeve, 6)
        pen.line([elbow, hand], skin, 4.5)
        pen.oval(hand[0], hand[1], 3.2, 3.2, skin)


def _body(pen: Pen, v: dict[str, str], second_name: str) -> None:
    c, outfit, boy = pen.shade(CLOTH[v["outfit_color"]], 7), v["outfit"], v["count"] == "1boy"
    second = pen.shade(CLOTH[second_name], 5)
    w = 12 if boy else 10
    torso = [(32 - w + 2, 41), (32 + w - 2, 41), (32 + w, 46), (32 + w - 1, 66), (32 - w + 1, 66), (32 - w, 46)]
    if outfit == "t-shirt":
        pen.poly(torso, c)
        pen.oval(32, 41, 4.5, 3, tuple(max(0, x - 50) for x in c))  # type: ignore[arg-type]
    elif outfit == "dress":
        pen.poly([(26, 41), (38, 41), (40, 50), (50, 68), (14, 68), (24, 50)], c)
        pen.line([(24, 51), (40, 51)], (255, 240, 245), 2)
        pen.oval(32, 51, 2, 2, (255, 240, 245))
    elif outfit == "hoodie":
        pen.poly([(32 - w - 2, 42), (32 + w + 2, 42), (32 + w + 2, 67), (32 - w - 2, 67)], c)
        dark: Color = (int(c[0] * 0.7), int(c[1] * 0.7), int(c[2] * 0.7))
        pen.oval(32, 41.5, 11, 4, dark)
        pen.poly([(25, 54), (39, 54), (41, 62), (23, 62)], dark)
    elif outfit == "suit":
        pen.poly(torso, c)
        pen.poly([(28, 41), (36, 41), (32, 54)], (250, 250, 250))
        pen.poly([(31, 43), (33, 43), (34, 51), (32, 54), (30, 51)], (150, 20, 30))
    elif outfit == "overalls":
        pen.poly(torso, (240, 240, 244))
        pen.poly([(26, 48), (38, 48), (42, 54), (42, 67), (22, 67), (22, 54)], c)
        pen.line([(27, 41), (27, 49)], c, 2.5)
        pen.line([(37, 41), (37, 49)], c, 2.5)
    elif outfit == "robe":
        pen.poly([(25, 41), (39, 41), (52, 68), (12, 68)], c)
        pen.poly([(30, 41), (34, 41), (36, 68), (28, 68)], second)
    elif outfit == "armor":
        pen.poly(torso, c)
        pen.oval(32 - w - 1, 45, 6, 5.5, second)
        pen.oval(32 + w + 1, 45, 6, 5.5, second)
        pen.poly([(22, 58), (42, 58), (42, 62), (22, 62)], second)
    elif outfit == "poncho":
        pen.poly([(32, 38), (54, 60), (43, 56), (32, 63), (21, 56), (10, 60)], c)
        pen.line([(17, 53), (24, 49), (32, 55), (40, 49), (47, 53)], second, 3)
    elif outfit == "striped tunic":
        pen.poly(torso, c)
        for y in (46, 53, 60):
            pen.poly([(32 - w, y), (32 + w, y), (32 + w, y + 3.5), (32 - w, y + 3.5)], second)
    else:  # emblem coat
        pen.poly([(32 - w - 1, 41), (32 + w + 1, 41), (32 + w + 3, 67), (32 - w - 3, 67)], c)
        pen.oval(32, 52, 6.5, 6.5, second)
        pen.poly([(32, 47), (36, 55), (28, 55)], c)


def _face(pen: Pen, v: dict[str, str], boy: bool) -> None:
    iris = pen.shade(EYES[v["eye_color"]])
    for side in (-1, 1):
        x, y = 32 + side * 6.2, 27.5
        pen.oval(x, y, 3.9, 4.4, INK if not boy else (70, 60, 66))
        pen.oval(x, y + 0.6, 3.3, 3.7, iris)
        pen.oval(x, y + 0.8, 1.2, 1.7, (20, 16, 24))
        pen.oval(x - 1.0, y - 1.4, 1.1, 1.1, (255, 255, 255))
        if boy:
            pen.line([(x - 4, 22.4), (x + 4, 22.4)], INK, 1.8)
        else:
            pen.line([(x - side * 2, y - 4), (x + side * 5, y - 3.2)], INK, 1.5)
            pen.oval(32 + side * 9.3, 32.6, 2.4, 1.5, (255, 130, 140))
    if v["expression"] == "smile":
        pen.line([(28, 33), (30, 35), (34, 35), (36, 33)], (150, 30, 40), 1.4)
    elif v["expression"] == "frown":
        pen.line([(28, 35.8), (30, 33.8), (34, 33.8), (36, 35.8)], (90, 20, 40), 1.4)
    else:
        pen.oval(32, 34.4, 2.8, 2.6, (170, 20, 40))


def _accessory(pen: Pen, name: str) -> None:
    if name == "glasses":
        for side in (-1, 1):
            x, y = 32 + side * 6.2, 27.5
            box = [*pen.at([(x - 5.6, y - 5.4)])[0], *pen.at([(x + 5.6, y + 5.4)])[0]]
            pen.draw.ellipse(box, outline=(20, 20, 20), width=max(1, round(1.3 * pen.unit)))
        pen.line([(31, 27), (33, 27)], (20, 20, 20), 1.3)
    elif name == "hat":
        pen.poly([(22, 16), (23, 4), (41, 4), (42, 16)], (96, 60, 30))
        pen.poly([(14, 15), (50, 15), (50, 18.5), (14, 18.5)], (96, 60, 30))
        pen.poly([(22.3, 12), (41.7, 12), (42, 15), (22, 15)], (220, 180, 90))
    elif name == "scarf":
        pen.poly([(23, 38), (41, 38), (43, 44), (21, 44)], (240, 120, 40))
        pen.poly([(36, 43), (42, 43), (42, 57), (36, 57)], (240, 120, 40))
    elif name == "bow":
        pen.poly([(40, 12), (33, 6), (33, 18)], (235, 40, 120))
        pen.poly([(40, 12), (47, 6), (47, 18)], (235, 40, 120))
        pen.oval(40, 12, 2, 2, (160, 10, 70))
