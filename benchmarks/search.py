"""What one evaluated path costs in the search, against a plain forward, a floor and a naive scorer.

    python benchmarks/search.py [--data ../shared/data] [--parts loglik-bf16,loglik-fp32,letter,boxed] [--out FILE.json]
    python benchmarks/search.py --make-paths          # writes the path lists anew, early stop off
    python benchmarks/search.py --model qwen2.5-coder-1.5b-q4 --questions 16 --parts letter-bf16      # --make-paths letter: its list

Unit PF: one plain forward of the same tokens, batch 1, by the unmodified model computing logits only where they are scored, timed between
the scorer's own steps. Of a generated answer: the prompt and the answer under the base route, as far as the scorer decodes it. One thread;
seconds are the processor's, which other jobs move least.
Path lists: `benchmarks/paths/<reward>.json` (ids and routes, 50 a question); another model's: in a folder of its name there.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import gc
import json
import pstats
import random
import resource
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from drllm import EvaluateConfig, Route, RoutedModel, SearchConfig
from drllm.core.files import write_json
from drllm.core.text import type_name
from drllm.model.generation import GreedyChoice
from drllm.model.onednn import laid_out
from drllm.runs.provenance import hardware, versions
from drllm.scoring.loglik import LoglikScorer, base_logliks, head_at, loglik_verdict
from drllm.scoring.packing import make_batch
from drllm.scoring.prefixes import PrefixRunner
from drllm.scoring.scorer import scorer_of
from drllm.searching.edits import random_routes
from drllm.searching.tree import RouteTree
from drllm.searching.worker import question_seed
from drllm.tasks import load_task

MODEL, PATHS = "smollm2-135m-q4", Path(__file__).parent / "paths"
TASKS = {"loglik": "arc_easy", "letter": "arc_easy", "boxed": "dart-1"}
PROMPTS = {"boxed": "authors"}  # of a reward that is not asked as drllm asks it
N_QUESTIONS, N_PATHS = 64, 50
WIDTH_STEP = 8  # of both scorers
AT_ONCE = 32  # questions whose paths are under way together, as in `search --paths` with its pool of 128
PLAIN_EVERY = 1.0  # seconds of scoring between two plain forwards

Pair = tuple[int, Route]


class PlainForwards:
    """Times plain forwards of the questions, one after the other, whenever `one` is called."""

    def __init__(self, model: Any, scorer: Any, questions: list[Any]):
        self.model, self.scorer, self.questions = model, scorer, questions
        self.rows = [question.sequences if isinstance(scorer, LoglikScorer) else self._answered(question) for question in questions]
        self.order = random.Random(0).sample(range(len(questions)), len(questions))
        self.seconds: list[list[float]] = [[] for _ in questions]
        self.n = 0
        for index in range(min(3, len(questions))):
            self._forward(index)

    def one(self) -> float:
        """Time one forward; its seconds."""
        index = self.order[self.n % len(self.order)]
        start = time.process_time()
        self._forward(index)
        self.seconds[index].append(time.process_time() - start)
        self.n += 1
        return self.seconds[index][-1]

    def mean(self) -> float:
        """Mean over the questions, each timed at least once."""
        while self.n < len(self.order) or self.n % len(self.order):
            self.one()
        return sum(sum(times) / len(times) for times in self.seconds) / len(self.seconds)

    def _answered(self, question: Any) -> tuple[torch.Tensor, int]:
        """Prompt and answer, whose last token is predicted and never read; how many tokens are predicted."""
        self.scorer.load([question])
        (verdict,) = self.scorer.score([(0, Route.full(self.scorer.routed.n_layers))])
        answer = self.scorer.routed.tokenizer(verdict.text, add_special_tokens=False)["input_ids"]
        return torch.tensor([[*question.context_ids, *answer[:-1]]]), max(1, len(answer))

    @torch.no_grad()
    def _forward(self, index: int) -> None:
        if isinstance(self.scorer, LoglikScorer):
            batch = make_batch(self.rows[index], self.scorer.packed, self.model.dtype, torch.device("cpu"))
            with head_at(self.model, batch.scored.unique()):  # every choice's first token is predicted from the same place
                self.model(**batch.inputs, use_cache=False)
        else:
            ids, n_predicted = self.rows[index]
            self.model(ids, use_cache=True, logits_to_keep=n_predicted)


def paths_file(model: str, reward: str) -> Path:
    """Where the paths of a model's questions stand."""
    return (PATHS if model == MODEL else PATHS / model) / f"{reward}.json"


