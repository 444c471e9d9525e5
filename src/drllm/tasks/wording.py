"""How a generated letter or boxed answer is asked for: the wordings of `prompts.toml`, and which of them a model gets. No torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

Reader = Literal["strict", "lenient"]


@dataclass(frozen=True)
class Wording:
    name: str
    source: str  # licence of its text, and where it comes from
    letter: str  # the prompts, with {passage}, {question} and {choices} to fill in
    boxed: str
    choice: str  # one of a letter prompt's
    passage: str
    new_tokens: Mapping[str, int]  # of an answer at most, by reward
    min_new_tokens: int  # before it may end
    reader: Mapping[str, Reader]  # whose verdict is the reward, by reward
    is_text: bool = False  # whether the prompt is text also where the model has a chat template
    text_end: str = ""  # behind a prompt that is text
    opens_box: bool = False  # whether the prompt ends in an open box, which belongs before the answer

    def asked_for_letter(self, question: str, choices: Mapping[str, str], passage: str = "") -> str:
        """The prompt of a question with choices, given by their letters."""
        listed = "\n".join(_filled(self.choice, letter=letter, text=text) for letter, text in choices.items())
        above = _filled(self.passage, passage=passage) if passage else ""
        return _filled(self.letter, passage=above, choices=listed, question=question)

    def asked_for_box(self, question: str) -> str:
        return _filled(self.boxed, question=question)


def _filled(form: str, **fields: str) -> str:
    """Each field once; braces of TeX stay, and what is filled in is not read again."""
    for name, text in fields.items():
        before, field, after = form.partition(f"{{{name}}}")
        form = before + text + after if field else form
    return form


_WRITTEN = tomllib.loads((files("drllm.tasks") / "prompts.toml").read_text(encoding="utf-8"))
WORDINGS = {name: Wording(name, **fields) for name, fields in _WRITTEN.items()}


def wording_of(prompts: str, name: str, family: str, has_template: bool) -> Wording:
    """The wording that a `prompts` option names for a model of some name and `model_type`, with or without a chat template.

    `authors` stands for one of theirs: that of base models without a template or named so (base models of Qwen2.5 have a template all the
    same: name `base` for them), Qwen's with their second wording of mathematics, or that of instruct models.
    """
    if prompts != "authors":
        return WORDINGS[prompts]
    if not has_template or "base" in name.rstrip("/").rpartition("/")[2].lower():
        return WORDINGS["base"]
    return WORDINGS["qwen" if family.startswith("qwen") else "instruct"]
