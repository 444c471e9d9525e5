"""What exported checkpoints take in other tools, against the base's, in turns: vLLM, and llama.cpp where it is (`make llama-cpp-env`).

    .venv-serve/bin/python benchmarks/exported.py --model smollm2-135m-q4 "healed 0.9=runs/healed/merged" [--out FILE.json]

One prompt at a time, `--tokens` long, and `--new` tokens written, one thread. In each round every model answers the same prompt, in an
order drawn anew: vLLM's engines (a process each, compiled) a step each in turn, by processor time; llama.cpp's one after the other, by its
own clock, from files of 8-bit weights that llama.cpp's converter wrote. Ratios to the base's seconds in the same round, their median over
the rounds with its 95 % interval by order statistics. The base stands among them twice: the second says what the turns are worth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import timed_prompts
from drllm import RoutedModel
from drllm.core.files import write_json
from drllm.deploy.serving.launch import cache_folder, checkpoint_of
from drllm.runs.provenance import hardware, versions
from generate import native_dtype
from serve import Engine, in_turns
from timing import check_rounds, median_interval

ROOT = Path(__file__).parents[1]
CONVERTER = ROOT / ".venv" / "converter" / "convert_hf_to_gguf.py"
LLAMA_CPP = ROOT / ".venv-llama-cpp"
BASE, AGAIN = "base", "base again"
Found = dict[str, dict[str, list[float]]]  # model -> what was timed -> a ratio a round


def in_vllm(models: Mapping[str, str], prompts: list[list[int]], dtype: str, new: int, rng: random.Random) -> Found:
    """A round a prompt; the first warms up."""
    engines = {name: Engine(folder, dtype, None, False) for name, folder in models.items()}
    for engine in engines.values():
        engine.receive()
    found: Found = {name: {"prompt": [], "prompt and answer": []} for name in models}
    for round_, ids in enumerate(prompts):
        runs = dict(zip(engines, in_turns(list(engines.values()), [None] * len(engines), [ids], new, rng), strict=True))
        for name, run in runs.items() if round_ else ():
            found[name]["prompt"].append(run.prefill / runs[BASE].prefill)
            found[name]["prompt and answer"].append(run.whole / runs[BASE].whole)
    return found


def in_llama_cpp(models: Mapping[str, str], texts: list[str], new: int, rng: random.Random) -> Found:
    """A round a prompt; the first warms up."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {folder: f"{scratch}/{place}.gguf" for place, folder in enumerate(dict.fromkeys(models.values()))}
        for folder, file in files.items():
            command = [str(ROOT / ".venv" / "bin" / "python"), str(CONVERTER), folder, "--outfile", file, "--outtype", "q8_0"]
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(CONVERTER.parent)})
        rounds = [(text, rng.sample(list(models), len(models))) for text in texts]
        job, out = Path(scratch, "job.json"), Path(scratch, "out.json")
        job.write_text(json.dumps({"models": {name: files[folder] for name, folder in models.items()}, "rounds": rounds, "new": new}))
        script = Path(__file__).with_name("exported_llamacpp.js")
        subprocess.run(["node", str(script), str(job), str(out)], cwd=LLAMA_CPP, check=True, capture_output=True)
        timed = json.loads(out.read_text())[1:]
    return {
        name: {
            "prompt": [of[name][0] / of[BASE][0] for of in timed],
            "prompt and answer": [sum(of[name]) / sum(of[BASE]) for of in timed],
        }
        for name in models
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--dtype", default="", choices=["", "bfloat16", "float32"], help="default: what the processor multiplies itself")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    timed_prompts.add_options(parser)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    check_rounds(parser, given.rounds)
    torch.set_num_threads(1)
    dtype, rng = given.dtype or native_dtype("cpu"), random.Random(given.seed)
    routed = RoutedModel.wrap(given.model, dtype=dtype)
    base = checkpoint_of(routed, cache_folder())
    models = {BASE: str(base), AGAIN: str(base)} | dict(one.split("=", 1) for one in given.exported)
    # Questions one behind the other, as long as asked for, no two prompts alike from the first token on.
    tokens = [token for ids in timed_prompts.timed_prompts(routed, given) for token in ids]
    prompts = [tokens[at * given.tokens : (at + 1) * given.tokens] for at in range(given.rounds + 1)]
    said: dict[str, Any] = {"model": given.model, "dtype": dtype, "tokens": given.tokens, "new": given.new, "rounds": given.rounds}
    said |= {"hardware": hardware(), "versions": versions(), "seconds": {}}
    found = {"vLLM": in_vllm(models, prompts, dtype, given.new, rng)}
    if LLAMA_CPP.is_dir() and CONVERTER.is_file():
        found["llama.cpp"] = in_llama_cpp(models, [routed.tokenizer.decode(ids) for ids in prompts], given.new, rng)
    for tool, rows in found.items():
        said["seconds"][tool] = {name: {of: median_interval(ratios) for of, ratios in row.items()} for name, row in rows.items()}
        for name, row in said["seconds"][tool].items():
            told = "; ".join(f"{of} {ratio:.3f} ({low:.3f} to {high:.3f})" for of, (ratio, low, high) in row.items())
            print(f"{tool}, {name}: {told}, of the base's seconds")
    if given.out:
        write_json(given.out, said)


if __name__ == "__main__":
    sys.exit(main())
