"""What routes cost and save in plain transformers: `make bench-generate`.

    python benchmarks/generate.py [--batches 1,8,32] [--rounds 24] [--new 24] [--arms identity,common,exported] [--out FILE.json]

One process, one computing thread, `--model` in bf16 where the processor multiplies bf16 itself, else in fp32. In each round every arm
answers the same prompts once: stock `generate` of a model that drllm has not touched; the identity policy; one common route; the exported
checkpoint of that route, loaded by stock transformers; a route that runs a span of four blocks twice, and the exported checkpoint of that;
four nested routes; as many routes as rows; routers. The arms take turns step by step, in an order drawn anew for each step: a machine's
speed drifts within seconds by more than what is measured here. A stopping criterion ends each turn and reads the clock, the same in all
arms. Ratios are of one round (its prefills; the means of its decoding steps); their median stands with its 95 % interval by order
statistics. Then, one prompt at a time, what pooling and routers take of a prefill, by the prompt's tokens.

The limit of mixed routes (`limits.py`) is measured between the rounds by clocks around the blocks of stock steps.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteriaList

import timed_prompts
import timed_routes
from drllm import Route, RoutedModel
from drllm.core.files import write_json
from drllm.deploy.export import export
from drllm.evaluation.clock import latency, throughput
from drllm.model.load import load_base, quiet_loading
from drllm.model.prompts import left_pad
from drllm.policies.constant import GivenRoutes, RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.provenance import hardware, versions
from limits import Parts, limit_of, seconds_by_rows
from timing import Clock, Turns, check_rounds, median_interval, now

EXPORTED = {"exported": ("common", timed_routes.common), "looped_exported": ("looped", timed_routes.looped)}  # of which arm, and its route
MIXED = ("nested", "different")  # routes of several rows
ARMS = ("identity", "common", "exported", "looped", "looped_exported", *MIXED, "routers")


def native_dtype(device: str) -> str:
    """bf16 where the device multiplies it itself, else fp32."""
    return "bfloat16" if device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def share_weights(base: Any, other: Any, route: Route) -> None:
    """Let a model of a route's blocks use the base's weights, which are its own, bit for bit: two copies of the same weights differ in
    speed by some hundredths, by where in memory they lie."""
    kept = route.path
    known = dict(base.named_parameters())
    for name, parameter in other.named_parameters():
        theirs = known[re.sub(r"(?<=layers\.)\d+", lambda found: str(kept[int(found[0])]), name)]
        assert torch.equal(parameter, theirs), name
        parameter.data = theirs.data


def exported_of(routed: RoutedModel, route: Route) -> Any:
    """The exported checkpoint of a route as stock transformers loads it, with the base's weights."""
    with tempfile.TemporaryDirectory() as place, quiet_loading():
        export(routed, route, Path(place) / "exported")
        model: Any = AutoModelForCausalLM.from_pretrained(Path(place) / "exported", dtype=routed.model.dtype).eval().to(routed.device)
    share_weights(routed.model, model, route)
    return model


