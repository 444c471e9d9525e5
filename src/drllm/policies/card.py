"""The model card of a saved policy: what it is for, what it was measured to do, and the commands that made it. No torch, no run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.route_words import in_words

if TYPE_CHECKING:
    from drllm.policies.policy import RouteSource

CARD_FILE = "README.md"
_TAGS = "tags: [drllm, adaptive-depth"
_LOOPED = "rys"  # "repeat yourself": the tag under which people look for looped blocks


@dataclass(frozen=True)
class CardFacts:
    """What a run knows of a policy."""

    method: str = ""  # its name in the run
    tasks: Sequence[str] = ()  # that these very files were evaluated on
    figures: Sequence[str] = ()  # lines of Markdown: what the evaluations found
    commands: Sequence[str] = ()  # the command lines that made the run
    notes: Sequence[str] = ()  # what else was measured of these very files


def render_card(config: Mapping[str, Any], policy: RouteSource, facts: CardFacts) -> str:
    """The card as Markdown with a Hub header, of a policy and its `drllm_config.json`."""
    route, routes = policy.route, policy.routes
    base = config["base_id"] or "a model in memory"
    name = facts.method or config["policy"]
    looped = [f"`{found}` ({in_words(found)})" for found in ([route] if route else routes) if not found.bare.has_digits]
    lines = ["---", "library_name: drllm", f"{_TAGS}, {_LOOPED}]" if looped else f"{_TAGS}]"]
    if config["base_id"].count("/") == 1 and not Path(config["base_id"]).exists():
        lines += [f"base_model: {config['base_id']}", "base_model_relation: adapter"]
    lines += ["---", "", f"# {name} for {base}", ""]
    lines += [f"A drllm policy: {policy.about or policy.name}. The base's weights are not changed, and not in here.", ""]
    code = 'model = RoutedModel.from_pretrained("THIS FOLDER OR ID")\nmodel.generate("What do plants need to grow?")[0].text'
    lines += ["```python", "from drllm import RoutedModel", "", code, "```", ""]
    promise = config.get("promise") or {"sentence": "none; the figures below are what was measured, not a promise"}
    others = "(trained on these; one route for all takes any)" if route else "(trained on these; others are refused unless forced)"
    revision = f" at {config['base_revision']}" if config["base_revision"] else ""
    lines += [
        f"- base: `{base}`{revision}, weights `{config['fingerprint']}`: other weights are refused",
        f"- blocks: {config['n_layers']}" + (f", route `{route}`" if route else ""),
        *([f"- loops: {'; '.join(looped)}"] if looped else []),
        f"- prompts: {config['prompt_format']} {others}" if config["prompt_format"] else "- prompts: any format",
        f"- evaluated on: {', '.join(facts.tasks) or 'nothing yet'}",
        f"- promise: {promise['sentence']}",
        *(f"- {note}" for note in facts.notes),
        "",
        "## Figures",
        "",
    ]
    lines += facts.figures or ["None yet for these files: `drllm evaluate` measures them beside the base and the baselines.", ""]
    if facts.commands:
        lines += ["## Commands", "", "```", *facts.commands, "```", ""]
    return "\n".join(lines)


def is_card(text: str) -> bool:
    """Whether a README is one that `render_card` made."""
    return text.startswith(f"---\nlibrary_name: drllm\n{_TAGS}")
