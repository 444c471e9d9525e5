"""Routed models under EleutherAI's lm-evaluation-harness, and paired comparisons of its per-sample logs."""

from pathlib import Path

TASKS_FOLDER = Path(__file__).parent / "tasks"
