"""The page in a browser: images load, figures are drawn, sliders work, nothing is fetched, axe finds no fault."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from autolora.report.figures.curves import schedules
from autolora.report.page import write_report
from autolora.report.tables import Section, write_page
from tests.report.made_up import report

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def draw_all(page: Page) -> None:
    """Open everything that is folded and scroll to each figure, which draws it."""
    page.eval_on_selector_all("details", "all => all.forEach(details => { details.open = true; })")
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
    page.wait_for_function("() => !document.querySelector('.plot:not([data-drawn])')", timeout=60_000)
    page.evaluate("scrollTo(0, 0)")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(report(), tmp_path_factory.mktemp("page") / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page on a wide screen, with a list of its requests and one of its errors."""
    opened = browser.new_page(viewport=SIZES["wide"])  # type: ignore[arg-type]
    opened.requests, opened.complaints = [], []  # type: ignore[attr-defined]
    opened.on("request", lambda request: opened.requests.append(request.url))  # type: ignore[attr-defined]
    opened.on("console", lambda message: opened.complaints.append(message.text))  # type: ignore[attr-defined]
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))  # type: ignore[attr-defined]
    opened.goto(address)
    draw_all(opened)
    yield opened
    opened.close()


def sources(page: Page, column: int) -> list[str]:
    """The images of a column."""
    return page.eval_on_selector_all(f'[data-column="{column}"] img', "all => all.map(image => image.src)")


def slide(page: Page, slider: str, value: int) -> None:
    page.eval_on_selector(slider, f"input => {{ input.value = {value}; input.dispatchEvent(new Event('input')); }}")


def test_every_image_loads(page: Page) -> None:
    sizes = page.eval_on_selector_all("img", "all => all.map(image => image.complete && image.naturalWidth)")
    assert len(sizes) > 25
    assert all(sizes)


def test_nothing_is_fetched_and_nothing_goes_wrong(page: Page) -> None:
    slide(page, "#step", 0)
    page.hover("#pareto")
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []  # type: ignore[attr-defined]
    assert sum(url.startswith("file:") for url in page.requests) == 1  # type: ignore[attr-defined]
    assert page.complaints == []  # type: ignore[attr-defined]


def test_sliders_show_checkpoints_and_weights(page: Page) -> None:
    slide(page, "#weight", 0)
    base, weak = sources(page, 0), sources(page, 2)
    assert "at weight 0.4" in page.inner_text("#selection")
    assert page.inner_text('[data-column="2"] .at') == "1400 images, weight 0.4"
    slide(page, "#weight", 5)
    assert sources(page, 2)[:3] != weak[:3]
    slide(page, "#step", 0)
    early = sources(page, 1)
    assert "after 200 images shown" in page.inner_text("#selection")
    slide(page, "#step", 7)
    assert page.inner_text('[data-column="1"] .at') == "1600 images, weight 1"
    assert all(a != b for a, b in zip(sources(page, 1), early, strict=True))
    assert sources(page, 0) == base


def test_sliders_follow_the_keyboard(page: Page) -> None:
    page.focus("#step")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#step", "aria-valuetext") == "400 images shown"


def test_another_recipe_to_compare_with(page: Page) -> None:
    page.select_option("#compare", "2")
    assert page.inner_text('[data-column="1"] .model') == "guide-prodigy, unchanged"
    page.select_option("#compare", "1")


def test_pointing_at_a_checkpoint_shows_it(page: Page) -> None:
    before = page.inner_text("#selected h3")
    page.locator("#pareto").scroll_into_view_if_needed()
    x, y = page.eval_on_selector(
        "#pareto .scatterlayer .trace:nth-child(2) .points path:nth-child(3)",
        "point => { const r = point.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }",
    )
    page.mouse.move(x - 5, y)
    page.mouse.move(x, y)
    page.wait_for_function("before => document.querySelector('#selected h3').textContent !== before", arg=before)
    assert "600 images" in page.inner_text("#selected h3")
    assert "bleed" in page.inner_text("#selected dl")


