"""Every page of the documentation: links and anchors lead somewhere, named files exist, lines are short."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOP = ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY", "results/README")
PAGES = sorted([*(ROOT / f"{name}.md" for name in TOP), *(ROOT / "docs").rglob("*.md")])
CODE = sorted(path for folder in ("src", "research", "benchmarks", "tests", "examples", "tools") for path in (ROOT / folder).rglob("*.py"))
WIDTH = 160  # characters, but for tables
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/.-])((?:src|research|tests|benchmarks|docs|examples|configs|tools|results)/[\w./*@-]*[\w*])")


def prose(page: Path) -> list[tuple[int, str]]:
    """Lines outside of code fences, with their numbers."""
    lines, is_code = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            lines.append((number, line))
    return lines


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = [line.lstrip("#").strip() for _, line in prose(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_anchors_and_named_files_lead_somewhere(page):
    for number, line in prose(page):
        for target in LINK.findall(line):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), f"{page.name}:{number}: no file {target}"
            assert not anchor or anchor in anchors(place), f"{page.name}:{number}: no heading {target}"
        for name in FILE.findall(line):
            assert any(ROOT.glob(name.rstrip("/"))), f"{page.name}:{number}: no file {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page):
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    long = [number for number, line in lines if len(line) > WIDTH and not line.startswith("|")]
    assert not long, f"{page.name}: lines {long} are over {WIDTH} characters"


def test_files_that_the_code_names_are_there():
    lost = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in CODE
        if path.parent != Path(__file__).parent
        for name in FILE.findall(path.read_text(encoding="utf-8"))
        if not any(ROOT.glob(name.rstrip("/")))
    ]
    assert not lost


def test_every_decision_stands_in_the_index():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")
    dates = [name[:10] for name in listed]
    assert dates == sorted(dates, reverse=True), "newest first"


def test_the_citation_is_of_this_version_and_names_the_papers_authors():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    (paper,) = cited["references"]
    assert paper["url"].endswith("2510.12773")
    assert all({"given-names", "family-names"} <= author.keys() for author in paper["authors"])


def test_the_stored_results_stay_small():
    """A clone holds them all: 15 MB in 120 files at most."""
    sizes = [path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(sizes) <= 15e6, f"results/ holds {sum(sizes) / 1e6:.0f} MB"
    assert len(sizes) <= 120, f"results/ holds {len(sizes)} files"