def measure(
    routed: RoutedModel,
    others: dict[str, Any],
    prompts: list[list[int]],
    batch: int,
    rounds: int,
    n_new: int,
    seed: int,
    wanted: Sequence[str],
) -> dict[str, Any]:
    """Stock and the wanted arms at one batch size; `others` are models that drllm has not touched, by arm."""
    n_layers = routed.n_layers
    routers = Routers(RouterConfig(n_layers, routed.hidden_size), seed=0).to(routed.device)
    nested = [Route.parse(timed_routes.nested(n_layers)[row % 4]) for row in range(batch)]
    policies = {name: one for name, one in hand_made(n_layers, batch, nested, routers).items() if name in wanted}
    needed = sorted({sum(route[block] > 0 for route in nested) for block in range(n_layers)} | {batch}) if "nested" in policies else []
    arms = [*others, *policies]
    times: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in arms}
    limits: dict[str, list[dict[int, Parts]]] = {"prefill": [], "decode": []}
    deciding: list[float] = []
    rng = random.Random(seed)

    def answer(arm: str, ids: torch.Tensor, mask: torch.Tensor, criteria: StoppingCriteriaList) -> None:
        options: dict[str, Any] = {"max_new_tokens": n_new, "do_sample": False, "stopping_criteria": criteria}
        if arm in others:
            others[arm].generate(ids, attention_mask=mask, pad_token_id=routed.pad_id, **options)
        else:
            routed.generate(input_ids=ids, attention_mask=mask, policy=policies[arm], **options)

    for round_ in range(-1, rounds):  # the first warms up
        rows = [prompts[(max(round_, 0) * batch + row) % len(prompts)] for row in range(batch)]
        ids, mask = left_pad(rows, routed.pad_id, routed.device)
        turns = {arm: Turns(functools.partial(answer, arm, ids, mask)) for arm in arms}
        waiting = list(arms)
        while waiting:
            rng.shuffle(waiting)
            waiting = [arm for arm in waiting if turns[arm].take()]
        for arm, turn in turns.items() if round_ >= 0 else ():
            times[arm]["prefill"].append(turn.seconds[0])
            times[arm]["decode"].append(statistics.mean(turn.seconds[1:]))
        if round_ >= 0 and needed:
            found = seconds_by_rows(others["stock"], rows, needed, n_new, routed.pad_id, rng)
            limits["prefill"].append({n: value[0] for n, value in found.items()})
            limits["decode"].append({n: value[1] for n, value in found.items()})
        if round_ >= 0 and "routers" in policies:
            deciding.append(deciding_seconds(routed, routers, ids, mask))
    result: dict[str, Any] = {"batch": batch, "prompt_tokens": statistics.mean(map(len, prompts)), "rounds": rounds, "new": n_new}
    result |= compared(times)
    if deciding:
        result["deciding_share_of_prefill"] = median_interval([a / b for a, b in zip(deciding, times["stock"]["prefill"], strict=True)])
        result["deciding_seconds"] = statistics.median(deciding)
    if needed:
        result["limit"] = {part: saving_reached(times, limits[part], part, nested, batch) for part in limits}
    return result


def hand_made(n_layers: int, batch: int, nested: list[Route], routers: Routers) -> dict[str, Any]:
    """The policies by arm; several routes in a batch need more than one row."""
    policies: dict[str, Any] = {
        "identity": RoutePolicy(Route.full(n_layers)),
        "common": RoutePolicy(Route.parse(timed_routes.common(n_layers))),
        "looped": RoutePolicy(Route.parse(timed_routes.looped(n_layers), n_layers)),
        "nested": GivenRoutes(nested),
        "different": GivenRoutes(timed_routes.different(batch, n_layers)),
        "routers": routers,
    }
    return {name: policy for name, policy in policies.items() if batch > 1 or name not in MIXED}


