"""The page shows its report, needs no network, and holds no markup from names and prompts."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autolora.report.figures.comparison import ComparedTrial
from autolora.report.figures.curves import schedules
from autolora.report.figures.theme import TERM_NAMES
from autolora.report.formatting import duration, format_estimate, number, parameters
from autolora.report.image_store import ImageStore, data_uri, thumbnail_uri
from autolora.report.page import render_page, write_report
from autolora.report.schema import Column, CurvePoint, Gallery, Pair, Report, Reproduction, Sample, TrialRow
from autolora.report.selection import compared_trials, ranked_trials
from autolora.report.tables import Section, write_page
from tests.report.made_up import render_like, report

VOID = {"meta", "link", "img", "br", "input"}
QUIET = ("style", "title", "script")


class Outline(HTMLParser):
    """Checks that every tag is closed in turn, and collects words and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in QUIET:
            self.words.append(data)


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    assert not found.open
    return found


def text(page: str) -> str:
    return " ".join(" ".join(outline(page).words).split())


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(report())


def test_everything_is_inside(page: str) -> None:
    assert outline(page).addresses
    assert all(address.startswith(("data:", "#")) for address in outline(page).addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script src" not in page
    assert not re.search(r"https?://", page)


def test_what_a_reader_looks_for(page: str) -> None:
    words = text(page)
    for wanted in (
        "Exported trial 3",
        "quickstart-zorak.safetensors",
        "12 min 14 s",
        "7 trials : 5 complete, 1 pruned, 1 failed".replace(" :", ":"),
        "autolora tune quickstart",
        "1girl, zorak, <lora:quickstart-zorak:0.7>",
        "overcooked from 400",
        "pruned: behind three quarters of the trials at 800 images",
        "With the trigger",
        "this should stay the base model's",
        "With and without the trigger",
        "passes for fit_b",
        "importance 0.30 (0.10 to 0.50)",
        "2.9 training runs of the longest baseline",
        "class images",
        "--network_dim=16",
        "autolora train recipe=guide-adamw adapter.dim=16",
        "What was stopped, and why",
        "The second guide recipe is a tie",
    ):
        assert wanted in words, wanted
    assert page.count("<img ") == 5 * 3 + 2 * 4 + 2 + 4


def figures(page: str) -> dict[str, dict[str, Any]]:
    """The figures of a page by the words that are read out instead of them."""
    found = re.findall(r'<div class="plot".*?aria-label="([^"]*)".*?<script[^>]*json">(.*?)</script>', page, re.DOTALL)
    return {label: json.loads(content) for label, content in found}


def test_overcooking_and_best_points_are_marked(page: str) -> None:
    guide = figures(page)["Learning curve of trial 0, guide-adamw; overcooked from 400 images"]
    assert [shape["name"] for shape in guide["layout"]["shapes"]].count("overcooked") == 1
    assert [trace["x"] for trace in guide["data"] if trace["name"] == "best checkpoint"] == [[200]]
    hopeless = figures(page)["Learning curve of trial 4, guide-prodigy"]
    assert "overcooked" not in [shape["name"] for shape in hopeless["layout"]["shapes"]]


def test_every_figure_is_drawn_once_and_its_numbers_are_in_a_table(page: str) -> None:
    shown, whole = figures(page), report()
    assert len(shown) == page.count('class="plot"') == 1 + 1 + 6 + 1 + 3  # bars, Pareto, curves, overview, effects
    assert page.count('id="plotly"') == page.count('id="figure-theme"') == 1
    words = text(page)
    for trial in whole.trials:
        for point in trial.curve:
            cells = [f"{point.at:g}", *(format_estimate(point.terms[term]) for term in TERM_NAMES)]
            assert " ".join(cells) in words
    for effect in whole.effects:
        for trial_number, value, score in zip(effect.trials, effect.values, effect.scores, strict=True):
            assert f"{trial_number} {number(value)} {format_estimate(score)}" in words
    for compared in compared_trials(whole):
        cells = [format_estimate(compared.terms[term]) + end(compared, term) for term in TERM_NAMES]
        assert f"{compared.name} {' '.join(cells)}" in words


def end(compared: ComparedTrial, term: str) -> str:
    return f", {compared.ends[term]:.2f} at the end of training" if term in compared.ends else ""


def test_what_others_typed_is_text() -> None:
    bad = "<img src=x onerror=alert(1)>"
    picture = Image.new("RGB", (8, 8))
    own = Gallery((Sample(bad, 1, bad),), (Column(bad, {0: (picture,)}), Column(bad, {1: (picture,)}, step=1)))
    trial = TrialRow(0, "u", bad, {bad: bad}, "failed", reason=bad, broken=(bad,))
    scored = replace(report().trials[0], recipe=bad)
    hostile = Report(
        bad, bad, bad, 1.0, (trial, replace(scored, number=1)), own, (Pair(bad, bad, 1, {bad: picture}),),
        best=1, baselines={bad: 0}, export_path=Path(bad), command=bad, model=bad, activation_text=bad, weight=0.5,
        class_word=bad, max_bleed=0.15, notes=(bad,), reproduction=Reproduction(bad, bad, bad, (bad,), {bad: bad}),
    )  # fmt: skip
    page = render_page(hostile)
    assert "<img src=x" not in page
    outline(page)


@pytest.mark.parametrize(
    "given",
    [
        Report("empty", "nothing ran yet", "zorak", 0.0, ()),
        Report("failed", "all failed", "zorak", 3.0, (TrialRow(0, "u", "guide", {}, "failed", reason="no memory"),)),
        replace(report(), best=None, export_path=None, baselines={}, gallery=None, max_bleed=None, weight=None),
        replace(report(), best=99, baselines={"gone": 98}),
    ],
)
def test_unfinished_studies_have_a_page_too(given: Report) -> None:
    assert given.verdict[1:] in text(render_page(given))


def test_values_that_are_not_finite() -> None:
    nan = float("nan")
    curve = (CurvePoint(10, 0.1, 0.2, 0.9, 0.0), CurvePoint(20, nan, nan, float("inf"), nan))
    page = render_page(Report("s", "v", "d", 1.0, (TrialRow(0, "u", "guide", {}, "failed", curve=curve),)))
    packed = r'base64,[^"]*|<script type="text/plain".*?</script>'
    assert "nan" not in re.sub(packed, "", page).lower()


def test_order_of_the_table() -> None:
    assert [trial.number for trial in ranked_trials(report())] == [3, 1, 2, 5, 4, 0, 6]


def test_baselines_show_where_they_ended() -> None:
    exported, guide, _ = compared_trials(report())
    assert (exported.name, guide.name) == ("exported", "guide-adamw")
    assert not exported.ends
    assert guide.ends["bleed_class"] == report().trials[0].curve[-1].bleed_class
    assert guide.terms["bleed_class"].value < 0.15 < guide.ends["bleed_class"]


def test_parameter_names() -> None:
    drawn = {
        "guide/adapter.dim": 8,
        "guide/optimizer.lr": 0.0003,
        "guide/train.scale_weight_norms": None,
        "guide/other.lr": 1.0,
    }
    assert parameters(drawn) == [
        ("adapter.dim", "dim", "8"),
        ("optimizer.lr", "optimizer.lr", "3e-4"),
        ("train.scale_weight_norms", "scale_weight_norms", "none"),
        ("other.lr", "other.lr", "1"),
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.23456, "1.23"), (1e-4, "1e-4"), (3.2145e-4, "3.21e-4"), (0.05, "0.05"), (2.0, "2"), (16, "16"), ("a", "a")],
)
def test_number(value: object, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (734.2, "12 min 14 s"), (7261, "2 h 1 min")]
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_small_images_are_lossless_and_large_ones_light() -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    kept = Image.open(io.BytesIO(base64.b64decode(data_uri(noise).partition(",")[2])))
    assert kept.tobytes() == noise.tobytes()
    large = Image.effect_noise((512, 512), 90)
    assert len(data_uri(large)) < len(data_uri(large.resize((128, 128)))) * 16
    render = render_like(0, 64)
    assert len(thumbnail_uri(render)) < len(data_uri(render))


