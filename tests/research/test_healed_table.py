"""The table of healed routes: its rounding, its labels, and all of it on a tiny model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import drllm
from drllm import ArtifactError, Route, RoutedModel
from drllm.healing.teacher import divergence
from drllm_research.comparison.stored import Results
from drllm_research.healed.__main__ import main
from drllm_research.healed.measures import agreement, merged
from drllm_research.healed.page import SETTING
from drllm_research.healed.rows import bits_of, labelled, rounded
from healed import CONFIG, random_adapter
from runs import model, questions, write_rows

pytestmark = pytest.mark.long


@pytest.mark.parametrize("how", ["q4_0", "4", "3", "2"])
def test_rounding_keeps_as_many_levels_as_it_says(how):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    found = rounded(weight, how)
    levels = [len(block.unique()) for block in found.reshape(-1, 32)]
    assert max(levels) <= 2 ** int(how[1:2] if how == "q4_0" else how)
    assert bits_of(how) == {"q4_0": 4.5, "4": 5, "3": 4, "2": 3}[how]
    plain = (weight - found).square().mean() / weight.square().mean()
    assert plain < {"q4_0": 0.01, "4": 0.01, "3": 0.04, "2": 0.2}[how]


def test_a_label_is_a_base_that_is_certain():
    text = labelled((5, 6, 7), (1, 2))
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = divergence(logits, text.top, text.logs, text.rest)
    assert text.ids == (5, 6, 7, 1)
    expected = torch.nn.functional.cross_entropy(logits[2:], torch.tensor([1, 2]), reduction="none")
    torch.testing.assert_close(found, torch.cat([torch.zeros(2), expected]))
    found.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert not logits.grad[:2].any()


def test_agreement_counts_the_tokens_before_the_first_other_one():
    assert agreement([[1, 2, 3], [4, 9, 6, 7], [8]], [[1, 2, 3], [4, 5, 6, 7], [8, 9]]) == {"whole": 1 / 3, "tokens": 5 / 9}


def test_a_merged_model_computes_the_healed_route():
    routed, route = model(), Route.parse("2101")
    adapter = random_adapter(routed, route)
    routed.adopt(adapter)
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = routed(ids, routes=adapter.healed).logits
    torch.testing.assert_close(merged(routed, adapter.healed)(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(routed, route)(input_ids=ids).logits, expected, atol=1e-3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A saved tiny model, questions, and a healing."""
    place = tmp_path_factory.mktemp("healed")
    data, other = place / "data", place / "other"
    for task in ("arc_easy", "sciq"):
        (data / task).mkdir(parents=True)
        rows = [row | {"question": f"{task} {row['question']}"} for row in questions(160)]
        write_rows(data / task / "train.jsonl", rows)
    (data / "squadv2").mkdir()
    (place / "docs").mkdir()
    (other / "arc_easy").mkdir(parents=True)
    write_rows(other / "arc_easy" / "train.jsonl", questions(150))
    passages = [
        {"context": f"{number} is {number + 1} less 1. " * 4, "question": f"{number}?", "answers": [str(number)]} for number in range(60)
    ]
    write_rows(data / "squadv2" / "valid.jsonl", passages)
    tiny = model()
    tiny.unwrap().save_pretrained(place / "base")
    tiny.tokenizer.save_pretrained(place / "base")
    routed = RoutedModel.wrap(place / "base", dtype="float32")
    drllm.heal(routed, place / "heal", tasks=["arc_easy"], data=data, config=replace(CONFIG, steps=30, chat=True))
    return place


@pytest.fixture(autouse=True)
def short_answers(monkeypatch) -> None:
    monkeypatch.setattr("drllm_research.healed.measures.TEXT_TOKENS", 4)


def command(made: Path, *more: str, job: str = "run") -> None:
    small = "--asked sciq --limit 12 --texts 4 --steps 15 --rounded 2 --shots 1"
    asked = [*small.split(), "--data", str(made / "data")]
    clocked = ["--tokens", "16", "--clocked", "2", "--rounds", "1", "--model", str(made / "base"), "--run", str(made / "run")]
    run = ["--healing", str(made / "heal"), *asked, *clocked] if job == "run" else []
    main([job, "--out", str(made / "results" / "healed-tiny"), *run, *more])


def test_the_command_makes_the_table(made):
    command(made)
    results = Results(made / "results" / "healed-tiny")
    about, right = results.told(SETTING, "tune"), {name: of for (name, _), of in results.of(SETTING, "tune").items()}
    rows = {row["name"]: row for row in about["rows"]}
    assert list(rows) == [
        "base",
        *("skip 0.75", "healed 0.75"),
        *("solved questions shown", "labels, every block", "labels, skip 0.75", "weights of 2 bits"),
        *("healed without skipping", "healed 0.75, other text", "healed 0.75, half of the prompts", "healed 0.75, a tenth of the prompts"),
    ]
    assert right.keys() == rows.keys()
    assert all(list(of["id"]) == list(right["base"]["id"]) and len(of["id"]) == 24 for of in right.values())
    assert rows["base"]["kl"]["in"] < 1e-3
    assert rows["base"]["agreement"] == {"whole": 1, "tokens": 1}
    assert rows["healed 0.75"]["kl"]["in"] < rows["skip 0.75"]["kl"]["in"]
    assert rows["weights of 2 bits"]["kl"]["in"] > rows["base"]["kl"]["in"]
    assert rows["healed without skipping"]["kl"]["in"] < rows["healed 0.75"]["kl"]["in"] / 2
    assert list(right["healed without skipping"]["correct"]) == list(right["base"]["correct"])
    assert rows["labels, every block"]["trained"]["prompts"] > rows["healed 0.75, a tenth of the prompts"]["trained"]["prompts"]
    sizes = {name: row["mb"] for name, row in rows.items()}
    assert sizes["skip 0.75"]["stored"] < sizes["healed 0.75"]["stored"]
    assert sizes["healed 0.75"]["in bfloat16"] < sizes["base"]["in bfloat16"]
    assert {name for name, row in rows.items() if row["clock"]} == {*list(rows)[1:4]}

    command(made, "--to", str(made / "docs"), job="page")
    page = (made / "docs" / "healed.md").read_text(encoding="utf-8")
    picture = next((made / "docs").glob("*.svg"))
    assert f"]({picture.name})" in page
    assert all(page.count(f"| {name} |") >= 2 for name in list(rows)[1:])
    before = picture.read_bytes()
    command(made, "--to", str(made / "docs"), job="page")
    assert picture.read_bytes() == before


def test_the_same_command_finds_all_of_it_done(made):
    """Adapters and verdicts are not written again, and seconds, which no second clock would find again, are as they were."""

    def written() -> dict:
        found = [path for kind in ("safetensors", "parquet") for path in (made / "run").rglob(f"*.{kind}")]
        return {path: path.stat().st_mtime_ns for path in found}

    before, files = (made / "results" / "healed-tiny" / "about.json").read_bytes(), written()
    command(made)
    assert (made / "results" / "healed-tiny" / "about.json").read_bytes() == before
    assert written() == files


def test_a_healing_of_other_prompts_is_refused(made):
    with pytest.raises(ArtifactError, match="was healed on other prompts than the fit questions of its tasks in"):
        command(made, "--data", str(made / "other"))
