"""Prompts without labels: from tasks and files, each once, told apart the same way each time."""

from __future__ import annotations

import json

import pytest

import runs
from drllm import HealConfig, InputError
from drllm.healing.prompts import PARTS, file_keys, file_prompts, parted, split_prompts, task_prompts, training_steps
from drllm.tasks import load_task, question_key

ROUTED = runs.model()


def text(ids) -> str:
    return ROUTED.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", runs.questions(60))


def test_a_task_s_fit_questions_are_asked_without_their_answers(data):
    fit = load_task(runs.TASK, data).select("fit")
    raw = [text(ids) for ids in task_prompts(ROUTED, [runs.TASK], data, HealConfig())]
    assert raw == [f"Question: {example.question}\nAnswer:" for example in fit]
    letters = [text(ids) for ids in task_prompts(ROUTED, [runs.TASK], data, HealConfig(reward="letter"))]
    for one, example in zip(letters, fit, strict=True):
        assert one.startswith("user: ")
        assert example.choices[0] in one
        assert one.endswith("assistant:")
    both = [text(ids) for ids in task_prompts(ROUTED, [runs.TASK], data, HealConfig(chat=True))]
    assert both == [*raw, *(f"user: {example.question}\nassistant:" for example in fit)], "as chat messages, too"


def test_plain_lines_and_chats(tmp_path):
    (tmp_path / "lines.txt").write_bytes("one prompt\r\n\n  two, with a ß \n".encode())
    assert [text(one.ids) for one in file_prompts(ROUTED, tmp_path / "lines.txt")] == ["one prompt", "  two, with a ß "]
    user, answer = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "no"}
    lines = [{"messages": [user, answer]}, [user], {"messages": [user, answer, user]}]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [text(one.ids) for one in file_prompts(ROUTED, tmp_path / "chats.jsonl")]
    assert found == ["user: hello\nassistant:"] * 2 + ["user: hello\nassistant: no\nuser: hello\nassistant:"]
    (tmp_path / "texts.jsonl").write_text('{"prompt": "a"}\n"b"\n{"text": "c"}\n')
    assert [text(one.ids) for one in file_prompts(ROUTED, tmp_path / "texts.jsonl")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What is 1 and 2?", "what is  1 and 2?"),
        ("Question: What is 1 and 2?\nAnswer:", "What is 1 and 2?"),
        ("Q: What is 1 and 2? A:", "What is 1 and 2?"),
        ("A passage.\nQuestion: is it so?\nAnswer:", "is it so"),
        ("Answer with a letter.\n\nTwo lines,\nwhich is it?\n\nA. one\nB. two", "Two lines, which is it?"),
    ],
)
def test_a_question_in_a_file_is_known_again(tmp_path, prompt, question):
    rows = [{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": prompt}]}, {"prompt": prompt}]
    for row in rows:
        keys = file_keys(runs.write_rows(tmp_path / "prompts.jsonl", [row]))
        assert question_key(question) in keys
        assert question_key("What is 1 and 3?") not in keys


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.txt", None, "cannot read .*No such file"),
        ("binary.txt", b"\xff\xfe\x00", "is no UTF-8 text"),
        ("empty.txt", b"\n \n", "holds no prompt: give one a line"),
        ("broken.jsonl", b'{"prompt": "a"}\n{', "line 2 is no JSON: expected lines like"),
        ("other.jsonl", b'{"question": "a"}', "line 1 holds no prompt: expected lines like"),
        ("answers.jsonl", b'[{"role": "assistant", "content": "a"}]', "line 1 holds no prompt but answers alone"),
        ("mixed.jsonl", b'"a"\n[{"role": "user", "content": "a"}]', "2 formats"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        file_prompts(ROUTED, tmp_path / name)
    assert "\n" not in str(refused.value)


def test_each_prompt_is_on_one_side_whatever_comes_first():
    prompts = [(number, 7) for number in range(50)]
    config = HealConfig(held_out=10, step_tokens=30, new_tokens=4)
    held_out, fit = split_prompts(ROUTED, [*prompts, *prompts[:9], tuple(range(27))], config)
    assert len(held_out) == 10
    assert sorted([*held_out, *fit]) == prompts  # the long one does not fit a step
    assert split_prompts(ROUTED, prompts[::-1], config) == (held_out, fit)
    assert split_prompts(ROUTED, prompts, HealConfig(held_out=10, seed=1))[0] != held_out
    with pytest.raises(InputError, match="got 10 different prompts of at most 26 tokens, and 10 are held out"):
        split_prompts(ROUTED, prompts[:10], config)


def test_steps_take_every_prompt_before_any_again():
    lengths = [3 + index * 7 % 20 for index in range(100)]
    config = HealConfig(steps=60, step_tokens=100)
    steps = training_steps(lengths, config)
    assert len(steps) == 60
    assert all(len(step) * max(lengths[index] for index in step) <= 100 for step in steps)
    taken = [index for step in steps for index in step]
    counts = [taken.count(index) for index in range(100)]
    assert max(counts) - min(counts) <= 1
    assert set(taken[:100]) == set(range(100))
    assert training_steps(lengths, HealConfig(steps=20, step_tokens=100)) == steps[:20]


def test_a_log_of_requests_and_its_kinds(tmp_path):
    lines = [
        {"request": {"prompt": "a"}, "kind": "x"},
        {"body": {"text": "b"}, "task": "y"},
        {"prompt": "c"},
        {"request": "none", "text": "d"},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = file_prompts(ROUTED, tmp_path / "log.jsonl")
    assert [(text(one.ids), one.kind, one.form) for one in found] == [(*pair, "raw") for pair in ("ax", "by", ("c", ""), ("d", ""))]


def test_parts_hold_every_prompt_once():
    for n in (80, 81, 83, 1001):
        prompts = [(n,) for n in range(n)]
        parts = parted(prompts)
        assert [ids for part in parts.values() for ids in part] == prompts
        assert all(abs(len(parts[name]) - share * n) <= 1 for name, share in PARTS.items())
