"""Errors a user can act on, in one line: what came, what was expected, what to do."""

import contextlib
import importlib


class DrllmError(Exception):
    """Base of every error drllm raises on purpose."""


class UnsupportedModelError(DrllmError):
    """The model cannot be routed exactly; raised before anything about it changes."""


class ArtifactError(DrllmError):
    """A saved policy, record or run folder is missing, corrupt, or was made for something else."""


class InputError(DrllmError, ValueError):
    """An argument, file or prompt that drllm cannot use."""


class BudgetError(InputError):
    """No operating point of a trained policy keeps the budget that was asked for."""


def network_errors() -> tuple[type[Exception], ...]:
    """What a dead network raises through huggingface_hub: its HTTP library's own errors, which are no OSErrors."""
    found = []
    for name in ("httpx", "httpx2"):  # which of them depends on the release
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


def first_line(message: object, width: int = 100) -> str:
    """The first line of another library's message, cut to what a terminal shows."""
    return (str(message).splitlines() or [""])[0][:width]
