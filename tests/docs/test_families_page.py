"""docs/families.md is written from the lists that the tests hold, and every list names families that there are."""

from __future__ import annotations

import families
import standings
import write_families as tool


def test_the_page_is_current():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/write_families.py"


def test_every_family_stands_once_and_the_lists_name_no_other():
    listed = [name for line in tool.page().splitlines() if line.startswith("| ") for name in line.split("|")[1].strip().split(", ")]
    assert sorted(name for name in listed if name in families.ALL_FAMILIES) == sorted(families.ALL_FAMILIES)
    lists = [value for name, value in vars(standings).items() if name.isupper()]
    assert {one for found in lists for one in found} <= set(families.ALL_FAMILIES)


def test_what_the_rows_say():
    found = {name: dict(zip(tool.COLUMNS[1:], tool.cells(name), strict=True)) for name in families.ALL_FAMILIES}
    assert set(found["llama"].values()) == {"yes", "read"}
    assert (found["gpt2"]["heal"], found["gpt2"]["`peft`"], found["gpt2"]["serve"]) == ("no", "no", "no")
    assert found["deepseek_v32"]["rewards of written answers"] == "no"
    assert (found["mistral"]["serve"], found["mistral-sliding"]["serve"]) == ("yes", "no")
    assert found["gemma3_text"]["`gguf`"] == "some routes"