def test_an_image_is_stored_once() -> None:
    store, image = ImageStore(), Image.new("RGB", (8, 8), "red")
    store.add(Image.new("RGB", (8, 8), "blue"))
    first, again = store.show(image, "a <b>"), store.show(image.copy(), "again")
    assert "base64" in first and "a &lt;b&gt;" in first
    assert "base64" not in again
    assert len(store.rest()) == 1


def test_a_running_study_looks_for_news() -> None:
    assert '<meta http-equiv="refresh" content="20">' in render_page(replace(report(), refresh_seconds=20))
    assert "http-equiv" not in render_page(report())


def test_written_whole(tmp_path: Path) -> None:
    path = write_report(report(), tmp_path / "report" / "index.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [child.name for child in path.parent.iterdir()] == ["index.html"]


def test_unknown_state() -> None:
    with pytest.raises(ValueError, match="state"):
        TrialRow(0, "u", "guide", {}, "done")


def test_a_trial_that_was_handed_back_is_waiting() -> None:
    whole = report()
    handed_back = replace(whole.trials[-1], number=99, uid="abc", state="waiting", curve=(), score=None)
    words = text(render_page(replace(whole, trials=(*whole.trials, handed_back))))
    assert "1 waiting" in words


def test_a_page_of_sections_holds_its_figure(tmp_path: Path) -> None:
    plain = Section("Cost", ("a", "b"), ((1, None), (2, "<b>")), ("a note",), Image.new("RGB", (8, 8)))
    page = write_page("zorak", ["a fact"], [plain], tmp_path / "plain.html").read_text("utf-8")
    assert "a note" in text(page) and "&lt;b&gt;" in page and page.count("<img") == 1
    assert 'id="plotly"' not in page
    drawn = replace(plain, figure=schedules({"guide": [(0, 1.0), (9, 0.0)]}))
    page = write_page("zorak", ["a fact"], [drawn, plain], tmp_path / "drawn.html").read_text("utf-8")
    (figure,) = figures(page).values()
    assert figure["data"][0]["x"] == [0, 9] and page.count('id="plotly"') == 1
    assert all(address.startswith("data:") for address in outline(page).addresses)
