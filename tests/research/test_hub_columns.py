"""Tables 3 and 4 can be made on the test split from the Hub: every task of the paper's configurations, by the columns that it has there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from drllm.tasks import load_task
from drllm.tasks.hub import EXAMS, SUBJECTS
from drllm_research.paper.config import ReproduceConfig
from drllm_research.paper.run import check, wanted_exhibits
from drllm_research.paper.setup import Setup
from hub_rows import Rows

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "examples" / "paper").glob("*.yaml"))
N = 40  # rows a part
AIME = ["ID", "Problem", "Solution", "Answer"]


def four(n: int) -> dict[str, Any]:
    return {"text": [f"{n} {choice}" for choice in "wxyz"], "label": list("ABCD")}


# Columns as the Hub's viewer lists them (2026-12-01), a row each; parts whose answers are secret have them as they are there.
LISTED: dict[tuple[str, str | None], dict[str, Any]] = {
    **{
        ("allenai/ai2_arc", name): dict.fromkeys(
            ("train", "validation", "test"),
            lambda part, n, name=name: {"id": f"{name}{part}{n}", "question": f"{name} {part} {n}?", "choices": four(n), "answerKey": "C"},
        )
        for name in ("ARC-Easy", "ARC-Challenge")
    },
    ("hkust-nlp/dart-math-pool-math", None): {
        "train": lambda part, n: {
            "query": f"What is {n} + {n}?",
            "resp": "...",
            "ref_ans": str(2 * n),
            "ref_sol": "...",
            "gt_ans": str(2 * n),
            "query_metadata": {"domain": ["Algebra"], "level": n % 5 + 1},
        }
    },
    **{
        ("EleutherAI/hendrycks_math", subject): dict.fromkeys(
            ("train", "test"),
            lambda part, n, subject=subject: {
                "problem": f"{subject} {part} {n}?",
                "level": f"Level {n % 5 + 1}",
                "type": subject,
                "solution": f"It is $\\boxed{{{n}}}$.",
            },
        )
        for subject in SUBJECTS
    },
    ("cais/mmlu", "all"): dict.fromkeys(
        ("auxiliary_train", "validation", "test", "dev"),
        lambda part, n: {"question": f"m {part} {n}?", "subject": "anatomy", "choices": list("wxyz"), "answer": n % 4},
    ),
    ("Maxwell-Jia/AIME_2024", None): {"train": lambda part, n: dict(zip(AIME, (f"2024-{n}", f"aime {n}?", "...", n), strict=True))},
    ("truthfulqa/truthful_qa", "multiple_choice"): {
        "validation": lambda part, n: {
            "question": f"true {n}?",
            "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["yes", "no"], "labels": [1, 0]},
        }
    },
    ("openai/gsm8k", "main"): dict.fromkeys(("train", "test"), lambda part, n: {"question": f"gsm {part} {n}?", "answer": f"so\n#### {n}"}),
    ("lighteval/squad_v2", None): dict.fromkeys(
        ("train", "validation"),
        lambda part, n: {
            "id": f"{part}{n}",
            "title": "T",
            "context": f"passage {part} {n}",
            "question": f"squad {part} {n}?",
            "answers": {"text": ["a"] if n % 2 else [], "answer_start": [0] if n % 2 else []},
        },
    ),
    ("Idavidrein/gpqa", "gpqa_diamond"): {
        "train": lambda part, n: {
            "Question": f"gpqa {n}?",
            "Correct Answer": "right",
            "Incorrect Answer 1": "a",
            "Incorrect Answer 2": "b",
            "Incorrect Answer 3": "c",
            "Record ID": str(n),
        }
    },
    **{
        (repo, None): {
            "test": lambda part, n, repo=repo: {
                "query": f"Q: {repo} {n}? Answer Choices: (A)x (B)y\nA: Among A through B, the answer is",
                "choices": ["(A)x", "(B)y"],
                "gold": [n % 2],
            }
        }
        for repo in EXAMS.split()
    },
    ("baber/piqa", None): {
        "train": lambda part, n: {"goal": f"goal {part} {n}", "sol1": "x", "sol2": "y", "label": n % 2},
        "validation": lambda part, n: {"goal": f"goal {part} {n}", "sol1": "x", "sol2": "y", "label": n % 2},
        "test": lambda part, n: {"goal": f"goal {part} {n}", "sol1": "x", "sol2": "y", "label": -1},
    },
}


@pytest.fixture
def listed_hub(fake_hub):
    for name, parts in LISTED.items():
        fake_hub[name] = {part: Rows(make(part, n) for n in range(N)) for part, make in parts.items()}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_tables_3_and_4_of_a_configuration_have_their_questions_on_test(path, listed_hub):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = ReproduceConfig(**values["reproduce"] | {"split": "test"})
    setup = Setup(values["model"], tuple(values["tasks"]), Path("nowhere"), "", config)
    check(SimpleNamespace(setup=setup), wanted_exhibits(["table3", "table4"]))  # type: ignore[arg-type]


def test_the_validation_part_of_piqa_is_its_test_where_nothing_was_learned_from_it(listed_hub):
    loaded = load_task("piqa")
    assert not loaded.examples["test"]
    assert {row.part for row in loaded.examples["tune"]} == {"validation"}
    public = loaded.with_public_test()
    assert public.examples["test"] == loaded.examples["tune"]
    assert (public.examples["tune"], public.examples["fit"]) == ([], loaded.examples["fit"])
    assert load_task("arc_easy").with_public_test().examples == load_task("arc_easy").examples
