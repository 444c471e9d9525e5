"""Routed models under EleutherAI's lm-evaluation-harness, and paired comparisons of its per-sample logs.

`run.evaluate_harness` and `model.RoutedLM` are the interface; `tasks/` holds the offline tasks. What the harness does not document is used
in `lm_eval_private` alone.
"""

from pathlib import Path

SPLITS_READ: dict[str, str] = {}  # offline task -> split, as `tasks/docs.py` read them in this process
TASKS_FOLDER = Path(__file__).parent / "tasks"
