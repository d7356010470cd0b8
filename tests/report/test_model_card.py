"""The model card holds prompt, weight, scores and sample images, and the licence of the base model if one is stated."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from autolora.paperdoll.weights import BASE
from autolora.report.model_card import CardConcept, CardSample, Licence, ModelCard, base_licence, write_model_card
from tests.report.made_up import estimate, face


def card() -> ModelCard:
    sample = CardSample("1girl, zorak <b>, fit_a", 7, 0.7, face("#f08a24", "#7b3fb0", True), "samples/1.png")
    return ModelCard(
        title="zorak",
        file="zorak.safetensors",
        verdict="good: 90% of renders pass",
        activation_text="1girl, zorak",
        triggers={"the character": "zorak", "fit a": "fit_a"},
        weight=0.7,
        base="paperdoll (weights abc)",
        family="stable-diffusion-v1",
        licence=Licence("apache-2.0", "Apache-2.0."),
        samples=(sample,),
        scorecard=(("bleed", estimate(0.05, 0.04), "0 is wanted"),),
        by_weight={"0.7": {name: estimate(0.5) for name in ("fidelity", "editability", "bleed_class")}},
        weaknesses=(),
        asked="likeness",
        concepts=(CardConcept("fit a", "fit_a", 11, 900),),
        validation=3,
        resolution=64,
        tags=("1girl", "zorak"),
        recipe="guide-adamw",
        step=900,
    )


def test_the_card_holds_what_a_user_needs(tmp_path: Path) -> None:
    text = write_model_card(card(), tmp_path).read_text("utf-8")
    for expected in (
        "`1girl, zorak, <lora:zorak:0.7>`",
        "0.05 (0.01 to 0.09)",
        "| `1girl, zorak <b>, fit_a` | 0.7 | 7 |",
        "Nothing else was tested",
        "11 images at 64 pixels; 3 more",
        "| fit a | `fit_a` | 11 | 900 |",
        'license: "apache-2.0"',
    ):
        assert expected in text, expected
    for linked in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (tmp_path / linked).is_file()
    assert text.startswith("---\n") and "Good: 90%" in text


def test_weaknesses_are_listed(tmp_path: Path) -> None:
    text = write_model_card(replace(card(), weaknesses=("bleeds at 1",)), tmp_path).read_text("utf-8")
    assert "- bleeds at 1" in text and "None was found" not in text


@pytest.mark.parametrize(
    ("name", "content", "licence", "words"),
    [
        (
            "README.md",
            "---\nlicense: creativeml-openrail-m\n---\n# x",
            "creativeml-openrail-m",
            "creativeml-openrail-m",
        ),
        ("LICENSE.txt", "\n# Fair AI Public License 1.0\n...", "", "Fair AI Public License 1.0"),
        ("README.md", "license: none of the front matter", "", "states no licence"),
        ("other", "", "", "states no licence"),
    ],
)
def test_licence_of_the_base(name: str, content: str, licence: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        stated = base_licence(source)
        assert stated.name == licence and words in stated.words


def test_the_packaged_base_model_states_its_licence() -> None:
    assert base_licence(BASE).name == "apache-2.0"
    assert "states no licence" in base_licence(None).words


def test_names_and_tags_of_others_are_no_html_and_break_no_table(tmp_path: Path) -> None:
    concept = replace(card().concepts[0], name="<img src=x>|\n# title", trigger="a`<b>`|c")
    text = write_model_card(replace(card(), concepts=(concept,), tags=("<script>",)), tmp_path).read_text()
    assert "| &lt;img src=x>\\| # title | `a'<b>'\\|c` |" in text and "<script>" not in text
