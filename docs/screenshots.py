"""Photographs a study's report and its dashboard for the README: python docs/screenshots.py runs/quickstart

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
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.storage import load_study_from_folder

DOCS = Path(__file__).parent
SHOTS = {  # viewport, and whether the colours are dark
    "light": ((1280, 1860), "light"),
    "dark": ((1280, 1580), "dark"),
    "phone": ((390, 1750), "light"),
}


def keep(page: Page, target: Path) -> None:
    """A photograph of what is in the window."""
    target.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(page.screenshot())).save(target, quality=85, method=6)
    print(target)


def report(browser: Browser, folder: Path) -> None:
    """Write docs/report/light.webp, dark.webp and phone.webp."""
    for name, ((width, height), scheme) in SHOTS.items():
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto((folder / "report" / "index.html").resolve().as_uri())
        page.wait_for_selector("#pareto[data-drawn]", timeout=180_000)
        keep(page, DOCS / "report" / f"{name}.webp")


def dashboard(browser: Browser, folder: Path) -> None:
    """Write docs/dashboard/study.webp, trial.webp and, where a person was asked, preference.webp."""
    study = load_study_from_folder(folder)
    save_plots(study, TrialFiles(folder / "trials"))
    server = make_server("127.0.0.1", 0, wsgi(study._storage, local_store(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/dashboard/studies"
    best = max(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.value or 0.0)
    plot, picture = "text=Likeness against bleed", "img[src*=artifacts]"
    pages = {
        "study": (f"{study._study_id}", plot),
        "trial": (f"{study._study_id}/trials?numbers={best.number}", picture),
    }
    for other in study._storage.get_all_studies():
        if other.study_name == f"{study.study_name}-preference":
            pages["preference"] = (f"{other._study_id}", picture)
    for name, (path, shown) in pages.items():
        page = browser.new_page(viewport={"width": 1280, "height": 1500}, color_scheme="light")
        page.goto(f"{address}/{path}", timeout=180_000)
        page.wait_for_selector(shown, timeout=180_000)
        page.wait_for_load_state("networkidle", timeout=180_000)
        keep(page, DOCS / "dashboard" / f"{name}.webp")
    server.shutdown()


def main() -> None:
    """Photograph both."""
    folder = Path(sys.argv[1])
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        report(browser, folder)
        dashboard(browser, folder)


if __name__ == "__main__":
    main()
