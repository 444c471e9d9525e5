"""A page in the system's Chromium: what it complains of, what it asks for, and what axe-core finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install one to look at the page")


def look_at(path: Path, width: int, scheme: Any, n_charts: int, use: Callable[[Any], None], screenshot: Path) -> None:
    """Open a page, wait for its charts, use it, and hold it to what every page of ours must be.

    No console message, no request that leaves it, no sideways scroll, nothing serious by axe-core.
    """
    sync = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    complaints: list[str] = []
    requests: list[str] = []
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        page = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function(f"document.querySelectorAll('.plot .main-svg').length >= {n_charts}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        use(page)
        page.screenshot(path=screenshot, full_page=True)
        found = axe.Axe().run(page).response["violations"]
        page.emulate_media(media="print")
        assert page.locator("nav").is_hidden()
        chromium.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [violation["id"] for violation in found if violation["impact"] in ("serious", "critical")] == []
    assert screenshot.stat().st_size > 50_000
