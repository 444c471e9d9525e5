"""The site is built, and a link or an anchor that leads nowhere ends the build."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from pages import needs_chromium, opened

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MKDOCS.is_file(), reason="needs the environment that `make docs` makes")]


def built(place: Path) -> subprocess.CompletedProcess[str]:
    command = [str(MKDOCS), "build", "-d", str(place / "site")]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("docs", "src", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_it_is_built_without_a_warning(copied):
    done = built(copied)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (copied / "site" / "retrofit.html").is_file()
    for page in (copied / "site").rglob("*.html"):
        paragraphs = re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL)
        assert not [text for text in paragraphs if re.search(r"\n([-*]|1\.) ", text)], f"{page.name}: a list that became a paragraph"


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_its_pages_in_a_browser(copied, width, scheme):
    """On a desktop and a phone: nothing is complained of or fetched from elsewhere, nothing scrolls sideways, every picture is there."""
    assert built(copied).returncode == 0
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=copied / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()  # ends with the process
        own = f"http://127.0.0.1:{server.server_port}/"
        for name in ("index", "retrofit", "demo", "results", "api", "audit", "heal", "limits", "decisions/README"):
            with opened(f"{own}{name}.html".replace("README", "index"), width, scheme, (own, "data:")) as watched:
                page = watched.page
                page.wait_for_load_state("networkidle")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                assert page.locator("h1").count() == 1, name
                assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), name
                assert watched.complaints == [], name
                assert [url for url in watched.requests if not url.startswith(watched.own)] == [], name


@needs_chromium
def test_its_links_work_from_the_folder_too(copied):
    assert built(copied).returncode == 0
    with opened((copied / "site" / "index.html").as_uri(), 1280, "light", ("file:", "data:")) as watched:
        watched.page.locator("article a", has_text="scan and audit").first.click()
        watched.page.wait_for_url("**/scan.html")
        assert watched.page.locator("h1").count() == 1


@pytest.mark.parametrize("link", ["policies.md#nothing-here", "nofile.md"])
def test_a_link_that_leads_nowhere_ends_it(link, copied):
    page = copied / "docs" / "demo.md"
    page.write_text(f"{page.read_text()}\n[x]({link})\n")
    done = built(copied)
    assert done.returncode != 0
    assert link in done.stderr
