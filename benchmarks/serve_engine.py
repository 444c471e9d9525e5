"""One vLLM engine in a process of its own, one thread, told what to run line by line on standard input: see `serve.py`.

First line: `model`, `dtype`, `spec` (null: stock), `eager`. Then for each line a run: `prompts` (token ids), `routes` (or null), `new`.
What is printed for it: processor seconds of the prefill (until every row has its first token) and of the decoding, and the number of tokens
decoded. A line with `clocked` true puts clocks around the engine's parts: seconds of a decoding step in each, and beside them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_PLUGINS": "drllm", "VLLM_USE_V2_MODEL_RUNNER": "0",
}  # fmt: skip
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def clock() -> float:
    """Processor seconds; on a GPU, whose work this process's own time does not show, seconds, once it is done."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def run(engine: Any, told: dict[str, Any], first: int) -> dict[str, float]:
    """One batch from its first step to its last."""
    from vllm import SamplingParams

    for row, ids in enumerate(told["prompts"]):
        is_base = told["routes"] is None or set(told["routes"][row]) == {"1"}
        extra = {} if is_base else {"drllm_route": told["routes"][row]}
        params = SamplingParams(temperature=0, max_tokens=told["new"], ignore_eos=True, detokenize=False, extra_args=extra)
        engine.add_request(str(first + row), {"prompt_token_ids": ids}, params)
    begun: set[str] = set()
    marks = [clock()]
    steps = 0
    while engine.has_unfinished_requests():
        begun |= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
        if len(begun) == len(told["prompts"]):
            steps += 1
            if len(marks) == 1:
                marks.append(clock())
    marks.append(clock())
    decoded = (told["new"] - 1) * len(told["prompts"])
    return {"prefill": marks[1] - marks[0], "decode": marks[2] - marks[1], "tokens": decoded, "steps": steps - 1}


def clocked(engine: Any, told: dict[str, Any], first: int) -> dict[str, Any]:
    """The same along the base, with clocks around its parts: seconds of a decoding step in each, and beside them.

    Parts are the blocks of a stock engine, and the compiled stretches of a routed one, which then runs the base's route in them, too.
    """
    from drllm.serving.engine.plan import StepPlan

    model = engine.model_executor.driver_worker.worker.model_runner.model
    routed = bool(getattr(model, "stretches", None))
    parts, name = (model.stretches, "run") if routed else (list(model.model.layers), "forward")
    spent = [0.0] * len(parts)
    originals = [getattr(part, name) for part in parts]

    def timed(place: int, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            out = original(*args, **kwargs)
            spent[place] += clock() - started
            return out

        return call

    for place, (part, original) in enumerate(zip(parts, originals, strict=True)):
        setattr(part, name, timed(place, original))
    if routed:
        StepPlan.is_base = property(lambda plan: False, lambda plan, value: None)  # type: ignore[assignment, method-assign]
    try:
        run(engine, told | {"new": 2}, first)
        short, spent[:] = list(spent), [0.0] * len(parts)  # the prefill and one step, to be taken off
        whole = run(engine, told, first + 1000)
    finally:
        for part, original in zip(parts, originals, strict=True):
            setattr(part, name, original)
        if routed:
            del StepPlan.is_base  # type: ignore[misc]
    inside = [(long - less) / (told["new"] - 2) for long, less in zip(spent, short, strict=True)]
    return {"parts": inside, "beside": whole["decode"] / (told["new"] - 1) - sum(inside)}


def main() -> None:
    """Until standard input ends."""
    told = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the results
    from transformers import AutoConfig
    from vllm import EngineArgs, LLMEngine

    from drllm.serving.engine.plugin import architecture
    from drllm.serving.launch import engine_options
    from drllm.serving.spec import ServeSpec

    options: dict[str, Any] = {
        "model": told["model"], "dtype": told["dtype"], "enforce_eager": told["eager"], "max_model_len": 1024, "skip_tokenizer_init": True,
        "seed": 0, "enable_prefix_caching": False, "max_num_seqs": 64, "async_scheduling": False,
    }  # fmt: skip
    if told["spec"] is not None:
        import torch

        base = AutoConfig.from_pretrained(told["model"]).architectures[0]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options |= engine_options(ServeSpec(**told["spec"]), architecture(base), device)
    engine = LLMEngine.from_engine_args(EngineArgs(**options))
    print(json.dumps({"ready": True}), file=out, flush=True)
    first = 0
    for line in sys.stdin:
        asked = json.loads(line)
        done = clocked(engine, asked, first) if asked.get("clocked") else run(engine, asked, first)
        first += 10_000
        print(json.dumps(done), file=out, flush=True)


if __name__ == "__main__":
    main()
