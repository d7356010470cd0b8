"""Photographs a report for the README: python docs/screenshots.py runs/quickstart/report/index.html

Needs Debian's chromium and the packages of `.[dev]`.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SHOTS = {  # viewport, and whether the colours are dark
    "light": ((1280, 1860), "light"),
    "dark": ((1280, 1580), "dark"),
    "phone": ((390, 1750), "light"),
}


def main() -> None:
    """Write docs/report/light.webp, dark.webp and phone.webp."""
    page_address = Path(sys.argv[1]).resolve().as_uri()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, ((width, height), scheme) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(page_address)
            page.wait_for_selector("#pareto[data-drawn]", timeout=180_000)
            target = Path(__file__).parent / "report" / f"{name}.webp"
            Image.open(io.BytesIO(page.screenshot())).save(target, quality=85, method=6)
            print(target)


if __name__ == "__main__":
    main()
