"""Runs one vLLM engine as standard input says, in the serving environment, and prints what came out as JSON on the last line.

Input: `model`, `spec` (fields of ServeSpec, or null for stock vLLM), `engine` (arguments of vLLM's EngineArgs), `requests`: each `ids`,
`route`, `new` and `arrives` (after how many steps).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serve_engine import ENVIRONMENT

os.environ |= ENVIRONMENT
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def told(output: Any) -> dict[str, Any] | None:
    if output is None:
        return None
    ids, entries = list(output.outputs[0].token_ids), output.outputs[0].logprobs
    logprobs = [entry[token].logprob for token, entry in zip(ids, entries, strict=True)]
    return {"ids": ids, "logprobs": logprobs, "finished": output.finished, "cached": output.num_cached_tokens}


def main() -> None:
    """One engine, one batch of requests."""
    job = json.load(sys.stdin)
    from transformers import AutoConfig
    from vllm import EngineArgs, LLMEngine, SamplingParams

    from drllm.deploy.serving.engine.plugin import architecture
    from drllm.deploy.serving.launch import engine_options
    from drllm.deploy.serving.spec import ServeSpec

    options = {
        "model": job["model"],
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "skip_tokenizer_init": True,
        "seed": 0,
    } | job["engine"]
    if job["spec"] is not None:
        import torch

        base = AutoConfig.from_pretrained(job["model"]).architectures[0]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options |= engine_options(ServeSpec(**job["spec"]), architecture(base), device)
    engine = LLMEngine.from_engine_args(EngineArgs(**options))
    requests = job["requests"]
    outputs, step = {}, 0
    waiting = set(range(len(requests)))
    while waiting or engine.has_unfinished_requests():
        for index in sorted(waiting):
            request = requests[index]
            if request.get("arrives", 0) > step:
                continue
            waiting.discard(index)
            extra = {} if request.get("route") is None else {"drllm_route": request["route"]}
            extra |= {"drllm_prompt": str(index)}
            params = SamplingParams(
                temperature=0, max_tokens=request["new"], ignore_eos=True, logprobs=1, detokenize=False, extra_args=extra
            )
            prompt = {"prompt_token_ids": request["ids"]}
            engine.add_request(str(index), prompt, params)
        for output in engine.step():
            outputs[output.request_id] = output
        step += 1
    cache = engine.vllm_config.cache_config
    result = {"answers": [told(outputs.get(str(index))) for index in range(len(requests))], "steps": step}
    result |= {"blocks": cache.num_gpu_blocks, "block_size": cache.block_size}
    if job["spec"] is not None:
        result["stats"] = engine.collective_rpc("drllm_stats")[0]
        names = [str(index) for index in range(len(requests))]
        found = engine.collective_rpc("drllm_decisions", args=(names,))[0]
        result["routes"] = [found[name][0] if name in found else None for name in names]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
