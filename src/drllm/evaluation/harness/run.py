"""`drllm evaluate --harness`: the base and policies on the harness's tasks in one process, with their logs and a paired comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from drllm.core.config import EvaluateConfig, to_dict
from drllm.core.digest import json_digest
from drllm.core.errors import InputError, first_line, network_errors
from drllm.core.files import read_json, write_bytes, write_json
from drllm.core.text import percent, table_text
from drllm.evaluation.fit import under_policy
from drllm.evaluation.harness import TASKS_FOLDER
from drllm.evaluation.harness.compare import compare, read_scores
from drllm.model.routed import RoutedModel
from drllm.policies.saved_config import policy_digest
from drllm.runs.card_facts import refresh_card
from drllm.runs.layout import RESULTS_FILE, ROUTES_FILE, SAMPLES_FILES, SUMMARY_FILE, RunFolder
from drllm.runs.names import BASE
from drllm.runs.provenance import running
from drllm.runs.stages import key_of, read_kept

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from drllm.evaluation.harness.lm_eval_private import EvaluatorConfig

MAX_NAME = 60  # characters of a folder's name
_MODEL, _HERE = "the model is `drllm evaluate`'s own", "results go to the run folder"
_OWN = {
    **dict.fromkeys(("model", "model_args"), _MODEL),
    **{name: f"use --{name} of `drllm evaluate`" for name in ("device", "tasks", "limit")},
    **dict.fromkeys(("output_path", "show_config", "wandb_args", "wandb_config_args", "trackio_args", "hf_hub_log_args"), _HERE),
    "log_samples": "samples are logged anyway",
    "predict_only": "there would be nothing to compare",
    "config": "give its options in --harness-args",
}
_PASSED_ON = (  # options of the harness's command line that its function takes as they are
    *("tasks", "num_fewshot", "batch_size", "limit", "samples", "check_integrity", "write_out", "system_instruction"),
    *("apply_chat_template", "fewshot_as_multiturn", "gen_kwargs", "confirm_run_unsafe_code", "metadata"),
)


def complete(arguments: Any) -> None:
    """Fill in what the harness's command line leaves out here: the model, and the folder of the offline tasks."""
    import drllm.evaluation.harness.model  # noqa: F401  registers the model

    settings: dict[str, Any] = {}
    if config := getattr(arguments, "config", None):
        try:
            settings = yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"cannot read {config!r} ({first_line(error)}): --config expects the harness's YAML file") from None
    if not getattr(arguments, "model", None) and "model" not in settings:
        arguments.model = "drllm"
    given = getattr(arguments, "include_path", None) or settings.get("include_path") or []
    arguments.include_path = [str(TASKS_FOLDER), *([given] if isinstance(given, str) else given)]


