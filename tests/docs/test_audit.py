"""docs/audit.md is made from the claims and the stored scans: it is current, and every claim names its source."""

from __future__ import annotations

import yaml

import write_audit as tool


def test_the_page_is_current():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/write_audit.py"


def test_every_claim_names_its_source_and_its_questions():
    for claim in yaml.safe_load(tool.CLAIMS.read_text(encoding="utf-8")):
        assert claim["source"].startswith("https://")
        assert claim["probes"] > 0
        assert claim["notes"]
