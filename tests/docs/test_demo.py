"""The page and the picture of the demo show what the script in the repository runs, on the policy in the repository."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "examples" / "demo.sh").read_text(encoding="utf-8")
POLICY = ROOT / "examples" / "smollm2-135m-27-of-30"
PRINTED = PAGE.partition("```\n")[2].partition("\n```")[0].splitlines()


def shown() -> list[str]:
    """The lines of the picture."""
    picture = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    rows: dict[float, str] = {}
    for y, text in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', picture):
        rows[float(y)] = rows.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return [rows[y].rstrip() for y in sorted(rows)]


def test_the_picture_shows_what_the_page_prints():
    lines = shown()
    assert len(PRINTED) > 30
    missing = [line for line in PRINTED if line.strip() and line.rstrip() not in lines]
    assert not missing


def test_the_page_prints_the_commands_of_the_script():
    commands = re.findall(r"\n'(.*?)'\n", SCRIPT, re.S)
    assert len(commands) == SCRIPT.count("\ntry ") == 6
    for command in commands:
        assert f"\n$ {command}\n" in "\n".join(PRINTED)


def test_it_shows_the_policy_of_the_repository():
    said = json.loads((POLICY / "drllm_config.json").read_text(encoding="utf-8"))["promise"]["sentence"]
    text = " ".join(PRINTED)
    assert said in text
    route = json.loads((POLICY / "healed.json").read_text(encoding="utf-8"))["route"]
    assert f"[route {route}@" in text
