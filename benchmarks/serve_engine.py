"""One vLLM engine in a process of its own, one thread, which reads what to run line by line from standard input: see `serve.py`.

First line: `model`, `dtype`, `spec` (null: stock), `eager`. Then a line with `prompts` (token ids), `routes` (or null) and `new` begins a
batch and runs its prefill, until every row has its first token; each line with `step` runs one step more. What is printed for either:
processor `seconds`, and whether there is `more` to run; with `chosen` true also each row's route, where the engine chose it. A line with
`clocked` true runs a batch to its end with clocks around the engine's parts: median seconds of a decoding step in each, and beside them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_PLUGINS": "drllm",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


def clock() -> float:
    """Processor seconds; on a GPU, whose work this process's own time does not show, seconds, once it is done."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def begin(engine: Any, request: dict[str, Any], first: int) -> dict[str, Any]:
    """The prefill of a batch: its steps until every row has its first token."""
    from vllm import SamplingParams

    for row, ids in enumerate(request["prompts"]):
        is_base = request["routes"] is None or set(request["routes"][row]) == {"1"}
        extra = {"drllm_prompt": str(first + row)} | ({} if is_base else {"drllm_route": request["routes"][row]})
        params = SamplingParams(temperature=0, max_tokens=request["new"], ignore_eos=True, detokenize=False, extra_args=extra)
        engine.add_request(str(first + row), {"prompt_token_ids": ids}, params)
    begun: set[str] = set()
    started = clock()
    while len(begun) < len(request["prompts"]):
        begun |= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
    seconds = clock() - started
    chosen = None
    if request.get("chosen"):
        names = [str(first + row) for row in range(len(begun))]
        found = engine.collective_rpc("drllm_decisions", args=(names,))[0]
        chosen = [found[name][0] if name in found else None for name in names]
    return {"seconds": seconds, "more": engine.has_unfinished_requests(), "chosen": chosen}


def step(engine: Any) -> dict[str, Any]:
    """One step of the batch under way."""
    started = clock()
    engine.step()
    return {"seconds": clock() - started, "more": engine.has_unfinished_requests()}


def clocked(engine: Any, request: dict[str, Any], first: int) -> dict[str, Any]:
    """A batch along the base, with clocks around its parts: median seconds of a decoding step in each, and beside them.

    Parts are the blocks of a stock engine, and the compiled segments of a routed engine, which then runs the base's route in them, too.
    """
    from drllm.deploy.serving.engine.schedule import Schedule
    from drllm.deploy.serving.engine.vllm_private import model_of

    model = model_of(engine)
    routed = bool(getattr(model, "segments", None))
    parts, name = (model.segments, "run") if routed else (list(model.model.layers), "forward")
    spent = [0.0] * len(parts)
    originals = [getattr(part, name) for part in parts]

    def timed(place: int, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            out = original(*args, **kwargs)
            spent[place] = clock() - started
            return out

        return call

    for place, (part, original) in enumerate(zip(parts, originals, strict=True)):
        setattr(part, name, timed(place, original))
    if routed:
        Schedule.is_base = property(lambda schedule: False, lambda schedule, value: None)  # type: ignore[assignment, method-assign]
    inside, beside = [], []
    try:
        more = begin(engine, request, first)["more"]
        while more:
            done = step(engine)
            more = done["more"]
            inside.append(list(spent))
            beside.append(done["seconds"] - sum(spent))
    finally:
        for part, original in zip(parts, originals, strict=True):
            setattr(part, name, original)
        if routed:
            del Schedule.is_base  # type: ignore[misc]
    return {"parts": [statistics.median(of_part) for of_part in zip(*inside, strict=True)], "beside": statistics.median(beside)}


def main() -> None:
    """Until standard input ends."""
    os.environ |= ENVIRONMENT
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    request = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the results
    from transformers import AutoConfig
    from vllm import EngineArgs, LLMEngine

    from drllm.deploy.serving.engine.plugin import architecture
    from drllm.deploy.serving.launch import engine_options
    from drllm.deploy.serving.spec import ServeSpec

    # Nine engines stand side by side: each has cache for 32 rows of two blocks and some more, not the gigabyte of vLLM's least.
    options: dict[str, Any] = {
        "model": request["model"],
        "dtype": request["dtype"],
        "enforce_eager": request["eager"],
        "max_model_len": 1024,
        "skip_tokenizer_init": True,
        "seed": 0,
        "enable_prefix_caching": False,
        "max_num_seqs": 64,
        "async_scheduling": False,
        "num_gpu_blocks_override": 80,
    }
    if request["spec"] is not None:
        import torch

        base = AutoConfig.from_pretrained(request["model"]).architectures[0]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options |= engine_options(ServeSpec(**request["spec"]), architecture(base), device)
        if request["spec"]["mode"] == "engine":  # as `drllm serve` starts it
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 2048}
    engine = LLMEngine.from_engine_args(EngineArgs(**options))
    print(json.dumps({"ready": True}), file=out, flush=True)
    first = 0
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("step"):
            done = step(engine)
        else:
            done = (clocked if request.get("clocked") else begin)(engine, request, first)
            first += 10_000
        print(json.dumps(done), file=out, flush=True)


if __name__ == "__main__":
    main()