def compared(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Seconds of each arm, and over those of stock and of the exported checkpoints in the same rounds."""

    def ratios(arm: str, base: str) -> dict[str, Any]:
        both = {part: zip(times[arm][part], times[base][part], strict=True) for part in times["stock"]}
        return {part: median_interval([a / b for a, b in pairs]) for part, pairs in both.items()}

    seconds = {arm: {part: statistics.median(values) for part, values in parts.items()} for arm, parts in times.items()}
    exported = {f"{arm}_to_exported": ratios(arm, name) for name, (arm, _) in EXPORTED.items() if {arm, name} <= times.keys()}
    return {"seconds": seconds, "to_stock": {arm: ratios(arm, "stock") for arm in times if arm != "stock"}} | exported


def saving_reached(
    times: dict[str, dict[str, list[float]]], found: list[dict[int, Parts]], part: str, nested: list[Route], batch: int
) -> dict[str, Any]:
    """The least that nested routes could take of stock's seconds, and the share of that saving that they reach."""
    n_layers, saving = len(nested[0]), []
    for stock, mine, by_rows in zip(times["stock"][part], times["nested"][part], found, strict=True):
        at_best = limit_of(nested, by_rows, n_layers)
        whole = sum(by_rows[batch])  # the stock step beside which the limit was measured
        saving.append((1 - mine / stock) / (1 - at_best / whole))
    best = statistics.median(limit_of(nested, by_rows, n_layers) / sum(by_rows[batch]) for by_rows in found)
    return {"of_stock": best, "saving_reached": median_interval(saving)}


def deciding_by_length(
    routed: RoutedModel, stock: Any, prompts: list[list[int]], lengths: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """What pooling and routers take of a prompt's prefill, one prompt at a time, by the prompt's tokens."""
    routers = Routers(RouterConfig(routed.n_layers, routed.hidden_size), seed=0).to(routed.device)
    text = [token for prompt in prompts for token in prompt]
    found = []
    for length in lengths:
        shares, seconds = [], []
        for round_ in range(-1, rounds):  # the first warms up
            start = max(round_, 0) * length % (len(text) - length)
            ids, mask = left_pad([text[start : start + length]], routed.pad_id, routed.device)
            clock = Clock()
            clock.times[0] = time.perf_counter()
            stock.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=routed.pad_id,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
            spent = deciding_seconds(routed, routers, ids, mask)
            if round_ >= 0:
                seconds.append(spent)
                shares.append(spent / (clock.times[1] - clock.times[0]))
        found.append({"tokens": length, "seconds": statistics.median(seconds), "share": median_interval(shares)})
    return found


@torch.no_grad()
def deciding_seconds(routed: RoutedModel, routers: Routers, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """Seconds of all that deciding adds to one prefill (windows, pooling, routers, the rows of each block), clocked apart: the clock itself
    would slow an arm."""
    started = now(routed.device)
    cache = routed.new_cache(routers, mask)
    spent = now(routed.device) - started
    enter = cache.enter

    def timed(*args: Any) -> torch.Tensor:
        nonlocal spent
        started = now(routed.device)
        found = enter(*args)
        spent += now(routed.device) - started
        return found

    cache.enter = timed  # type: ignore[method-assign]
    routed.decoder_forward(cache, input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    return spent


def report(rows: list[dict[str, Any]]) -> None:
    """What people read."""

    def shown(value):
        return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"

    for row in rows:
        print(f"\nbatch {row['batch']}, mean prompt {row['prompt_tokens']:.0f} tokens, {row['rounds']} rounds, {row['new']} new tokens")
        print(f"  {'':15} {'prefill, ms':>12} {'step, ms':>9}   prefill / stock           step / stock")
        for arm, seconds in row["seconds"].items():
            ratios = row["to_stock"].get(arm)
            text = "" if ratios is None else f"{shown(ratios['prefill'])}   {shown(ratios['decode'])}"
            print(f"  {arm:15} {1000 * seconds['prefill']:12.1f} {1000 * seconds['decode']:9.2f}   {text}")
        for arm, _ in EXPORTED.values():
            if both := row.get(f"{arm}_to_exported"):
                print(f"  {arm} route / its exported checkpoint: prefill {shown(both['prefill'])}, step {shown(both['decode'])}")
        if share := row.get("deciding_share_of_prefill"):
            print(
                f"  pooling and routers: {1000 * row['deciding_seconds']:.1f} ms, {100 * share[0]:.2f} % of stock prefill "
                f"({100 * share[1]:.2f} to {100 * share[2]:.2f})"
            )
        for part, found in row.get("limit", {}).items():
            print(f"  nested, {part}: limit {found['of_stock']:.3f} of stock; of its saving reached {shown(found['saving_reached'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=timed_routes.MODEL)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", default="24", help="of each batch size, or of all alike")
    parser.add_argument("--arms", default=",".join(ARMS), help="beside stock; fewer leave out what stands beside the rounds, too")
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--lengths", default="1,16,64,256,1024", help="prompt tokens at which pooling and routers are measured alone")
    parser.add_argument("--dtype", default="", choices=["", "bfloat16", "float32"], help="default: what the processor multiplies itself")
    parser.add_argument("--device", default="cpu", help="cuda for a GPU")
    parser.add_argument("--seed", type=int, default=0)
    timed_prompts.add_options(parser)
    parser.add_argument(
        "--policy", default="", help="a saved policy for table 7 and the latency, also beside fewer arms; default: random routers"
    )
    parser.add_argument("--latency-rounds", type=int, default=6, help="an even number: base and policy take turns in going first")
    parser.add_argument("--latency-tokens", type=int, default=1000)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    torch.set_num_threads(1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] - each batch is told as it is done, also to a file
    dtype = given.dtype or native_dtype(given.device)
    print(f"{dtype} on {hardware()['processor']}" + (f", device {given.device}" if given.device != "cpu" else ""))
    routed = RoutedModel.wrap(given.model, dtype=dtype, device=given.device)
    prompts = timed_prompts.timed_prompts(routed, given)
    rows = []
    batches, rounds, arms = (
        [int(size) for size in given.batches.split(",")],
        [int(n) for n in given.rounds.split(",")],
        given.arms.split(","),
    )
    if unknown := [name for name in arms if name not in ARMS]:
        parser.error(f"--arms: {unknown[0]!r} is none of {', '.join(ARMS)}")
    check_rounds(parser, min(rounds))
    if len(rounds) not in (1, len(batches)):
        parser.error(f"--rounds: {len(rounds)} numbers for {len(batches)} batch sizes")
    others: dict[str, Any] = {"stock": load_base(given.model, routed.model.dtype, given.device)[0]}
    others |= {
        name: exported_of(routed, Route.parse(route_of(routed.n_layers), routed.n_layers))
        for name, (_, route_of) in EXPORTED.items()
        if name in arms
    }
    share_weights(routed.model, others["stock"], Route.full(routed.n_layers))
    for model in (routed.model, *others.values()):
        model.generation_config.eos_token_id = None  # every row answers in full, whatever it says
    for batch, n_rounds in zip(batches, rounds * (len(batches) // len(rounds)), strict=True):
        rows.append(measure(routed, others, prompts, batch, n_rounds, given.new, given.seed, arms))
        report(rows[-1:])
    found = {"model": given.model, "dtype": dtype, "asked": timed_prompts.described(given), "generate": rows}
    found |= {"hardware": hardware(), "versions": versions()}
    if given.policy or set(arms) == set(ARMS):
        found |= beside(routed, others["stock"], prompts, given)
    if given.out:
        write_json(Path(given.out), found)


def beside(routed: RoutedModel, stock: Any, prompts: list[list[int]], given: argparse.Namespace) -> dict[str, Any]:
    """Deciding by the length of the prompt, table 7, and one long answer."""
    rounds = int(given.rounds.split(",")[0])
    lengths = deciding_by_length(routed, stock, prompts, [int(length) for length in given.lengths.split(",")], rounds)
    print("\npooling and routers of one prompt, by its tokens:")
    for row in lengths:
        low, high = row["share"][1:]
        print(
            f"  {row['tokens']:5}: {1000 * row['seconds']:.2f} ms, {100 * row['share'][0]:.2f} % of stock prefill "
            f"({100 * low:.2f} to {100 * high:.2f})"
        )
    policy: Any = Routers(RouterConfig(routed.n_layers, routed.hidden_size), seed=0).to(given.device)
    if given.policy:
        policy = RoutedModel.from_pretrained(given.policy, base=routed).policy
    rounds = given.latency_rounds + given.latency_rounds % 2
    table7 = throughput(routed, policy, prompts, [1, 8, 32], given.new, rounds)
    long = latency(routed, policy, prompts, [1], given.latency_tokens, rounds)
    print("\ntable 7 for this model, tokens a second (base, routed), and the ratio of seconds:")
    for row in table7:
        print(
            f"  batch {row['batch']:3}: {row['base_tokens_s']:.1f}, {row['routed_tokens_s']:.1f}; {row['ratio']:.3f} "
            f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), {row['passes']:.1f} passes"
        )
    print(
        f"{long['tokens']} tokens at batch 1: base {long['base']:.1f} s, routed {long['routed']:.1f} s ({long['passes']:.1f} passes), "
        f"routers {1000 * long['router']:.1f} ms, {100 * long['router'] / long['routed']:.3f} % of it"
    )
    return {"deciding": lengths, "table7": table7, "latency": long}


if __name__ == "__main__":
    main()
