"""Every whole `drllm` command of README and the docs is run: on a tiny model and a few sums, with small numbers behind its own flags.

Not here: the commands of `ELSEWHERE`, `serve` beyond what it prints, and what `make` and scripts do. Python blocks are run by
`tests/real/test_real_docs.py`, `test_add_a_method.py`, `tests/runs/test_record_readers.py` and `tests/serving/test_serving_http.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from test_commands import PAGES, ROOT, commands

import families
from byte_tokens import byte_tokenizer
from drllm.cli.main import main
from runs import questions, write_rows

pytestmark = pytest.mark.slow

LEARNED = ("arc_easy", "arc_challenge", "openbookqa")
SMALL = {  # flags that come last win over those of the page
    "search": "--data DATA --limit 24 --n-simulations 6 --max-step-tokens 600 --no-verify",
    "scan": "--data DATA --questions 8 --max-span 2 --fresh 4 --max-step-tokens 600",
    "retrofit": "--minutes 1",
    "reproduce": "--data DATA --tasks arc_easy,arc_challenge --outside openbookqa --scale 0.02 --n-simulations 6 --tokens 100",
    "evaluate": "--limit 12",
    "heal": "--data DATA --budget 0.75 --choose-on 4 --steps 4 --new-tokens 0 --held-out 4",
    "serve": "--print",
    "generate": "--max-new-tokens 4",
}
# Where the reader's things stand; what a page takes from another page's command is made by the fixture.
HERE = {"ID": "tiny", "smollm2-135m-q4": "tiny", "RUN": "runs/x", "runs/a": "runs/x", "runs/policies": "runs/x", "runs/first": "runs/x"}
MADE = ("search", "scan", "retrofit", "reproduce", "heal")  # commands whose --out is new
# Paths through as many blocks as the tiny model has.
PATHS = {"0-14,12-29": "0-2,1-3", "111111111111101111111111111111": "1101", "12-14 twice": "1-2 twice", "12,13,14,15": "1,2"}
PATHS |= {"examples/smollm2-135m-27-of-30": "runs/healed/healed", "examples/claim.jsonl": "claim.jsonl"}
ELSEWHERE = {
    "hf upload ": "needs an account on the Hub",
    "drllm evaluate --harness ": "needs lm-evaluation-harness: tests/evaluation/harness",
    "llama-3.2-3b-instruct.yaml": "needs the Hub",
    "--outside mmlu,aime24": "needs files of eight tasks: tests/research/test_reproduce.py has a passage task and a letter task",
}
REFUSED = {"--epsilon 0.01   # refused": "promise"}  # as its own comment says


def whole_commands() -> dict[str, str]:
    """Every `drllm` command that is to be typed as it stands, with its page."""
    found: dict[str, str] = {}
    for page in PAGES:
        for command, is_whole in commands(page):
            is_result = page.name == "README.md" and " --out " in command  # between backticks, in its table
            is_ours = command.startswith("drllm ") and not command.startswith("drllm COMMAND")
            if is_ours and (is_whole or is_result) and "..." not in command:
                found.setdefault(command, str(page.relative_to(ROOT)))
    return found


COMMANDS = whole_commands()


def reason(command: str) -> str:
    """Why a command is not run here."""
    return next((why for part, why in ELSEWHERE.items() if part in command), "")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, questions, and a run that other pages' commands have made."""
    folder = tmp_path_factory.mktemp("docs")
    families.build("llama", vocab_size=300, max_position_embeddings=512).save_pretrained(folder / "tiny")
    byte_tokenizer().save_pretrained(folder / "tiny")
    rows = questions(240)
    for task in LEARNED:
        (folder / "DATA" / task).mkdir(parents=True)
        mine = [row | {"id": f"{task}-{row['id']}", "question": f"{task}: {row['question']}"} for row in rows]
        for part, some in {"train": mine[:120], "dev": mine[120:180], "test": mine[180:]}.items():
            write_rows(folder / "DATA" / task / f"{part}.jsonl", some)
    write_rows(folder / "mine.jsonl", rows)
    write_rows(folder / "requests.jsonl", [{"prompt": row["question"]} for row in rows])
    write_rows(folder / "claim.jsonl", [{"claim": "1-2 twice", "gain": 3}])
    (folder / "routes.txt").write_text("1111\n1121\n1101\n1112\n0-2,1-3\n1011\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        of = f"--model tiny --tasks {','.join(LEARNED)} --out runs/x --data DATA --max-step-tokens 600"
        for command in (
            f"search {of} --limit 24 --n-simulations 6 --no-verify",
            f"search {of} --limit 24 --paths routes.txt --splits fit,tune",
            "train --out runs/x --method static",
            "train --out runs/x --method codebook",
            "train --out runs/x --method routers",
            "evaluate --out runs/x --methods base,static,codebook,routers,shuffled --limit 12",
            "scan --model tiny --tasks arc_easy --out runs/map --data DATA --questions 8 --max-span 2 --fresh 4 --max-step-tokens 600",
            "export --policy runs/x/static --out skip13",
            "scan --model tiny --tasks arc_easy --questions 0 --claimed 0-2,1-3 --out runs/audit --data DATA",
            f"heal --model tiny --tasks arc_easy --out runs/healed {SMALL['heal']}",
        ):
            assert main(shlex.split(command)) == 0, command
    return folder


def test_what_runs_elsewhere_is_on_the_pages():
    for part in (*ELSEWHERE, *REFUSED):
        assert any(part in command for command in COMMANDS), part
    assert len(COMMANDS) - sum(bool(reason(command)) for command in COMMANDS) > 45


@pytest.mark.filterwarnings("ignore:this command cannot run as it is")  # without vLLM
@pytest.mark.parametrize("command", [command for command in COMMANDS if not reason(command)])
def test_a_command_runs(command, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    # How much fits into a minute must not depend on what else runs.
    monkeypatch.setattr("drllm.retrofitting.recommend.batched_ms", lambda *_: 2.0)
    text = command
    for there, here in (HERE | PATHS).items():
        text = re.sub(rf"\b{re.escape(there)}\b", here, text)
    name, *words = shlex.split(text, comments=True)[1:]
    if name in MADE and "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path / "run")
    if name in ("train", "export"):
        words += (
            ["--out", str(shutil.copytree(place / "runs/x", tmp_path / "x"))] if name == "train" else ["--out", str(tmp_path / "export")]
        )
    small = shlex.split(SMALL.get(name, ""))
    if name == "scan" and "--questions" in words:
        small = ["--data", "DATA"]
    if (name == "retrofit" and not {"--data", "--prompts"} & {*words}) or (name == "evaluate" and "--tasks" in words):
        small += ["--data", "DATA"]
    code = main([name, *words, *small])
    printed = capsys.readouterr()
    refusal = next((says for part, says in REFUSED.items() if part in command), "")
    if code and refusal:  # a codebook that never leaves the base keeps any promise
        assert refusal in printed.err
        return
    assert code == 0, f"{COMMANDS[command]}: {printed.err[-400:]}"
    assert printed.out.strip() or printed.err.strip()