def load(model: str, dtype: torch.dtype) -> tuple[RoutedModel, Any]:
    """The routed model, and the unmodified one."""
    routed = RoutedModel.wrap(model, dtype=dtype)
    return routed, copy.deepcopy(routed, {id(routed.tokenizer): routed.tokenizer}).unwrap()


def examples(task: str, data: str | None) -> dict[str, Any]:
    """Every example of a task by id."""
    loaded = load_task(task, data)
    return {example.id: example for rows in loaded.examples.values() for example in rows}


def path_list(model: str, reward: str, data: str | None) -> tuple[list[Any], list[list[Route]]]:
    """The examples of a committed list and their paths."""
    rows = json.loads(paths_file(model, reward).read_text())["questions"]
    known = examples(TASKS[reward], data)
    if missing := [row["id"] for row in rows if row["id"] not in known]:
        raise SystemExit(f"{missing[0]} is not among the {TASKS[reward]} questions found: give --data FOLDER with its train.jsonl")
    return [known[row["id"]] for row in rows], [[Route.parse(text) for text in row["routes"]] for row in rows]


def make_paths(model: str, reward: str, data: str, n_questions: int) -> None:
    """Search the first fit questions with the paper's tree, early stop off, and write what it visited."""
    loaded = load_task(TASKS[reward], data)
    task, wanted = loaded.task, loaded.select("fit", n_questions)
    routed, _ = load(model, torch.float32)
    config = SearchConfig(early_stop=False, n_simulations=N_PATHS, reward=reward, prompts=PROMPTS.get(reward, "ours"))
    scorer = scorer_of(routed, task, config)
    trees = [RouteTree(routed.n_layers, config, question_seed(0, task.name, example.id)) for example in wanted]
    handles = scorer.open([scorer.question(task, example) for example in wanted])
    asked = {handle: tree for handle, tree in zip(handles, trees, strict=True)}
    for handle, tree in asked.items():
        scorer.submit(handle, tree.ask())
    while found := scorer.collect():
        for handle, route, verdict in found:
            asked[handle].tell(route, verdict.correct, verdict.margin)
            if (again := asked[handle].ask()) is not None:
                scorer.submit(handle, again)
    rows = [
        # The base path comes on top of the 50 simulations; so that each question has 50 paths, the last one is left out.
        {
            "id": example.id,
            "routes": [str(told.route) for told in tree.evaluated][:N_PATHS],
            "right": [int(told.correct) for told in tree.evaluated][:N_PATHS],
        }
        for example, tree in zip(wanted, trees, strict=True)
    ]
    made = {"task": task.name, "reward": reward, "early_stop": False, "seed": 0, "model": model}
    paths_file(model, reward).parent.mkdir(exist_ok=True)
    text = ",\n".join(json.dumps(row) for row in rows)
    paths_file(model, reward).write_text(json.dumps(made)[:-1] + f', "questions": [\n{text}\n]}}\n')


def timed(scorer: Any, questions: list[Any], pairs: list[Pair], plain: PlainForwards | None) -> tuple[dict[Pair, Any], float]:
    """Verdicts of pairs (index into questions, route) and the scorer's seconds, plain forwards in between."""
    gc.collect()
    between, last = 0.0, time.process_time()
    start = last
    order = sorted(range(len(questions)), key=lambda index: questions[index].n_tokens)
    handles = dict(zip(order, scorer.open([questions[index] for index in order]), strict=True))
    index_of = {handle: index for index, handle in handles.items()}
    by_index: dict[int, list[Route]] = defaultdict(list)
    for index, route in pairs:
        by_index[index].append(route)
    found: dict[Pair, Any] = {}
    # Generated answers are searched a group at a time, log-likelihoods all together.
    groups = [order] if scorer.shares_across_groups else [order[at : at + 8] for at in range(0, len(order), 8)]
    for group in groups:
        waiting = [(handles[index], route) for index in group for route in by_index[index]][::-1]
        n_running, at_once = 0, min(AT_ONCE * N_PATHS, scorer.at_once) if scorer.shares_across_groups else len(waiting)
        while waiting or n_running:
            while waiting and n_running < at_once:
                scorer.submit(*waiting.pop())
                n_running += 1
            done = scorer.collect()
            n_running -= len(done)
            found |= {(index_of[handle], route): verdict for handle, route, verdict in done}
            # Generated answers come many at a time: then as many plain forwards as the time they took asks for.
            n_due = int((time.process_time() - last) / PLAIN_EVERY)
            if plain is not None and n_due:
                between += sum(plain.one() for _ in range(n_due))
                last = time.process_time()
    scorer.close(handles.values())
    return found, time.process_time() - start - between


