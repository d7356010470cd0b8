"""Takes the screenshots of a study's report and dashboard: python docs/screenshots.py runs/quickstart

Needs Debian's chromium and the packages of `.[dev]`.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from pathlib import Path
from wsgiref.simple_server import make_server

from optuna.trial import TrialState
from optuna_dashboard import wsgi
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from autolora.study.artifacts import TrialFiles, local_store
from autolora.study.optuna_internals import storage_of, study_id_of
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.storage import load_study_from_folder

DOCS = Path(__file__).parent
WINDOWS = {  # the size of the window, and its colour scheme
    "light": ((1280, 1860), "light"),
    "dark": ((1280, 1580), "dark"),
    "phone": ((390, 1750), "light"),
}
TIMEOUT = 180_000  # milliseconds


def save_screenshot(page: Page, target: Path) -> None:
    """Save what the window shows as a WebP file."""
    target.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(page.screenshot())).save(target, quality=85, method=6)
    print(target)


def screenshot_report(browser: Browser, folder: Path) -> None:
    """Write docs/report/light.webp, dark.webp and phone.webp."""
    for name, ((width, height), scheme) in WINDOWS.items():
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto((folder / "report" / "index.html").resolve().as_uri())
        page.locator("#pareto").scroll_into_view_if_needed()  # figures are drawn when they come near the window
        page.wait_for_selector("#pareto[data-drawn]", timeout=TIMEOUT)
        page.evaluate("scrollTo(0, 0)")
        save_screenshot(page, DOCS / "report" / f"{name}.webp")


def screenshot_dashboard(browser: Browser, folder: Path) -> None:
    """Write docs/dashboard/study.webp, trial.webp and, if the study has preferences, preference.webp."""
    study = load_study_from_folder(folder)
    storage = storage_of(study)
    save_plots(study, TrialFiles(folder / "trials"))
    server = make_server("127.0.0.1", 0, wsgi(storage, local_store(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/dashboard/studies"
    best = max(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.value or 0.0)
    plot, image = "text=Likeness against bleed", "img[src*=artifacts]"
    pages = {
        "study": (f"{study_id_of(study)}", plot),
        "trial": (f"{study_id_of(study)}/trials?numbers={best.number}", image),
    }
    for candidate in storage.get_all_studies():
        if candidate.study_name == f"{study.study_name}-preference":
            pages["preference"] = (f"{candidate._study_id}", image)
    for name, (path, expected) in pages.items():
        page = browser.new_page(viewport={"width": 1280, "height": 1500}, color_scheme="light")
        page.goto(f"{address}/{path}", timeout=TIMEOUT)
        page.wait_for_selector(expected, timeout=TIMEOUT)
        page.wait_for_load_state("networkidle", timeout=TIMEOUT)
        save_screenshot(page, DOCS / "dashboard" / f"{name}.webp")
    server.shutdown()


def main() -> None:
    """Take all screenshots of the study in the folder that the command line names."""
    folder = Path(sys.argv[1])
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        screenshot_report(browser, folder)
        screenshot_dashboard(browser, folder)


if __name__ == "__main__":
    main()
