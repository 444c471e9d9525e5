"""Fields of configurations that document themselves."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from drllm.core.errors import InputError


def option(default: Any, help: str) -> Any:
    """A dataclass field that documents itself: `help` becomes the flag's help text."""
    return field(default=default, metadata={"help": help})


def check_range(config: Any, name: str, low: float, high: float | None = None) -> None:
    """Refuse a value outside [low, high] with one line that names the flag."""
    value = getattr(config, name)
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InputError(f"{type(config).__name__}.{name} is {value}, expected {bound}")
