"""The figure of the score shows what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

from PIL import Image

from autolora.evaluation.result import CheckpointResult
from experiments.figures.score import ROWS, Column, draw, lines_of

SVG = "{http://www.w3.org/2000/svg}"


def column(name: str, fidelity: float, bleed: float, broken: dict[str, float]) -> Column:
    figures = {"fidelity": fidelity, "editability": 0.9, "bleed_class": bleed}
    terms = {term: {"value": value, "low": value - 0.1, "high": value + 0.1} for term, value in figures.items()}
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    result = CheckpointResult(100, 0.1, 0.1, [], 0.5, score, by_weight={"1": terms}, constraints=broken)
    return Column(name, [Image.new("RGB", (8, 8))] * len(ROWS), result)


def test_the_figure_shows_the_measured_figures() -> None:
    base = Column("base model", [Image.new("RGB", (8, 8))] * len(ROWS), None)
    guide, best = (
        column("guide", 0.95, 0.62, {"bleed_class": 0.5}),
        column("exported", 0.91, 0.0, {"bleed_class": -0.1}),
    )
    prompts = ["1girl, mona", "1girl, mona, hat", "1girl & co"]
    root = ElementTree.fromstring(draw(prompts, [base, guide, best], 0.15))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert len(list(root.iter(f"{SVG}image"))) == 3 * len(ROWS)
    assert {"95%", "62%", "91%", "0%", "1girl & co"} <= set(texts)
    assert "guide: 0.50 (0.40 to 0.60), breaks bleed_class" in texts
    assert "exported: 0.50 (0.40 to 0.60), breaks no limit" in texts
    widths = [float(rect.get("width", 0)) for rect in root.iter(f"{SVG}rect")]
    assert all(0 < width <= 980 for width in widths)


def test_a_prompt_breaks_between_its_tags() -> None:
    assert lines_of("1girl, mona, mona dress, smile, city", 14) == ["1girl, mona,", "mona dress,", "smile, city"]
