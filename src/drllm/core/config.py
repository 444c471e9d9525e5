"""One frozen dataclass a job. The command line's flags, `--help` and `--config run.yaml` derive from these.

Every field has its help text, unit and, where the paper fixes it, the section of arXiv 2510.12773. No torch here.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from drllm.core.errors import InputError
from drllm.core.options import MAX_SEED, Options, option

Split = Literal["fit", "tune", "calibrate", "test"]
RewardName = Literal["auto", "generated", "loglik", "letter", "boxed", "number", "exact"]

SCAN_KINDS = ("loop", "damped", "skip")
REWARD_HELP = "how an answer is judged; auto: the task's own; generated: as auto, a letter instead of loglik"
Prompts = Literal["auto", "ours", "authors", "instruct", "qwen", "base"]
PROMPTS_HELP = (
    "wording of letters and boxed answers: ours; authors: that of the paper's code for such a model, or one of it by name "
    "(instruct, qwen, base); auto: "
)
READER_HELP = "whose verdict on letters and boxed answers counts, both are stored: strict (the authors'), lenient, the wording's own (auto)"
ReaderName = Literal["auto", "strict", "lenient"]
TOKENS_HELP = "tokens of a generated answer; 0 takes the reward's own (letter 10, boxed 15, number 8, exact 32)"
EXECUTOR_HELP = (
    "this process (local), or workers beside it (processes); auto: local, but for a scan on a CPU of several cores without --threads"
)
STEP_HELP = "tokens of a model step (CPU: 512, from a billion weights on 128, docs/scale.md; a GPU takes thousands)"


class _InOurs:
    """Of configurations whose `prompts` stand for our own wording unless another is named."""

    prompts: Prompts

    @property
    def asked(self) -> str:
        """`prompts`, settled."""
        return "ours" if self.prompts == "auto" else self.prompts


@dataclass(frozen=True)
class SearchConfig(_InOurs, Options):
    """Monte Carlo tree search over layer paths (section 4, algorithm 1) and how its paths are scored."""

    n_simulations: int = option(50, "simulations a question (section 4: 50)", ge=0)
    counted: Literal["all", "distinct"] = option("all", "a simulation is any step, as the authors count, or a distinct route judged")
    exploration: float = option(1.8, "c of the UCB score (section 4: 1.8)", ge=0)
    length_penalty: float = option(3.0, "lambda of the UCB score, times passes / blocks (section 4: 3.0)", ge=0)
    random_prob: float = option(0.1, "probability of descending to a random child (section 4: 0.1)", ge=0, le=1)
    max_skip_run: int = option(2, "longest run of consecutive blocks one edit skips (section 4: 2)", ge=1)
    max_passes_ratio: float = option(2.0, "longest path, in multiples of the number of blocks (section 4: 2)", ge=1, le=2)
    max_loop_span: int = option(0, "longest span of blocks one edit runs once more, after its last; 0: none, as in the paper", ge=0)
    widening: float = option(2.0, "children a node may have per square root of visits; without it 50 simulations stay at the root", gt=0)
    early_stop: bool = option(True, "stop a question when the base was wrong and a path is right (section 4), or one is two blocks shorter")
    reward: RewardName = option("auto", REWARD_HELP)
    prompts: Prompts = option("auto", f"{PROMPTS_HELP}ours")
    reader: ReaderName = option("auto", READER_HELP)
    metric: Literal["acc_norm", "acc"] = option("acc_norm", "loglik only: which verdict is the reward; the other is stored too")
    max_new_tokens: int = option(0, TOKENS_HELP, ge=0)
    verify: bool = option(True, "check the base and the kept route again: alone, in float32, under another wording")
    control: bool = option(True, "evaluate as many random routes, drawn without looking at the question, beside the search")
    splits: tuple[str, ...] = option(("fit",), "splits to take the questions from; others than fit (tune, calibrate) with --paths only")
    limit: int = option(0, "questions a task and split, the first ones of the split in a fixed shuffled order; 0 takes all", ge=0)
    keep: int = option(0, "questions a task to keep: none is visited when as many are kept and enough mend; 0: all are visited", ge=0)
    mend_share: float = option(0.3, "share of the kept that must mend a wrong answer, each replacing one that does not", ge=0, le=1)
    seed: int = option(0, "seed of the tree's choices", ge=0, le=MAX_SEED)
    group_size: int = option(32, "questions a shard; a crash loses the unfinished ones, --pool-size of them at most", ge=1)
    max_step_tokens: int = option(512, STEP_HELP, ge=1)


@dataclass(frozen=True)
class Resources(Options):
    """What searches and comparisons run on; no verdict depends on it, but for threads where 16-bit products on the CPU round by them."""

    executor: Literal["auto", "local", "processes"] = option("auto", EXECUTOR_HELP)
    workers: int = option(0, "processes: model replicas; 0: one a core", ge=0)
    threads: int = option(0, "CPU threads of each replica; 0: with local as torch chooses, else 1", ge=0)
    pool_size: int = option(128, "questions searched at once in a replica (loglik)", ge=1)
    cache_bytes: int = option(2**30, "bytes of hidden states a replica keeps, the most recently used; running paths may need more", ge=0)


@dataclass(frozen=True)
class ScanConfig(_InOurs, Options):
    """The map of a model: what running each span of blocks once more, or skipping it, does to its answers."""

    kinds: tuple[str, ...] = option(SCAN_KINDS, "loop: a span runs once more; damped: once more, at --strength; skip: not at all")
    strength: float = option(0.5, "of damped loops F: the states h go to h + s (F(h) - h)", gt=0, le=0.999)
    max_span: int = option(0, "blocks of a span, at most; 0: any span", ge=0)
    questions: int = option(128, "questions of the last round, shared evenly over the tasks; 0: no race, --claimed alone is measured", ge=0)
    first_questions: int = option(8, "questions of the first round, which every candidate answers; each round has twice as many", ge=1)
    winners: int = option(
        5, "best candidates, named before any further question is read, then measured again, besides the best of each kind", ge=1
    )
    fresh: int = option(512, "questions that chose nothing, on which winners and random spans are measured again, at most; 0: none", ge=0)
    split: Literal["fit", "tune", "calibrate"] = option("fit", "split of the questions that choose")
    fresh_split: Literal["fit", "tune", "calibrate"] = option("fit", "split of those on which the winners are measured again")
    reward: RewardName = option("auto", REWARD_HELP)
    prompts: Prompts = option("auto", f"{PROMPTS_HELP}ours")
    reader: ReaderName = option("auto", READER_HELP)
    metric: Literal["acc_norm", "acc"] = option("acc_norm", "loglik only: which verdict and margin count")
    max_new_tokens: int = option(0, TOKENS_HELP, ge=0)
    max_step_tokens: int = option(512, STEP_HELP, ge=1)
    n_resamples: int = option(10_000, "bootstrap resamples of the paired intervals", ge=100)
    seed: int = option(0, "seed of the random spans and of the bootstrap", ge=0, le=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [kind for kind in self.kinds if kind not in SCAN_KINDS]:
            raise InputError(f"ScanConfig.kinds holds {unknown[0]!r}, expected some of {', '.join(SCAN_KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"ScanConfig.kinds is {', '.join(self.kinds) or 'empty'}, expected some of {', '.join(SCAN_KINDS)}, each once")
        if 0 < self.questions < self.first_questions:
            raise InputError(
                f"ScanConfig.questions is {self.questions}, fewer than the {self.first_questions} of the first round: ask for more, or "
                f"lower --first-questions"
            )


@dataclass(frozen=True)
class RoutersConfig(Options):
    """Routers trained on pooled states (sections 3.2 and 5); what the presets do: `drllm.methods.routers`."""

    preset: Literal["paper", "default"] = option("default", "what is learned: the kept path (paper), or all right paths by margin")
    budget: float = option(1.0, "preset default: mean passes on tune the control keeps, as a share of the base's; 1: any", ge=0.1, le=1)
    temperature: float = option(0.5, "preset default: how fast a path's weight falls with its margin, in the base's sd", ge=0.01, le=100)
    tune_questions: int = option(200, "preset default: tune questions a task to set the control on; 0 leaves the routers as they are", ge=0)
    n_windows: int = option(8, "windows W the prompt is cut into (section 3.1: 8)", ge=1)
    width: int = option(128, "hidden width of a router (section 3.1: 128)", ge=1)
    depth: int = option(2, "linear layers of a router, 1 to 8 (section 3.1: 2)", ge=1, le=8)
    normalize: Literal["preset", "rms", "raw"] = option("preset", "pooled states of unit RMS, or raw; preset: paper raw, default rms")
    shared: bool = option(False, "one router for all blocks: an ablation")
    first_block: bool = option(False, "all routers read the states entering the first block: an ablation (table 6)")
    gamma: float = option(2.0, "focal loss exponent; 0 is weighted cross-entropy (section 3.2: 2)", ge=0)
    beta: float = option(0.999, "effective-number class weights (section 3.2: 0.999)", ge=0, le=0.999999)
    lr: float = option(1e-3, "AdamW learning rate (section 5: 1e-3)", ge=0)
    weight_decay: float = option(0.01, "AdamW weight decay (section 5: 0.01)")
    epochs: int = option(25, "passes over the records (section 5: 25)", ge=1)
    batch_size: int = option(16, "records a step (section 5: 16)", ge=1)
    warmup_steps: int = option(500, "linear warm-up; at most a tenth of all steps where they are fewer than 5,000 (section 5: 500)", ge=0)
    held_out: int = option(10, "fit records a task held back to report F1 on, at most half of them (the authors: 10)", ge=0)
    teacher_forcing: bool = option(True, "preset paper: states follow the kept path (section 5); without it, the base's")
    seed: int = option(0, "seed of initial weights and batch order")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize not in ("preset", "rms", "raw"):
            raise InputError(f"RoutersConfig.normalize is {self.normalize!r}, expected preset, rms or raw")
        if self.shared and self.first_block:
            raise InputError("shared and first_block together give every block the same decision: leave one of them out")
        if self.preset != "paper" and not self.teacher_forcing:
            raise InputError("RoutersConfig.teacher_forcing is off, and preset default follows the base's states anyway: set preset paper")
        if self.budget < 1 and (self.preset == "paper" or not self.tune_questions):
            needs = "use preset default and more than 0 tune_questions"
            raise InputError(f"RoutersConfig.budget below 1 is kept by a control set on tune: {needs}")

    @property
    def normalized(self) -> bool:
        return self.preset == "default" if self.normalize == "preset" else self.normalize == "rms"


_NO_SPLIT = "epsilon, delta and calibrate_limit belong to a promise: name the split to test it on too (calibrate: calibrate)"


@dataclass(frozen=True)
class PromiseConfig(Options):
    """A promise that a policy is not worse than the base; a policy that fails the test is replaced by the base."""

    calibrate: Literal["", "calibrate"] = option("", "split to test the promise on, used for nothing else; without it no promise")
    epsilon: float = option(0.01, "accuracy that the policy may lose at most: 0.01 is one point", ge=1e-6, le=0.5)
    delta: float = option(0.05, "probability that the promise fails", ge=1e-6, le=0.5)
    calibrate_limit: int = option(0, "questions a task to calibrate on; 0 takes all", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.calibrate and (self.epsilon, self.delta, self.calibrate_limit) != (0.01, 0.05, 0):
            raise InputError(_NO_SPLIT)

    @staticmethod
    def check_given(given: Mapping[str, Any]) -> None:
        """Refuse a user's settings of a promise without the split to test it on, even where they are the defaults."""
        if not given.get("calibrate") and given.keys() & {"epsilon", "delta", "calibrate_limit"}:
            raise InputError(_NO_SPLIT)