def trie_nodes(paths: list[list[Route]]) -> list[int]:
    """Applications a question needs when every prefix is computed once."""
    return [len({path[: n + 1] for route in routes for path in [route.path] for n in range(len(path))}) for routes in paths]


@torch.no_grad()
def application_cost(scorer: Any, widths: Counter[int], repeats: int = 7) -> dict[int, float]:
    """Seconds of one block's application to one row of each width, at the best batch size."""
    routed = scorer.routed
    costs = {}
    for width in widths:
        best = float("inf")
        for n_rows in (1, 2, 4, 6, 8, 12, 16, 24, 32):
            ids = torch.randint(5, 1000, (n_rows + 1, width))
            mask = torch.zeros((n_rows + 1, 1, width, width), dtype=routed.model.dtype)
            mask.masked_fill_(torch.ones(width, width, dtype=torch.bool).triu(1), torch.finfo(mask.dtype).min)
            positions = torch.arange(width).expand(n_rows + 1, -1)
            runner = PrefixRunner(routed, n_rows * width, 2**30)
            rows = runner.open({"input_ids": ids, "attention_mask": mask, "position_ids": positions})
            states = torch.stack([row.state for row in rows[:n_rows]])
            arguments = {name: value for name, value in rows[0].bucket.arguments[0].items() if name != "attention_mask"}
            arguments |= {"attention_mask": mask[:n_rows], "position_ids": positions[:n_rows]}
            arguments["position_embeddings"] = tuple(part[:n_rows] for part in arguments["position_embeddings"])
            times = []
            for block in list(range(routed.n_layers))[:repeats]:
                start = time.process_time()
                routed.run_block(block, states, arguments)
                times.append(time.process_time() - start)
            best = min(best, sorted(times)[len(times) // 2] / n_rows)
        costs[width] = best
    return costs


def path_blocks(blocks: Any, route: Route) -> torch.nn.ModuleList:
    """The blocks of a path in its order, each with a cache slot of its own; weights are shared."""
    found = []
    for place, block in enumerate(route.path):
        twin, attention = copy.copy(blocks[block]), copy.copy(blocks[block].self_attn)
        attention.layer_idx = place
        twin._modules = blocks[block]._modules | {"self_attn": attention}
        found.append(twin)
    return torch.nn.ModuleList(found)


@torch.no_grad()
def naive(model: Any, scorer: Any, question: Any, route: Route) -> tuple[bool, str | None]:
    """One path alone, by a model whose block list is the path: its verdict and, of a generated answer, its text."""
    inner, blocks = model.model, model.model.layers
    inner.layers, inner.config.num_hidden_layers = path_blocks(blocks, route), route.n_passes
    try:
        if isinstance(scorer, LoglikScorer):
            bare: Any = argparse.Namespace(model=model, device=torch.device("cpu"))
            return loglik_verdict(base_logliks(bare, question.sequences, scorer.packed), question, scorer.metric).correct, None
        tokens, cache = list(question.context_ids), DynamicCache()
        choose = GreedyChoice(model, 0 if scorer.wording is None else scorer.wording.min_new_tokens)
        fed = torch.tensor([tokens])
        for n_new in range(scorer.max_new_tokens):
            tokens += choose([tokens], model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1], [n_new])
            if tokens[-1] in choose.end_ids:
                break
            fed = torch.tensor([tokens[-1:]])
        text = scorer.routed.tokenizer.decode(tokens[len(question.context_ids) :], skip_special_tokens=True)
        reading = question.task.read(question.example, text, scorer.reward)
        return (reading.strict if scorer.reader == "strict" else reading.lenient), text
    finally:
        inner.layers, inner.config.num_hidden_layers = blocks, len(blocks)


def bookkeeping(
    scorer: Any, questions: list[Any], paths: list[list[Route]], rights: list[list[int]], n_layers: int
) -> Iterator[tuple[str, float]]:
    """Seconds a path of the search tree's own work, and of the trie's (profiled, so rather too much), on these paths."""
    config = SearchConfig(early_stop=False, n_simulations=N_PATHS)
    start, n = time.process_time(), 0
    for question, right in zip(questions, rights, strict=False):
        tree = RouteTree(n_layers, config, question_seed(0, question.task.name, question.example.id))
        for correct in right:
            if (route := tree.ask()) is None:
                break
            tree.tell(route, bool(correct), 0.1 * correct)
            n += 1
    yield "tree", (time.process_time() - start) / n
    if isinstance(scorer, LoglikScorer):
        profile = cProfile.Profile()
        pairs = [(index, route) for index in range(len(questions)) for route in paths[index]]
        profile.enable()
        timed(scorer, questions, pairs, None)
        profile.disable()
        work = {"submit", "_offer", "_keep", "_evict", "_end", "line", "release", "_run_block", "sweep", "n_waiting", "close"}
        stats: Any = pstats.Stats(profile)
        seconds = sum(row[2] for (file, _, name), row in stats.stats.items() if file.endswith("prefixes.py") and name in work)
        yield "trie", seconds / len(pairs)


class Figures:
    """What is measured of one part: printed as it comes, kept by name."""

    def __init__(self, label: str):
        self.values: dict[str, Any] = {"part": label}

    def say(self, name: str, value: float, text: str) -> None:
        """Keep a value under its name and print what it means."""
        self.values[name] = round(value, 5)
        print(f"{self.values['part']}: {text}", flush=True)


class Part:
    """One reward and float type on one model: its questions and paths, timed once, and the figures so far."""

    def __init__(self, reward: str, dtype: torch.dtype, arguments: argparse.Namespace):
        self.reward, self.dtype, self.arguments = reward, dtype, arguments
        self.routed, self.bare = load(arguments.model, dtype)
        rows, self.paths = (found[: arguments.questions] for found in path_list(arguments.model, reward, arguments.data))
        if arguments.matrix:
            self.paths = [random_routes(self.routed.n_layers, arguments.matrix, SearchConfig(), 0)] * len(rows)
        self.task = load_task(TASKS[reward], arguments.data).task
        self.n_naive = arguments.naive if dtype == torch.float32 else 0
        if self.n_naive and reward != "loglik":
            self.n_naive = max(1, self.n_naive // 8)  # decoding one by one takes long
        if self.n_naive:
            rows, self.paths = rows[: self.n_naive], self.paths[: self.n_naive]
        self.scorer = self.fresh()
        self.questions: list[Any] = [self.scorer.question(self.task, example) for example in rows]
        self.pairs = [(index, route) for index in range(len(self.questions)) for route in self.paths[index]]
        self.figures = Figures(f"{reward} {type_name(dtype)}")
        self.say = self.figures.say
        self.pf, self.cost, self.found = 0.0, 0.0, {}

    def fresh(self, cache_bytes: int = 2**30) -> Any:
        """A scorer that has seen nothing."""
        return scorer_of(self.routed, self.task, EvaluateConfig(reward=self.reward, prompts=PROMPTS.get(self.reward, "ours")), cache_bytes)

    def paths_in_plain_forwards(self) -> None:
        """What a path costs beside plain forwards in between; the verdicts are kept."""
        plain = PlainForwards(self.bare, self.scorer, self.questions)
        timed(self.scorer, self.questions[:8], [pair for pair in self.pairs if pair[0] < 8], None)  # warm up
        runs, self.scorer = [], self.fresh()
        for _ in range(self.n_rounds):
            self.found, seconds = timed(self.scorer, self.questions, self.pairs, plain)
            runs.append(seconds / len(self.pairs))
        self.pf, self.cost, say = plain.mean(), statistics.median(runs), self.say
        asked = f"{len(self.questions)} questions x {len(self.paths[0])} paths"
        say("pf_ms", 1000 * self.pf, f"1 PF = {1000 * self.pf:.1f} ms ({plain.n} forwards in between), {asked}")
        tokens = statistics.mean(question.n_tokens for question in self.questions)
        say("tokens", tokens, f"{tokens:.1f} tokens a question")
        if self.reward != "loglik":
            predicted = statistics.mean(n_predicted for _, n_predicted in plain.rows)
            say("answer_tokens", predicted, f"{predicted:.1f} tokens of the base's answer until it is settled; PF reads all but the last")
        rounds = ", ".join(f"{seconds / self.pf:.3f}" for seconds in runs)
        say("pf_a_path", self.cost / self.pf, f"{self.cost / self.pf:.3f} PF a path (rounds: {rounds})")
        say("paths_a_second", 1 / self.cost, f"{1 / self.cost:.1f} paths/s")

    @property
    def n_rounds(self) -> int:
        """How often all paths are asked."""
        return self.arguments.rounds if self.reward == "loglik" else 1

    def sharing(self) -> None:
        """How much of the work paths share, how near that comes to the least there is, and the memory it takes."""
        scorer, say = self.scorer, self.say
        nodes, n_passes = trie_nodes(self.paths), sum(route.n_passes for _, route in self.pairs)
        reused = 1 - sum(nodes) / n_passes
        say("reused", reused, f"{100 * reused:.1f} % of {n_passes:,} block applications reused, {sum(nodes):,} distinct prefixes")
        n_applied, n_padded = (count / self.n_rounds for count in (scorer.runner.n_applied, scorer.runner.n_padded))
        say("applied", n_applied, f"{n_applied:,.0f} applications run")
        say("filling", n_padded, f"{n_padded:,.0f} rows that only fill a step")
        read = scorer.runner.n_tokens / self.n_rounds / len(self.pairs)
        say("read_tokens", read, f"{read:,.0f} tokens of prompts through a block for a path, pads and rows that fill among them")
        packed = isinstance(scorer, LoglikScorer)
        lengths = [len(question.sequences[0]) if packed else question.n_tokens for question in self.questions]
        widths = [-(-length // WIDTH_STEP) * WIDTH_STEP for length in lengths]
        costs = application_cost(scorer, Counter(widths))
        floor = sum(costs[width] * n for width, n in zip(widths, nodes, strict=True)) / len(self.pairs)
        best = "distinct prefixes times one application at its best batch size"
        say("floor_pf", floor / self.pf, f"floor {floor / self.pf:.3f} PF a path: {best}")
        say("to_floor", self.cost / floor, f"measured / floor = {self.cost / floor:.2f}")
        say("peak_states_mb", scorer.runner.peak_bytes / 1e6, f"{scorer.runner.peak_bytes / 1e6:.0f} MB of states at most")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        say("peak_process_mb", peak, f"{peak:.0f} MB the whole process at most (two copies of the model)")

    def small_cache(self) -> None:
        """The same verdicts with little room for states."""
        small = self.fresh(self.arguments.small_cache)
        # Generated answers are searched eight questions at a time, so a part of them tells as much.
        told = self.questions if self.reward == "loglik" else self.questions[:8]
        part = [pair for pair in self.pairs if pair[0] < len(told)]
        expected = self.found if part == self.pairs else timed(self.fresh(), told, part, None)[0]
        again, seconds = timed(small, told, part, None)
        same = sum(repr(again[pair]) == repr(expected[pair]) for pair in part)
        given, each = f"--cache-bytes {self.arguments.small_cache / 1e6:.0f} MB", seconds / len(part) / self.pf
        self.say("small_cache_same", same, f"{given}: {same} of {len(part)} verdicts and margins identical")
        self.say("small_cache_pf", each, f"{given}: {each:.3f} PF a path")
        self.say("small_cache_mb", small.runner.peak_bytes / 1e6, f"{given}: {small.runner.peak_bytes / 1e6:.0f} MB at most")

    def sizes(self) -> None:
        """Other numbers of questions and paths at once."""
        for n_questions, n_paths in ((16, 50), (32, 50), (64, 12), (64, 25)):
            part = [(index, route) for index in range(n_questions) for route in self.paths[index][:n_paths]]
            _, seconds = timed(self.fresh(), self.questions[:n_questions], part, None)
            name = f"{n_questions} questions x {n_paths} paths"
            self.say(f"seconds, {name}", seconds, f"{name}: {seconds:.1f} s, {1000 * seconds / len(part):.2f} ms a path")

    def bookkeeping(self) -> None:
        """What all that is not the model costs."""
        rights = [[int(self.found[index, route].correct) for route in self.paths[index]] for index in range(len(self.questions))]
        spent = dict(bookkeeping(self.scorer, self.questions[:16], self.paths[:16], rights, self.routed.n_layers))
        spent["tree and trie"] = spent["tree"] + spent.get("trie", 0.0)
        for name, seconds in spent.items():
            text = f"bookkeeping, {name}: {1e6 * seconds:.0f} us a path, {100 * seconds / self.cost:.2f} %"
            self.say(f"bookkeeping, {name}", seconds / self.cost, text)

    def naive(self) -> None:
        """One path at a time, by the model as it comes."""
        part, start = [pair for pair in self.pairs if pair[0] < self.n_naive], time.process_time()
        alone = [naive(self.bare, self.scorer, self.questions[index], route) for index, route in part]
        seconds = (time.process_time() - start) / len(part)
        equal = sum(correct == self.found[pair].correct for (correct, _), pair in zip(alone, part, strict=True))
        n_right = sum(correct for correct, _ in alone)
        self.say("naive_equal", equal, f"naive scorer, one path at a time: {equal} of {len(part)} verdicts equal ({n_right} of them right)")
        if self.reward != "loglik":
            # An answer may have left the batch early: what it says by then must be how the naive one begins.
            pairs = zip(alone, part, strict=True)
            texts = sum(text.startswith(self.found[pair].text or "") for (_, text), pair in pairs if text is not None)
            self.say("naive_texts", texts, f"naive scorer: {texts} of {len(part)} texts begin alike")
        times = f"{seconds / self.pf:.3f} PF a path, {seconds / self.cost:.1f} times ours"
        self.say("naive_pf", seconds / self.pf, f"naive scorer: {times}")


def measure(reward: str, dtype: torch.dtype, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one reward and dtype."""
    part = Part(reward, dtype, arguments)
    with laid_out(part.routed.model):  # as where routes are judged; the plain forwards are another copy's
        part.paths_in_plain_forwards()
        part.sharing()
        if dtype == torch.bfloat16:
            part.small_cache()
            if reward == "loglik" and len(part.questions) == N_QUESTIONS:
                part.sizes()
        part.bookkeeping()
    if part.n_naive:
        part.naive()
    return part.figures.values


def main() -> None:
    """Print every figure, and write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = "../shared/data"
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--questions", type=int, default=N_QUESTIONS)
    parser.add_argument("--data", default=default if Path(default).is_dir() else None)
    parser.add_argument("--parts", default="loglik-bf16,loglik-fp32,letter-bf16,letter-fp32,boxed-bf16,boxed-fp32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--naive", type=int, default=64, help="questions that the naive scorer repeats in float32; an eighth of it when decoding"
    )
    parser.add_argument("--matrix", type=int, default=0, help="each question under the same N routes of one to three edits, not the lists")
    parser.add_argument("--small-cache", type=int, default=2**26)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--make-paths", nargs="*", choices=list(TASKS), help="write these path lists anew (none named: all)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    torch.set_num_threads(arguments.threads)
    if arguments.make_paths is not None:
        for reward in arguments.make_paths or TASKS:
            make_paths(arguments.model, reward, arguments.data, arguments.questions)
        return
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    found = []
    for part in arguments.parts.split(","):
        reward, _, dtype = part.partition("-")
        found.append(measure(reward, dtypes[dtype], arguments))
        if arguments.out:
            write_json(
                arguments.out,
                {"model": arguments.model, "hardware": hardware(), "versions": versions(), "threads": arguments.threads, "parts": found},
            )


if __name__ == "__main__":
    main()
