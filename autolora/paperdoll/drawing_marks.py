"""Draws the marks of a novel character: the crest on the head and the mark on the face."""

from __future__ import annotations

from autolora.paperdoll.look import Marks
from autolora.paperdoll.pen import MARK, Color, Pen


def draw_halo(pen: Pen, color: Color) -> None:
    """Draw a halo, which is behind the head."""
    pen.oval(32, 7, 15, 5.5, color)
    pen.oval(32, 7, 11, 2.6, (255, 255, 255))


def draw_crest(pen: Pen, marks: Marks) -> None:
    """Draw horns, ears, antlers or antennae on the head."""
    color = pen.shade(MARK[marks.crest_color], 5)
    for side in (-1, 1):

        def p(x: float, y: float, side: int = side) -> tuple[float, float]:
            return 32 + side * x, y

        if marks.crest == "horns":
            pen.poly([p(6, 14), p(13, 16), p(15, 3)], color)
        elif marks.crest == "cat ears":
            pen.poly([p(4, 13), p(15, 19), p(16.5, 4)], color)
            pen.poly([p(8, 13), p(13, 15.5), p(14, 8)], (255, 190, 200))
        elif marks.crest == "antlers":
            pen.line([p(6, 14), p(10, 8), p(17, 7)], color, 2.4)
            pen.line([p(10, 9), p(9, 2)], color, 2.4)
            pen.line([p(14, 8), p(15, 2)], color, 2.4)
        elif marks.crest == "antennae":
            pen.line([p(3, 13), p(7, 5)], color, 1.8)
            pen.oval(*p(7.5, 4), 3.2, 3.2, color)


def draw_face_mark(pen: Pen, marks: Marks) -> None:
    """Draw the mark on the face."""
    color = pen.shade(MARK[marks.face_mark_color], 5)
    if marks.face_mark == "star":
        x, y = 41.5, 32.5
        pen.poly(
            [
                (x, y - 4.5),
                (x + 1.4, y - 1.4),
                (x + 4.4, y),
                (x + 1.4, y + 1.4),
                (x, y + 4.5),
                (x - 1.4, y + 1.4),
                (x - 4.4, y),
                (x - 1.4, y - 1.4),
            ],
            color,
        )
    elif marks.face_mark == "cross":
        pen.line([(20, 29.5), (25, 35.5)], color, 2)
        pen.line([(25, 29.5), (20, 35.5)], color, 2)
    elif marks.face_mark == "stripes":
        for side in (-1, 1):
            pen.line([(32 + side * 7, 33), (32 + side * 12, 31.6)], color, 1.5)
            pen.line([(32 + side * 7, 36), (32 + side * 11, 35)], color, 1.5)
    elif marks.face_mark == "diamond":
        pen.poly([(32, 16.5), (35, 21), (32, 25.5), (29, 21)], color)
