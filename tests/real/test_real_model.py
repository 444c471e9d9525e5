"""SmolLM2-135M-Instruct (GGUF from its data package) and real questions: `make test-slow`."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import torch

from drllm import Route, RoutedModel
from drllm.model.packages import PACKAGED
from drllm.scoring.generated import GeneratedScorer
from drllm.scoring.loglik import LoglikScorer
from drllm.tasks import Example, get_task, load_task
from reference import path_model, plain_greedy, plain_logliks
from runs import ASKS_SMOLLM2

MODEL = "smollm2-135m-q4"
pytestmark = ASKS_SMOLLM2
FULL = Route.full(30)
# Repeats and skips at both ends and in the middle.
ROUTES = [FULL, FULL.edit(27, 2), FULL.edit(0, 2), FULL.edit(29, 0), FULL.edit(12, 0, 0).edit(20, 2), FULL.edit(29, 2)]


def wrapped(name, routes):
    """(the wrapped model, plain models by route): the plain ones are made first, from the same weights."""
    base = RoutedModel.wrap(name, dtype=torch.float32)
    tokenizer = base.tokenizer
    model = base.unwrap()
    twins = {route: path_model(model, route.path) for route in routes}
    return RoutedModel.wrap(model, tokenizer), twins


@pytest.fixture(scope="module")
def models():
    return wrapped(MODEL, ROUTES)


def test_generation_under_routes_equals_the_uncached_path(models):
    routed, twins = models
    prompts = ["The capital of France is", "Question: What do plants need to grow?\nAnswer:", "12", "Once upon a time there was a"] * 2
    routes = [*ROUTES, ROUTES[1], ROUTES[4]]
    assert_greedy(routed, twins, prompts, routes)


def assert_greedy(routed, twins, prompts, routes):
    outs = routed.generate(prompts, policy=routes, max_new_tokens=12, do_sample=False)
    for prompt, route, out in zip(prompts, routes, outs, strict=True):
        ids = routed.tokenizer(prompt)["input_ids"]
        assert out.token_ids == plain_greedy(twins[route], ids, 12, routed.tokenizer.eos_token_id), (prompt, route)


@pytest.mark.skipif(PACKAGED["gemma3-270m-q4"].installed is None, reason="needs the data packages of gemma3-270m-q4 (drllm models)")
def test_routes_across_the_sliding_window():
    """Of Gemma 3: prompts shorter and longer than the window, different routes in one left-padded batch."""
    full = Route.full(18)
    route = full.edit(7, 2).edit(12, 0)
    routed, twins = wrapped("gemma3-270m-q4", (full, route))
    window = routed.config.sliding_window
    prompts = ["The capital of France is", "One, two, three, four. " * (window // 8 + 20), "Water boils at"]
    lengths = [len(routed.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert lengths[0] < window < lengths[1]
    assert_greedy(routed, twins, prompts, [route, route, full])


def test_loglik_agrees_with_a_plain_unbatched_implementation(models):
    """Real questions, several routes, at least 10 right and 10 wrong verdicts of each metric."""
    routed, twins = models
    task = load_task("arc_easy")
    scorer = LoglikScorer(routed)
    assert scorer.packed
    questions = [scorer.question(task.task, example) for example in task.select("fit", 30)]
    scorer.load(questions)
    scored = dict(zip([(i, FULL) for i in range(30)], scorer.score([(i, FULL) for i in range(30)]), strict=True))
    pairs = [(i, ROUTES[1 + i % 5]) for i in range(30)]
    scored |= dict(zip(pairs, scorer.score(pairs), strict=True))
    counts = {"acc": [0, 0], "acc_norm": [0, 0]}
    for (index, route), verdict in scored.items():
        example = questions[index].example
        totals = plain_logliks(twins[route], routed.tokenizer, *task.task.loglik_prompt(example))
        per_char = [total / len(choice) for total, choice in zip(totals, example.choices, strict=True)]
        for name, scores in (("acc", totals), ("acc_norm", per_char)):
            right = max(range(len(scores)), key=scores.__getitem__) == example.answer
            assert getattr(verdict, name) == right, (example.id, route, name)
            counts[name][right] += 1
        gold = per_char[example.answer]
        margin = gold - max(score for at, score in enumerate(per_char) if at != example.answer)
        assert verdict.margin == pytest.approx(margin, abs=1e-4)
    print(f"loglik verdicts (wrong, right): {counts}")
    assert all(min(pair) >= 10 for pair in counts.values())


def test_letters_agree_with_a_plain_unbatched_implementation(models):
    routed, twins = models
    task = load_task("arc_easy")
    scorer = GeneratedScorer(routed, "letter")
    questions = [scorer.question(task.task, example) for example in task.select("fit", 36)]
    scorer.load(questions)
    pairs, counts = [(index, ROUTES[index % 2]) for index in range(len(questions))], [0, 0]
    for (index, route), verdict in zip(pairs, scorer.score(pairs), strict=True):
        tokens = plain_greedy(twins[route], questions[index].context_ids, 10, routed.tokenizer.eos_token_id)
        text = routed.tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == verdict.text or (text.startswith(str(verdict.text)) and task.task.settled(str(verdict.text), "letter"))
        assert verdict.correct == task.task.read(questions[index].example, text, "letter").lenient
        counts[verdict.correct] += 1
    assert min(counts) >= 10


def test_boxed_answers_agree_with_a_plain_unbatched_implementation(models):
    """This model boxes no answer of its own (0 of 96 tried), but it repeats lines it is shown, and half of those are right."""
    routed, twins = models
    task, scorer = get_task("dart-1"), GeneratedScorer(routed, "boxed", max_new_tokens=24)
    shown = "1 + 1 = \\boxed{{2}}\n{0} * {1} = \\boxed{{{2}}}\n9 - 2 = \\boxed{{7}}\n2 * 3 ="
    products = [(a, b, a * b + wrong) for a in range(2, 6) for b in (3, 4, 5, 6, 7) for wrong in (0, 1)]
    examples = [Example(f"{a}*{b}={c}", shown.format(a, b, c), (), str(a * b), "dart-1") for a, b, c in products]
    questions = [scorer.question(task, example) for example in examples]
    scorer.load(questions)
    counts = [0, 0]
    for question, verdict in zip(questions, scorer.score([(index, FULL) for index in range(len(questions))]), strict=True):
        tokens = plain_greedy(twins[FULL], question.context_ids, 24, routed.tokenizer.eos_token_id)
        text = routed.tokenizer.decode(tokens, skip_special_tokens=True)
        # An answer ends early where too few tokens are left to close a box.
        assert text == verdict.text or (text.startswith(str(verdict.text)) and not verdict.correct)
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)  # graded by hand
        assert verdict.correct == (bool(boxes) and boxes[-1].strip(" $") == question.example.answer), text
        counts[verdict.correct] += 1
    assert min(counts) >= 10


def test_a_search_in_bf16_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path):
    """bf16 logits depend on the batch's shape, so this holds only because every step of a width has one shape."""

    def search(out):
        typed = f"search --model {MODEL} --tasks arc_easy --out {out} --n-simulations 6 --limit 72 --group-size 24 --pool-size 24"
        command = [sys.executable, "-m", "drllm", *typed.split()]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def shards(out):
        return {path.name: path.read_bytes() for path in sorted((out / "search" / "arc_easy").glob("*.parquet"))}

    assert search(tmp_path / "whole").wait() == 0
    killed = search(tmp_path / "killed")
    while not shards(tmp_path / "killed"):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    before = shards(tmp_path / "killed")
    assert 1 <= len(before) < 3
    assert search(tmp_path / "killed").wait() == 0
    whole = shards(tmp_path / "whole")
    assert len(whole) == 3
    assert shards(tmp_path / "killed") == whole
    assert before.items() <= whole.items()