@dataclass(frozen=True)
class EvaluateConfig(_InOurs, Options):
    """Base and policies on the same held-out questions."""

    split: Split = option("tune", "fit, tune, calibrate or test; test is for final tables only, and reading it is recorded")
    reward: RewardName = option("auto", REWARD_HELP)
    prompts: Prompts = option("auto", f"{PROMPTS_HELP}as the run was searched, else ours")
    reader: ReaderName = option("auto", READER_HELP)
    metric: Literal["acc_norm", "acc"] = option("acc_norm", "loglik only: which verdict counts; the other is stored too")
    max_new_tokens: int = option(0, TOKENS_HELP, ge=0)
    limit: int = option(0, "questions a task; 0 takes all", ge=0)
    batch_size: int = option(16, "questions a step, at most", ge=1)
    max_step_tokens: int = option(512, "tokens of a model step; as in the search, so that equal routes get equal verdicts", ge=1)
    n_resamples: int = option(10_000, "bootstrap resamples of the paired interval", ge=100)
    seed: int = option(0, "seed of the bootstrap and of the blind baselines")

    @property
    def folder(self) -> str:
        """Of the results, below `evaluate/`: a quick look overwrites no full table."""
        return f"{self.split}-first-{self.limit}" if self.limit else self.split


@dataclass(frozen=True)
class RetrofitConfig(Options):
    """What `drllm retrofit` tries, and what for."""

    minutes: float = option(10.0, "about how long trying may take; a stage that does not fit is made smaller or left out", ge=0.1, le=1e5)
    objective: Literal["accuracy", "speed"] = option("accuracy", "accuracy: the most right answers; speed: fewer passes at no loss")
    budget: float = option(0.0, "block passes a prompt at most, as a share of the base's; 0: any for accuracy, 0.9 for speed", ge=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.budget < 0.1:
            raise InputError(f"RetrofitConfig.budget is {self.budget:g}, expected 0 (see --objective) or a share from 0.1 to 1")

    @property
    def kept(self) -> float:
        """The share of the base's passes that a policy may spend; infinite: any."""
        return self.budget or {"accuracy": math.inf, "speed": 0.9}[self.objective]

    @property
    def kinds(self) -> tuple[str, ...]:
        return SCAN_KINDS if self.kept > 1 else ("skip",)


@dataclass(frozen=True)
class HealConfig(Options):
    """A route brought back to the base's answers: low-rank weights on its blocks, trained by KL to the base on prompts without labels."""

    budget: float = option(0.8, "without --route and --policy: block passes to keep, as a share of the base's", ge=0.1, le=1)
    choose_on: int = option(32, "prompts on which the route is chosen, dropping one block after the other where the KL grows least", ge=1)
    rank: int = option(8, "rank of the adapter's matrices (LoRA)", ge=1)
    targets: tuple[str, ...] = option((), "linear maps to adapt, by their last names, such as q_proj,v_proj; none: all of each block")
    steps: int = option(200, "training steps at most; it ends before where held-out prompts gain nothing more", ge=1)
    step_tokens: int = option(1000, "tokens of a training step, about", ge=1)
    lr: float = option(1e-3, "AdamW learning rate, falling to 0 (about 2e-4 from a billion weights on)", gt=0)
    new_tokens: int = option(16, "tokens of the base's own greedy answer that are learned behind each prompt; 0: the prompt alone", ge=0)
    answer_share: float = option(0.0, "weight of the base's answer in the KL, the rest is the prompt's; 0: each token the same", ge=0, le=1)
    held_out: int = option(64, "prompts that are kept to measure on, and learned by nothing", ge=1)
    reward: RewardName = option("auto", "tasks: the form in which questions are asked, by how answers will be judged; see drllm search")
    wording: Prompts = option("auto", f"tasks: {PROMPTS_HELP}ours")
    chat: bool = option(False, "tasks: each bare question once more, as a user's message in the chat template")
    max_step_tokens: int = option(512, f"where nothing is trained: {STEP_HELP}", ge=1)
    seed: int = option(0, "seed of the adapter's first weights and of the order of prompts", ge=0, le=MAX_SEED)


@dataclass(frozen=True)
class PromptsConfig(Options):
    """A retrofit from prompts alone: a nest of healed routes, and a selector that takes one of them, or the base, for a prompt."""

    budgets: tuple[str, ...] = option(("0.9", "0.8", "0.7"), "with --prompts: block passes of each route of the nest, shares of the base's")
    differ: float = option(0.0, "with --prompts: share of greedy answers that may differ; 0: promise what the prompts bear", ge=0, le=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "expected shares from 0.1 to below 1, each once, such as 0.9,0.8,0.7"
        try:
            shares = [float(budget) for budget in self.budgets]
        except ValueError:
            shares = []
        if not shares or len(set(shares)) < len(shares) or not all(0.1 <= share < 1 for share in shares):
            raise InputError(f"PromptsConfig.budgets is {','.join(self.budgets) or 'empty'}, {expected}")

    @property
    def shares(self) -> list[float]:
        """The budgets, the widest first."""
        return sorted(map(float, self.budgets), reverse=True)


def to_dict(config: Any) -> dict[str, Any]:
    """As plain values, for `run.json` and for comparing runs."""
    return dataclasses.asdict(config)


# Of the jobs; each method has a section of its own name besides.
SECTIONS: dict[str, type] = {"search": SearchConfig, "scan": ScanConfig, "resources": Resources, "evaluate": EvaluateConfig}
SECTIONS |= {"promise": PromiseConfig, "retrofit": RetrofitConfig, "heal": HealConfig, "prompts": PromptsConfig}

OF_COMPARISONS = ("executor", "workers", "threads")  # resources that a comparison has a use for