def evaluate_harness(
    routed: RoutedModel,
    methods: Sequence[str],
    tasks: Sequence[str],
    out: str | Path,
    config: EvaluateConfig | None = None,
    data: str | Path | None = None,
    harness_args: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run the harness's tasks with the base and each policy, and compare them document by document.

    Args:
        routed: the model; policies are loaded from `out/<method>/`, and its own policy is left as it is.
        methods: "base" (always added, first) and folders of `out` that hold a policy, such as "static" and "routers".
        tasks: the harness's task names; `drllm_*` are the offline ones, whose split and data follow `config.split` and `data`.
        out: the run folder; results go to `out/harness/<split>/<tasks>/<method>/`, finished methods are read back.
        harness_args: any other options of the harness's command line.

    Returns:
        The summary, also written beside the methods' folders: their metrics and routing figures, and the paired rows.
    """
    config, run = config or EvaluateConfig(), RunFolder(Path(out))
    names = [BASE, *dict.fromkeys(name for name in methods if name != BASE)]
    settings = _settings(tasks, config, data, harness_args)
    folder = harness_folder(run.root, tasks, config, harness_args)
    policies = {name: None if name == BASE else routed.load_policy(run.policy(name)) for name in names}
    digests = {name: policy_digest(run.policy(name)) for name in names if name != BASE}
    request = {"tasks": list(tasks), "harness_args": list(harness_args)}
    results: dict[str, Any] = {}
    fresh = set()  # methods that are not read back
    with running(run.root, "evaluate --harness", to_dict(config) | request, argv) as entry:
        manager, questions, entry["read_test_split"] = _load_tasks(settings, config)
        for name, policy in policies.items():
            model = [name, routed.fingerprint, str(routed.model.dtype), digests.get(name, "")]
            key = _key(model, settings, questions)
            results[name] = read_kept(folder / name / RESULTS_FILE, key, "delete it and evaluate again", "drllm_key")
            if results[name] is None:
                fresh.add(name)
                # The harness's cache knows requests, not models: a file for each.
                cache = settings.use_cache and f"{settings.use_cache}_{name}_{key_of(model)}"
                with under_policy(routed, policy):
                    results[name] = _run(routed, settings, manager, cache, folder / name, key)
        scores = {name: read_scores(folder / name) for name in names} if len(names) > 1 else {}
        rows = compare(scores, config.n_resamples, config.seed) if scores else []
        summary = {"model": routed.base_id, "fingerprint": routed.fingerprint, "split": config.folder, "reference": BASE} | request
        metrics = {name: result["results"] for name, result in results.items()}
        summary |= {"policies": digests, "metrics": metrics, "routing": _routing(results, fresh), "rows": rows}
        write_json(folder / SUMMARY_FILE, summary)
    for name in digests:
        refresh_card(run.policy(name))  # with this command and its figures
    return summary


def _routing(results: Mapping[str, Any], fresh: set[str]) -> dict[str, Any]:
    """What each method's routes did on each task, from its results."""
    routing = {name: result["config"]["drllm"]["tasks"] for name, result in results.items()}
    for name, by_task in routing.items():
        for task, figures in by_task.items():
            # Of both runs, where both were made just now.
            base = routing[BASE].get(task) if name != BASE and {name, BASE} <= fresh else None
            figures["seconds_over_base"] = None if base is None else figures["seconds"] / base["seconds"]
    return routing


def harness_folder(out: Path, tasks: Sequence[str], config: EvaluateConfig, harness_args: Sequence[str]) -> Path:
    """Where the results of these tasks and options go; those of others overwrite nothing."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", "+".join(tasks))
    if len(name) > MAX_NAME or harness_args:
        name = f"{name[:MAX_NAME]}-{key_of([list(tasks), list(harness_args)])[:8]}"
    return RunFolder(out).harness(config.folder, name)


def _settings(tasks: Sequence[str], config: EvaluateConfig, data: str | Path | None, harness_args: Sequence[str]) -> EvaluatorConfig:
    from drllm.evaluation.harness.lm_eval_private import parse_run, settings_of

    said = io.StringIO()  # its parser writes what is wrong to standard error, the last line says it
    try:
        with contextlib.redirect_stderr(said):
            arguments = parse_run(harness_args)
    except SystemExit:
        reason = first_line(said.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2], 200)
        raise InputError(
            f"the harness does not understand {' '.join(harness_args)!r} ({reason}): `lm_eval run --help` lists its options"
        ) from None
    for name, instead in _OWN.items():
        if getattr(arguments, name, None):
            raise InputError(f"--{name} cannot be given to the harness here: {instead}")
    given = getattr(arguments, "metadata", None) or {}
    if own := {"split", "data"} & given.keys():
        raise InputError(f"metadata {min(own)!r} cannot be given to the harness here: use --{min(own)} of `drllm evaluate`")
    arguments.metadata = given | {"split": config.split} | ({} if data is None else {"data": str(data)})
    arguments.tasks, arguments.model = ",".join(tasks), "drllm"
    arguments.batch_size = getattr(arguments, "batch_size", None) or config.batch_size
    arguments.limit = config.limit or None
    complete(arguments)
    try:
        return settings_of(arguments)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"the harness refuses its options: {first_line(error, 200)}") from None


def _load_tasks(settings: EvaluatorConfig, config: EvaluateConfig) -> tuple[TaskManager, str, bool]:
    """The task manager, a digest of what will be asked, and whether a task reads a test split: of ours, or test documents of its own."""
    from datasets.exceptions import DatasetsError

    try:
        manager = settings.process_tasks(settings.metadata)
        loaded = manager.load(settings.tasks)["tasks"]
    except (*network_errors(), ValueError, KeyError, OSError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        advice = "stock tasks need the Hub, drllm_* tasks read the data package or --data"
        raise InputError(f"the harness cannot load {settings.tasks}: {reason}; {advice}") from None
    content = []
    for name, task in sorted(loaded.items()):
        n_shots = settings.num_fewshot if settings.num_fewshot is not None else task.get_config("num_fewshot") or 0
        shots = list(task.fewshot_docs() or ()) if n_shots else []
        if n_shots > len(shots):
            raise InputError(f"{name} has {len(shots)} questions to take {n_shots} shots from: lower --num_fewshot or give more data")
        content.append([name, task.dump_config(), list(task.eval_docs), shots])
    is_test = config.split == "test" or any(not name.startswith("drllm_") and task.has_test_docs() for name, task in loaded.items())
    return manager, json_digest(content, sort_keys=True, default=str), is_test


def _run(routed: RoutedModel, settings: EvaluatorConfig, manager: TaskManager, cache: str | None, folder: Path, key: str) -> dict[str, Any]:
    """One method through the harness; its results and sample logs are written before they are returned."""
    from lm_eval import simple_evaluate

    from drllm.evaluation.harness.lm_eval_private import to_json
    from drllm.evaluation.harness.model import RoutedLM

    lm = RoutedLM(routed, batch_size=settings.batch_size, max_batch_size=settings.max_batch_size or 64)
    kinds = ("cache_requests", "rewrite_requests_cache", "delete_requests_cache")
    caching = {name: settings.cache_requests.get(name, False) for name in kinds}
    seeds = settings.seed if isinstance(settings.seed, list) else [settings.seed] * 4
    seeding = dict(zip(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seeds, strict=True))
    same = {name: getattr(settings, name) for name in _PASSED_ON}
    run: Any = simple_evaluate  # its decorator hides its signature
    results = run(model=lm, use_cache=cache, task_manager=manager, log_samples=True, **same, **caching, **seeding)
    folder.mkdir(parents=True, exist_ok=True)
    for task, samples in results.pop("samples").items():
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", task)
        write_bytes(folder / SAMPLES_FILES.replace("*", name), b"".join(to_json(sample) + b"\n" for sample in samples))
    prompts = sorted(lm.routing.prompts, key=lambda prompt: (prompt.task, prompt.doc_id))
    lines = [dataclasses.asdict(prompt) | {"route": str(prompt.route)} for prompt in prompts]
    write_bytes(folder / ROUTES_FILE, b"".join(to_json(line) + b"\n" for line in lines))
    # Last: whatever a crash leaves before is done again.
    write_bytes(folder / RESULTS_FILE, to_json(results | {"drllm_key": key}, indent=2))
    return read_json(folder / RESULTS_FILE, "evaluate again")


def _key(model: Sequence[str], settings: EvaluatorConfig, questions: str) -> str:
    """Names everything the figures depend on: weights, dtype, policy, questions and prompts, the harness's options and version."""
    from importlib.metadata import version

    silent = ("verbosity", "show_config", "write_out", "tasks", "metadata")  # what the last two say stands in `questions`
    plain = {field: value for field, value in dataclasses.asdict(settings).items() if field not in silent}
    return json_digest([list(model), plain, questions, version("lm_eval")], sort_keys=True, default=str)


def render_routing(summary: dict[str, Any]) -> str:
    """What each method's routes did on each task and what they cost, as a table for a terminal."""
    n_layers = next((figures["n_layers"] for by_task in summary["routing"].values() for figures in by_task.values()), 0)
    title = f"{summary['model']}, {summary['split']} split: passes and layer applications a prompt, of {n_layers} blocks"
    header = ("method", "task", "prompts", "passes", "layers", "identity, %", "consensus, %", "router s", "seconds", "x base")
    rows = []
    for method, by_task in summary["routing"].items():
        for task, figures in by_task.items():
            ratio = figures["seconds_over_base"]
            agreement = figures["consensus"]
            layers, seconds = f"{figures['layers_per_prompt']:.1f}", f"{figures['seconds']:.1f}"
            shares = (percent(figures["identity_share"]), "" if agreement is None else percent(agreement))
            work = (str(figures["prompts"]), f"{figures['mean_passes']:.2f}", layers, *shares, f"{figures['router_seconds']:.2f}", seconds)
            rows.append((method, task, *work, "" if ratio is None else f"{ratio:.2f}"))
    return table_text(header, rows, title)
