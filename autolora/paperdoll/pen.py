"""Draws shapes on a canvas of 64 units, and lists the colours."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
HAIR: dict[str, Color] = {
    "black": (38, 34, 44), "brown": (122, 74, 40), "blonde": (244, 214, 96), "red": (206, 44, 40),
    "blue": (48, 92, 214), "green": (52, 160, 76), "pink": (248, 146, 190), "white": (236, 236, 244),
    "orange": (250, 140, 20), "teal": (0, 190, 180), "magenta": (220, 20, 160),
}  # fmt: skip
EYES: dict[str, Color] = {
    "blue": (40, 90, 235), "green": (20, 160, 60), "red": (215, 25, 35), "yellow": (240, 190, 0),
    "purple": (150, 50, 200),
}  # fmt: skip
SKIN: dict[str, Color] = {"pale skin": (255, 226, 208), "tan skin": (222, 164, 112), "dark skin": (134, 84, 54)}
CLOTH: dict[str, Color] = {
    "red": (214, 40, 48), "blue": (44, 88, 210), "green": (44, 150, 70), "yellow": (246, 208, 50),
    "purple": (138, 62, 178), "white": (244, 244, 246), "black": (44, 42, 50),
}  # fmt: skip
MARK: dict[str, Color] = {
    "red": (190, 0, 30), "gold": (250, 190, 0), "teal": (0, 180, 170), "violet": (120, 40, 200),
    "black": (30, 20, 30), "blue": (20, 70, 230), "green": (0, 140, 40),
}  # fmt: skip
INK: Color = (46, 36, 44)


class Pen:
    """Draws shapes in coordinates of 64 units on a supersampled canvas; all are moved and scaled together."""

    def __init__(self, size: int, rng: random.Random, supersample: int = 4) -> None:
        self.unit = size * supersample / 64
        self.image = Image.new("RGB", (size * supersample, size * supersample), (255, 255, 255))
        self.draw = ImageDraw.Draw(self.image)
        self.dx, self.dy = rng.uniform(-2, 2), rng.uniform(-1.5, 1.5)
        self.scale = rng.uniform(0.95, 1.06)
        self.rng = rng

    def at(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Convert points in figure units to canvas pixels."""
        s, u = self.scale, self.unit
        return [(((x - 32) * s + 32 + self.dx) * u, ((y - 36) * s + 36 + self.dy) * u) for x, y in points]

    def shade(self, color: Color, amount: int = 9) -> Color:
        """Vary a colour slightly at random, so that no two drawings are equal."""
        r, g, b = (max(0, min(255, c + self.rng.randint(-amount, amount))) for c in color)
        return r, g, b

    def poly(self, points: Sequence[tuple[float, float]], fill: Color) -> None:
        """Draw a polygon."""
        self.draw.polygon(self.at(points), fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        """Draw an ellipse with a centre and two radii."""
        self.draw.ellipse([*self.at([(x - rx, y - ry)])[0], *self.at([(x + rx, y + ry)])[0]], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Color, width: float) -> None:
        """Draw a line through points."""
        self.draw.line(self.at(points), fill=fill, width=max(1, round(width * self.unit)), joint="curve")

    def backdrop(self, top: float, bottom: float, fill: Color) -> None:
        """Draw a band of full width between two heights, in canvas units, which are not moved and scaled."""
        self.draw.rectangle([0, top * self.unit, 64 * self.unit, bottom * self.unit], fill=fill)
