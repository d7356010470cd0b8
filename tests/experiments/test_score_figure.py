"""The README's figure of the score: what is drawn is what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

from PIL import Image

from autolora.evaluation.result import CheckpointResult
from experiments.figures.score import ROWS, Shown, draw, lines_of

SVG = "{http://www.w3.org/2000/svg}"


def shown(name: str, fidelity: float, bleed: float, broken: dict[str, float]) -> Shown:
    figures = {"fidelity": fidelity, "editability": 0.9, "bleed_class": bleed}
    terms = {term: {"value": value, "low": value - 0.1, "high": value + 0.1} for term, value in figures.items()}
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    point = CheckpointResult(100, 0.1, 0.1, [], 0.5, score, by_weight={"1": terms}, constraints=broken)
    return Shown(name, [Image.new("RGB", (8, 8))] * len(ROWS), point)


def test_the_figure_says_what_was_measured() -> None:
    base = Shown("base model", [Image.new("RGB", (8, 8))] * len(ROWS), None)
    guide, best = shown("guide", 0.95, 0.62, {"bleed_class": 0.5}), shown("exported", 0.91, 0.0, {"bleed_class": -0.1})
    prompts = ["1girl, mona", "1girl, mona, hat", "1girl & co"]
    root = ElementTree.fromstring(draw(prompts, [base, guide, best], 0.15))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert len(list(root.iter(f"{SVG}image"))) == 3 * len(ROWS)
    assert {"95%", "62%", "91%", "0%", "1girl & co"} <= set(words)
    assert "guide: 0.50 (0.40 to 0.60), breaks bleed_class" in words
    assert "exported: 0.50 (0.40 to 0.60), breaks no limit" in words
    widths = [float(rect.get("width", 0)) for rect in root.iter(f"{SVG}rect")]
    assert all(0 < width <= 980 for width in widths)


def test_a_prompt_breaks_between_its_tags() -> None:
    assert lines_of("1girl, mona, mona dress, smile, city", 14) == ["1girl, mona,", "mona dress,", "smile, city"]