def test_checkpoints_can_be_stepped_through_without_a_mouse(page: Page) -> None:
    page.focus("#checkpoint")
    page.keyboard.press("Home")
    assert page.inner_text("#selected h3") == "trial 0, guide-adamw, 200 images"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#selected h3") == "trial 0, guide-adamw, 400 images"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_never_wider_than_the_screen(browser: Browser, address: str, size: str, scheme: str) -> None:
    opened = browser.new_page(viewport=SIZES[size], color_scheme=scheme)  # type: ignore[arg-type]
    opened.goto(address)
    draw_all(opened)
    found = Axe().run(opened).response["violations"]
    grave = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    wider = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    opened.close()
    assert grave == []
    assert wider <= 0


def test_figures_are_drawn_when_they_come_near(browser: Browser, address: str) -> None:
    opened = browser.new_page(viewport=SIZES["phone"])  # type: ignore[arg-type]
    opened.goto(address)
    opened.wait_for_timeout(300)
    assert opened.locator(".plot[data-drawn]").count() == 0
    assert not opened.evaluate("'Plotly' in window")
    opened.locator("#pareto").scroll_into_view_if_needed()
    opened.wait_for_selector("#pareto[data-drawn] .scatterlayer", timeout=60_000)
    assert opened.locator(".more .plot[data-drawn]").count() == 0
    opened.close()


def test_figures_show_the_curves_the_limit_and_the_marks(page: Page) -> None:
    guide = page.locator('.plot[aria-label^="Learning curve of trial 0,"]')
    assert guide.locator(".scatterlayer .trace").count() == 4 + 4 + 1  # bands, lines and the best checkpoint
    words = "".join(guide.locator("svg").all_text_contents())
    for expected in ("overcooked from 400", "images shown", "score", "fidelity", "editability", "bleed"):
        assert expected in words, expected
    assert guide.locator(".shapelayer path").count() == 3  # the region, its edge and the limit
    assert page.locator(".plot > .hint").count() == 0


def test_a_page_of_sections_draws_its_figure_too(browser: Browser, tmp_path: Path) -> None:
    figure = schedules({"guide": [(0, 1.0), (9, 0.0)]})
    path = write_page("zorak", [], [Section("Learning rate", (), (), figure=figure)], tmp_path / "check.html")
    opened = browser.new_page(viewport=SIZES["phone"])  # type: ignore[arg-type]
    opened.goto(path.as_uri())
    opened.wait_for_selector(".plot[data-drawn] .js-line", timeout=60_000)
    assert "guide" in "".join(opened.locator(".plot svg").all_text_contents())
    opened.close()


@pytest.mark.parametrize(("scheme", "colour"), [("light", "rgb(31, 95, 196)"), ("dark", "rgb(134, 180, 255)")])
def test_figures_follow_light_and_dark(browser: Browser, address: str, scheme: str, colour: str) -> None:
    opened = browser.new_page(viewport=SIZES["wide"], color_scheme="dark" if scheme == "light" else "light")  # type: ignore[arg-type]
    opened.goto(address)
    draw_all(opened)
    opened.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    line = ".plot[aria-label^='Learning'] .trace:nth-child(6) .js-line"
    opened.wait_for_function(
        "([line, colour]) => getComputedStyle(document.querySelector(line)).stroke === colour", arg=[line, colour]
    )
    opened.close()


def test_without_script_the_images_the_numbers_and_a_note_are_there(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(address)
    assert opened.locator("#gallery img[src]").count() > 3
    assert opened.locator(".verdict").is_visible()
    assert "needs JavaScript" in opened.locator("#pareto").inner_text()
    opened.locator(".numbers summary").first.click()
    assert opened.locator(".numbers table").first.is_visible()
    context.close()


def test_a_study_of_fifty_trials_stays_small(tmp_path: Path) -> None:
    """Every checkpoint has images of its own, as detailed as renders are."""
    from tests.report.made_up import large_report

    assert write_report(large_report(), tmp_path / "index.html").stat().st_size < 15e6
