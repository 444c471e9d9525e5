"""The parts of lm-evaluation-harness that drllm uses though they are not documented: each is there, and as `lm_eval_private` takes it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval (pip install '.[eval]')")

import lm_eval
from lm_eval.api.samplers import ContextSampler

from drllm.evaluation.harness.lm_eval_private import CHECKED, parse_run, settings_of, shots_sorted, stock_model, to_json

# module, name inside, and the parameters that drllm gives or takes by name or place; None where only the name matters
PARTS: list[tuple[str, str, list[str] | None]] = [
    ("lm_eval._cli", "HarnessCLI.parse_args", ["self"]),
    ("lm_eval._cli", "HarnessCLI.execute", ["self", "args"]),
    ("lm_eval.utils", "setup_logging", []),
    ("lm_eval.utils", "handle_non_serializable", ["o"]),
    ("lm_eval.config.evaluate_config", "EvaluatorConfig.from_cli", ["namespace"]),
    ("lm_eval.config.evaluate_config", "EvaluatorConfig.process_tasks", ["self", "metadata"]),
    ("lm_eval.models.huggingface", "HFLM._loglikelihood_tokens", ["self", "requests", "disable_tqdm", "override_bs"]),
    ("lm_eval.models.huggingface", "HFLM._model_call", ["self", "inps"]),
    ("lm_eval.models.huggingface", "HFLM._model_generate", ["self", "context", "max_length", "stop"]),
    ("lm_eval.models.huggingface", "HFLM._detect_batch_size", ["self", "requests", "pos"]),
    ("lm_eval.models.huggingface", "HFLM.tok_batch_encode", ["self", "strings"]),
    ("lm_eval.models.huggingface", "HFLM.get_model_info", ["self"]),
    ("lm_eval.api.samplers", "FirstNSampler.sample", ["self", "n", "eval_doc", "df"]),
    ("lm_eval.api.task", "ConfigurableTask.fewshot_context", ["self", "doc"]),
    ("lm_eval.api.task", "ConfigurableTask.dump_config", ["self"]),
    ("lm_eval.api.task", "ConfigurableTask.get_config", ["self", "key"]),
    ("lm_eval.api.task", "ConfigurableTask.fewshot_docs", ["self"]),
    ("lm_eval.api.task", "ConfigurableTask.eval_docs", None),
    ("lm_eval.api.task", "ConfigurableTask.has_test_docs", ["self"]),
]
CHANGED = f"lm-eval {lm_eval.__version__} changed %s, which drllm was checked with on {CHECKED}: mend evaluation/harness/lm_eval_private.py"


@pytest.mark.parametrize(("module", "name", "parameters"), PARTS, ids=[name for _, name, _ in PARTS])
def test_each_private_part_is_there(module: str, name: str, parameters: list[str] | None):
    found: Any = importlib.import_module(module)
    for step in name.split("."):
        assert hasattr(found, step), CHANGED % f"{module}: {name} is gone"
        found = getattr(found, step)
    if parameters is not None:
        got = list(inspect.signature(found).parameters)
        assert got[: len(parameters)] == parameters, CHANGED % f"{module}: {name} takes {got}"


def test_the_settings_have_the_fields_that_drllm_reads():
    from lm_eval.config.evaluate_config import EvaluatorConfig

    read = """tasks num_fewshot batch_size max_batch_size use_cache cache_requests limit samples check_integrity write_out seed metadata
        system_instruction apply_chat_template fewshot_as_multiturn gen_kwargs confirm_run_unsafe_code verbosity show_config include_path"""
    missing = {*read.split()} - {field.name for field in dataclasses.fields(EvaluatorConfig)}
    assert not missing, CHANGED % f"EvaluatorConfig: no {sorted(missing)}"


def test_the_command_line_takes_whole_words_only():
    arguments = parse_run(["--num_fewshot", "3"])
    assert arguments.num_fewshot == 3, CHANGED % "HarnessCLI._parser"
    with pytest.raises(SystemExit):
        parse_run(["--num_few", "3"])  # of which drllm's own checks of flags would not know
    arguments.model, arguments.tasks = "drllm", "drllm_arc_easy"
    assert settings_of(arguments).num_fewshot == 3, CHANGED % "EvaluatorConfig.from_cli"


def test_shots_are_sorted_for_one_drawing():
    documents = [{"n": n} for n in (2, 1, 3)]
    sampler = ContextSampler(documents)
    assert sampler.df == documents, CHANGED % "ContextSampler.df"
    with shots_sorted(sampler, lambda document: document["n"]):
        assert sampler.df == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert sampler.df == documents


def test_the_stock_model_sets_the_attributes_that_drllm_reads():
    from lm_eval.models.huggingface import HFLM

    set_there = "".join(inspect.getsource(cls.__init__) for cls in HFLM.__mro__[:-1] if "__init__" in vars(cls))
    for name in ("batch_sizes", "batch_schedule", "max_batch_size", "softmax_dtype", "mixed_precision_dtype", "cache_hook"):
        assert f"self.{name}" in set_there, CHANGED % f"HFLM.{name}"


def test_the_stock_model_asks_our_steps():
    """`loglikelihood` and `generate_until` of the stock model end in the methods that `RoutedLM` overrides."""
    from drllm.evaluation.harness.model import RoutedLM

    stock = stock_model()
    assert stock.__abstractmethods__ == {"score_tokens", "logits_of", "generate_tokens"}, CHANGED % "HFLM, which leaves other methods open,"
    assert not RoutedLM.__abstractmethods__
    assert "_loglikelihood_tokens" in inspect.getsource(stock.__mro__[1].__mro__[1].loglikelihood), CHANGED % "TemplateLM.loglikelihood"
    assert "self._model_call(" in inspect.getsource(stock.__mro__[1]._loglikelihood_tokens), CHANGED % "HFLM._loglikelihood_tokens"
    assert "_model_generate" in inspect.getsource(stock.__mro__[1].generate_until), CHANGED % "HFLM.generate_until"


def test_results_are_written_as_the_harness_writes_them():
    assert to_json({"é": {1}}, indent=None) == '{"é": [1]}'.encode(), CHANGED % "handle_non_serializable"
