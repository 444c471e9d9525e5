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
        assert claim["route"] or claim["instead"]


def test_what_stands_for_a_claim_was_measured_on_new_questions_beside_other_places():
    for told in yaml.safe_load(tool.CLAIMS.read_text(encoding="utf-8")):
        claim = tool.Claim.of(told)
        rows = tool._measured(claim)
        assert [row.route for row in rows] == ([told["route"]] if told["route"] else told["instead"])
        for row in rows:
            assert row.fresh is not None
            assert claim.result.mean_of(tool.ELSEWHERE, row.route) is not None
