"""A page in the system's Chromium: what it complains of, what it asks for, and what axe-core finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install one to look at the page")


@dataclass
class Watched:
    """An open page, and what it said and asked for so far."""

    page: Any
    width: int
    own: tuple[str, ...]  # how addresses begin that it may ask for
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self, screenshot: Path) -> None:
        """What every page of ours must be: no console message, no request that leaves it, no sideways scroll, nothing serious by axe."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width
        self.page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")  # half lit has too little contrast
        self.page.screenshot(path=screenshot, full_page=True)
        found = axe.Axe().run(self.page).response["violations"]
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(self.own)] == []
        serious = [violation["id"] for violation in found if violation["impact"] in ("serious", "critical")]
        assert not serious, serious


@contextmanager
def opened(url: str, width: int, scheme: Any, own: tuple[str, ...]) -> Iterator[Watched]:
    """The page at an address, for as long as this is open."""
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        page = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
        watched = Watched(page, width, own)
        page.on("console", lambda message: watched.complaints.append(message.text))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", lambda request: watched.requests.append(request.url))
        page.goto(url)
        yield watched
        chromium.close()


def look_at(path: Path, width: int, scheme: Any, n_charts: int, use: Callable[[Any], None], screenshot: Path) -> None:
    """Open a report, count its charts, use it, and check it."""
    with opened(path.as_uri(), width, scheme, ("file:", "data:", "blob:")) as watched:
        page = watched.page
        assert page.locator("figure img").count() >= n_charts
        use(page)
        watched.check(screenshot)
        page.emulate_media(media="print")
        assert page.locator("nav").is_hidden()
    assert screenshot.stat().st_size > 50_000
