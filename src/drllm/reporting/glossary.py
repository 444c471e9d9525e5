"""Every word of our own, one meaning each: `docs/glossary.md` lists them all, a page those that stand on it, folded away."""

import re
from collections.abc import Iterable

from drllm.reporting.parts import Folded, Part, Table, to_markdown

TITLE = "What the words on this page mean"

# What each word means; `python tools/write_glossary.py` writes docs/glossary.md from it.
ENTRIES = {
    # Of a page
    "tune-first-500": (
        "The first 500 questions of each task's tune split, or all where there are fewer. Splits share no question: policies learn from "
        "fit, are set and compared on tune, promise on calibrate; test is for final tables."
    ),
    "tune-other-tasks": "Tasks that earlier calls of `drllm evaluate` compared on that split, and the latest did not.",
    "base": "The frozen model as it is: every block once.",
    "passes": "How often a prompt goes through a block: 0 where it is skipped, 1 as in the base, 2 where it is repeated; or their sum.",
    "routers@-0.50": (
        "The routers with their control p at -0.50, which is as they were trained; it goes from -1 (every block skipped) over 0.5 (the "
        "base's route) to 1 (every block repeated)."
    ),
    "shuffled": (
        "A baseline: a policy's own routes, dealt to other prompts. What the policy has over it is the gain from reading the prompt."
    ),
    "random": "A baseline: a policy's skips and repeats, moved to random blocks.",
    "McNemar p": (
        "How likely it is that changed verdicts are split between better and worse at least this unevenly, were either as likely. Below "
        "0.05 counts as a difference here, if the interval agrees."
    ),
    "Wilson interval": (
        "Of one accuracy, 95 %. Whether two methods differ is told by the interval of their difference, not by two of these."
    ),
    "acc, acc_norm": (
        "Two ways to take an answer among choices: the most likely (acc), or the most likely by its log-likelihood a character (acc_norm)."
    ),
    "macro-F1": (
        "Mean of the F1 scores of skip, execute and repeat, from 0 to 1: how well routers tell them apart. Always execute: about 0.33."
    ),
    "held back": "Questions with a kept route that training did not see.",
    "kept route": "The best route that the search found for a question that it could solve: what routers learn from.",
    "PF": "A plain forward: one forward of one question by the base, the unit of cost.",
    "weights d2b61903": "A digest of the base's weights: equal digests, equal models.",
    # Routes
    "action": "What a route says of one block: skip, execute or repeat.",
    "block": "One layer of a decoder: attention and feed-forward network, with their residuals.",
    "edit": "One change of a route: skip a run of executed blocks, or repeat one.",
    "identity": "The route that executes every block once: the base.",
    "path": "The blocks that a route runs, in order; a repeated block stands twice.",
    "route": "One action for each block, for one prompt, written as digits: 0 skip, 1 execute, 2 repeat.",
    "second pass": "The repetition of a block. It has keys and values of its own.",
    # Prompts and generation
    "cache": "The keys and values of the tokens so far; a `RoutedCache` also holds the routing state of its request.",
    "continuation": "The tokens after a context, whose log-likelihood is asked.",
    "context": "What stands before a continuation. A policy reads nothing else.",
    "decode": "To make further tokens, one step a token, along the route decided at prefill.",
    "logits": "The model's scores of every next token, before the softmax.",
    "prefill": "The one forward of the whole prompt; a route is decided in it, once.",
    "prompt": "The tokens that a user or a task gives.",
    "prompt format": "`raw` text, or `chat` messages through the model's template.",
    "sequence": "One entry of a batch.",
    "token": "What a tokenizer makes of text: a word or a part of one.",
    "window": "One of the parts into which a router cuts a prompt to pool its states.",
    # Questions and verdicts
    "boxed": "A reward: the generated answer in \\boxed{} is the right one.",
    "calibrate, fit, test, tune": (
        "The four splits of a task's questions, by their text. Searches and trainings read fit, choices read tune."
    ),
    "letter": "A reward: the first letter generated is that of the right choice.",
    "loglik": "A reward: the right choice has the largest log-likelihood.",
    "margin": "The log-likelihood of the right choice less that of the best other one.",
    "metric": "How choices are compared: `acc` or `acc_norm`.",
    "packed prompt": "A question's context once, with every choice as a branch that sees the context and itself.",
    "question": "One item of a task: text, choices or not, and the right answer.",
    "reward": "How an answer is judged: `loglik`, `letter`, `boxed` or `number`.",
    "scorer": "What makes verdicts of (question, route) pairs.",
    "task": "A set of questions with one prompt and one reward, such as `arc_easy`.",
    "trie of prefixes": "The common beginnings of all paths of a question, each computed once.",
    "verdict": "Whether one route answers one question rightly, with its margin.",
    # Search and records
    "checks": "The base and the kept route judged again: alone, in float32, and under another wording.",
    "blind baseline": (
        "As many random routes as a search tries, drawn without looking at any question. Files and columns call it `control`."
    ),
    "dense matrix": "The verdicts of every listed route on every question, by `drllm search --paths`.",
    "group": "Questions searched together and written as one shard.",
    "label": "What a router learns for a question: the actions of its kept route.",
    "manifest": "The file with all that determines a task folder's records. It is called `_plan.json`.",
    "prior": "What a sweep over some questions says of each edit, before any one question is searched.",
    "record": "What a search leaves of one question: routes tried, verdicts, margins, checks.",
    "run folder": "Where all stages of one job write: records, policies, verdicts, reports.",
    "schedule": "Which sequences of a batch make which pass of a block.",
    "shard": "One Parquet file of records, whole or absent.",
    "simulation": "One route tried by the search for one question.",
    "step": "One forward of a fixed number of tokens through one block, or of one token a sequence when decoding.",
    "sweep": "Every single edit on some questions.",
    # Policies
    "budget": "The largest mean number of passes that a policy may take, as a share of the base's.",
    "codebook": "A few routes, the base first, and a selector that takes one of them for each prompt.",
    "control": "The paper's parameter p (appendix C): it makes routers skip or repeat more.",
    "fingerprint": "A digest of the base's weights, the same in float32 and bfloat16.",
    "front selector": "The first blocks of a codebook in the server's own process: they read the prompt before the engine does.",
    "gate": "A small network that decides whether a part of a block runs (MindSkip, FlexiDepth).",
    "guarantee": "A tested promise: with probability 1 - delta the policy is less than epsilon below the base.",
    "method": "What turns a run's records into a policy; one file of `src/drllm/methods/`.",
    "operating point": "One setting of a policy, from conservative to aggressive, such as a threshold.",
    "option": "A field of a configuration: a flag of the command line and a key of a YAML file.",
    "oracle": "An upper bound that is told every answer. It is only ever evaluated.",
    "policy": "What decides a route. It can be saved and loaded.",
    "preset": "A named set of options: `paper` is the paper's, `default` is ours.",
    "router": "A small network a block that gives an action from the states entering the block.",
    "selector": "The linear predictor of a codebook: what each of its routes would gain on a prompt.",
    "static route": "One route for every prompt.",
    "threshold": "The predicted gain above which a codebook leaves the base.",
    # Comparing
    "baseline": "What a policy has to beat: the best static route, its own routes dealt to other prompts, blind routes.",
    "Holm": "A correction of p values where several comparisons are made at once.",
    "paired": "Both methods answered the same questions, and differences are taken question by question.",
    "point": "One percent of accuracy.",
    "stratified": "Questions are resampled within their task, so that each task keeps its share.",
    # Serving and clusters
    "actor": "A process of a Ray cluster that holds a replica of the model and pulls jobs.",
    "engine": "vLLM's process that runs the model.",
    "ray_pool": "The actors of one job (`drllm.model.ray_pool`).",
    "replica": "One copy of the model, or of a server, beside others.",
    "segment": "A run of blocks that all routes of a codebook treat alike, compiled as one.",
    "stock": "A package as its authors ship it: vLLM, transformers or the harness without drllm.",
}
# How a word is found in a page's Markdown; the others stand in docs/glossary.md alone.
PATTERNS = {
    "tune-first-500": r"-first-\d+",
    "tune-other-tasks": r"-other-tasks",
    "base": r"\bbase\b",
    "passes": r"\bpass(es)?\b",
    "routers@-0.50": r"@[-+]\d",
    "shuffled": r"\bshuffled\b",
    "random": r"\| random(-\w+)? \|",
    "McNemar p": r"\bMcNemar\b",
    "Wilson interval": r"\bWilson\b",
    "acc, acc_norm": r"\bacc_norm\b",
    "macro-F1": r"\bmacro[-_][fF]1\b",
    "held back": r"\bheld back\b",
    "kept route": r"\bkept\b",
    "PF": r"\bPF\b",
    "weights d2b61903": r"\b[Ww]eights [0-9a-f]{4,}",
}


def glossary(parts: Iterable[Part]) -> list[Part]:
    """A folded table of the words that stand in the parts of a page; nothing where none does."""
    text = to_markdown(parts)
    rows = tuple((word, meaning) for word, meaning in ENTRIES.items() if word in PATTERNS and re.search(PATTERNS[word], text))
    return [Folded(TITLE, (Table(("word", "meaning"), rows),))] if rows else []
