"""How a generated letter or boxed answer is asked for: the wordings of `prompts.toml`, and which of them a model gets. No torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

Reader = Literal["strict", "lenient"]


@dataclass(frozen=True)
class Wording:
    """One way to ask.

    Attributes:
        name, source, license: of the wording; where its text comes from.
        letter, boxed: the prompts, with {passage}, {question} and {choices} to fill in; choice, passage: of one of them.
        new_tokens: of an answer at most, by reward; min_new_tokens: before it may end.
        reader: whose verdict is the reward, by reward (`drllm.tasks.readers`).
        is_text: whether the prompt is text also where the model has a chat template; text_end: behind a prompt that is text.
        opens_box: whether the prompt ends in an open box, which belongs before the answer.
    """

    name: str
    source: str
    license: str
    letter: str
    boxed: str
    choice: str
    passage: str
    new_tokens: Mapping[str, int]
    min_new_tokens: int
    reader: Mapping[str, Reader]
    is_text: bool = False
    text_end: str = ""
    opens_box: bool = False

    def asked_for_letter(self, question: str, choices: Mapping[str, str], passage: str = "") -> str:
        """The prompt of a question with choices, given by their letters."""
        listed = "\n".join(_filled(self.choice, letter=letter, text=text) for letter, text in choices.items())
        above = _filled(self.passage, passage=passage) if passage else ""
        return _filled(self.letter, passage=above, choices=listed, question=question)

    def asked_for_box(self, question: str) -> str:
        """The prompt of a question with a free answer."""
        return _filled(self.boxed, question=question)


def _filled(form: str, **fields: str) -> str:
    """A form with its fields filled in, each once; braces of TeX stay, and what is filled in is not read again."""
    for name, text in fields.items():
        before, field, after = form.partition(f"{{{name}}}")
        form = before + text + after if field else form
    return form


def _read() -> dict[str, Wording]:
    found = tomllib.loads((files("drllm.tasks") / "prompts.toml").read_text(encoding="utf-8"))
    return {name: Wording(name, **fields) for name, fields in found.items()}


WORDINGS = _read()


def wording_of(prompts: str, name: str, family: str, has_template: bool) -> Wording:
    """The wording that a `prompts` option names for a model.

    `authors` stands for one of theirs: the one for base models where there is no chat template or the name says "base"; for Qwen the one
    with their second wording of mathematics; the one for instruct models else. Base models of Qwen2.5 have a template all the same: name
    `base` for them.

    Args:
        prompts: "authors", or the name of a wording.
        name: of the model, as it was loaded; family: its `model_type`.
        has_template: whether its tokenizer has a chat template.
    """
    if prompts != "authors":
        return WORDINGS[prompts]
    if not has_template or "base" in name.rstrip("/").rpartition("/")[2].lower():
        return WORDINGS["base"]
    return WORDINGS["qwen" if family.startswith("qwen") else "instruct"]
