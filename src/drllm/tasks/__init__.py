"""Questions: what a task asks, how an answer is judged, where the rows come from, and which split they belong to.

No torch, and no model: it imports `core` alone.
"""

from drllm.tasks.base import LETTERS, TASK_NAMES, Example, Task, get_task, own_task
from drllm.tasks.files import own_name
from drllm.tasks.grading import boxed_matches, letter_choice
from drllm.tasks.readers import f1_score
from drllm.tasks.sources import load_task
from drllm.tasks.splits import SPLITS, LoadedTask, drop_overlaps, question_key, split_examples, texts_digest

__all__ = ["LETTERS", "SPLITS", "TASK_NAMES", "Example", "LoadedTask", "Task", "boxed_matches", "drop_overlaps", "f1_score", "get_task"]
__all__ += ["letter_choice", "load_task", "own_name", "own_task", "question_key", "split_examples", "texts_digest"]
