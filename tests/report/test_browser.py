"""The page as a browser shows it: pictures load, sliders and hover work, nothing is fetched, axe finds no fault."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from autolora.report.page import write_report
from tests.report.made_up import report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
DRAWN = "#pareto[data-drawn]"


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
    """The page on a wide screen; whatever it asks for or complains of is kept."""
    opened = browser.new_page(viewport=SIZES["wide"])  # type: ignore[arg-type]
    opened.requests, opened.complaints = [], []  # type: ignore[attr-defined]
    opened.on("request", lambda request: opened.requests.append(request.url))  # type: ignore[attr-defined]
    opened.on("console", lambda said: opened.complaints.append(said.text))  # type: ignore[attr-defined]
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))  # type: ignore[attr-defined]
    opened.goto(address)
    opened.wait_for_selector(DRAWN, timeout=60_000)
    yield opened
    opened.close()


def sources(page: Page, column: int) -> list[str]:
    """The pictures of a column."""
    return page.eval_on_selector_all(f'[data-column="{column}"] img', "all => all.map(one => one.src)")


def slide(page: Page, slider: str, value: int) -> None:
    page.eval_on_selector(slider, f"one => {{ one.value = {value}; one.dispatchEvent(new Event('input')); }}")


def test_every_picture_loads(page: Page) -> None:
    sizes = page.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth)")
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
    assert "at weight 0.4" in page.inner_text("#shown")
    assert page.inner_text('[data-column="2"] .at') == "step 1400, weight 0.4"
    slide(page, "#weight", 5)
    assert sources(page, 2)[:3] != weak[:3]
    slide(page, "#step", 0)
    early = sources(page, 1)
    assert "after 200 images shown" in page.inner_text("#shown")
    slide(page, "#step", 7)
    assert page.inner_text('[data-column="1"] .at') == "step 1600, weight 1"
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
    before = page.inner_text("#hovered h3")
    page.locator("#pareto").scroll_into_view_if_needed()
    x, y = page.eval_on_selector(
        "#pareto .scatterlayer .trace:nth-child(2) .points path:nth-child(3)",
        "one => { const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }",
    )
    page.mouse.move(x - 5, y)
    page.mouse.move(x, y)
    page.wait_for_function("before => document.querySelector('#hovered h3').textContent !== before", arg=before)
    assert "step 600" in page.inner_text("#hovered h3")
    assert "bleed" in page.inner_text("#hovered dl")


def test_checkpoints_can_be_stepped_through_without_a_mouse(page: Page) -> None:
    page.focus("#checkpoint")
    page.keyboard.press("Home")
    assert page.inner_text("#hovered h3") == "trial 0, guide-adamw, step 200"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#hovered h3") == "trial 0, guide-adamw, step 400"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_never_wider_than_the_screen(browser: Browser, address: str, size: str, scheme: str) -> None:
    opened = browser.new_page(viewport=SIZES[size], color_scheme=scheme)  # type: ignore[arg-type]
    opened.goto(address)
    opened.wait_for_selector(DRAWN, timeout=60_000)
    found = Axe().run(opened).response["violations"]
    grave = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    wider = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    opened.close()
    assert grave == []
    assert wider <= 0


def test_without_script_the_pictures_are_there(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(address)
    assert opened.locator("#gallery img[src]").count() > 3
    assert opened.locator(".verdict").is_visible()
    context.close()


def test_a_study_of_fifty_trials_stays_small(tmp_path: Path) -> None:
    """Every checkpoint with pictures of its own, as detailed as renders are."""
    from tests.report.made_up import large_report

    assert write_report(large_report(), tmp_path / "index.html").stat().st_size < 15e6
