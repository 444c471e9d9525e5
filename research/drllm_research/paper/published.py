"""What arXiv 2510.12773v2 reports, to stand beside our own figures: facts, cited, never ours. No torch."""

from dataclasses import dataclass

PAPER = "arXiv 2510.12773v2"


@dataclass(frozen=True)
class Published:
    """The paper's figures for one of its models (its table 3), base and routed."""

    name: str
    arc: tuple[float, float]  # accuracy in percent, over ARC-Easy and ARC-Challenge
    dart: tuple[float, float]  # over the five levels of DART-Math
    layers: tuple[float, float]  # block passes of a query, all generated tokens together


MODELS = {
    "llama-3.2-3b-instruct": Published("Llama-3.2-3B-Instruct", (73.5, 74.5), (35.2, 38.6), (331.1, 323.7)),
    "llama-3.1-8b-instruct": Published("Llama-3.1-8B-Instruct", (88.5, 89.4), (38.4, 41.2), (518.2, 509.6)),
    "llama-3.2-3b": Published("Llama-3.2-3B", (48.0, 49.0), (11.8, 15.8), (815.4, 812.4)),
    "llama-3.1-8b": Published("Llama-3.1-8B", (22.5, 23.5), (17.2, 20.2), (798.7, 794.5)),
    "qwen2.5-3b-instruct": Published("Qwen2.5-3B-Instruct", (53.0, 55.5), (30.2, 32.4), (832.4, 828.9)),
    "qwen2.5-7b-instruct": Published("Qwen2.5-7B-Instruct", (94.5, 94.5), (45.4, 46.8), (460.9, 457.5)),
}

OWNERS = ("meta-llama", "qwen")
SAMPLED = {"arc_easy": 400, "arc_challenge": 600, "dart-1": 200, "dart-2": 400, "dart-3": 600, "dart-4": 800, "dart-5": 1000}  # table 2
VISITED, FORWARDS = 24_330, 961_000  # table 2
ACTIONS = (4_399, 120_956, 1_457)  # skip, execute and repeat labels, table 2
IMPROVED = 0.30  # of the kept paths, those that mend a wrong answer
OUTSIDE_MEAN = -0.85  # points, mean over eight benchmarks, table 4
RIVALS = {"LayerSkip": 32.5, "ShortGPT": 48.9, "MindSkip": 48.2, "FlexiDepth": 59.7, "Dr.LLM": 67.4}  # mean of four benchmarks, table 5
SAVED, OF_LAYERS = 4, 32  # blocks that each of them saves
THROUGHPUT = {1: 0.269, 128: 0.039}  # gain by batch size, table 7
AGREEMENT = (0.80, 0.89)  # of blocks, between the routes of two prompts
MACRO_F1, BLOCK_ACCURACY = 0.61, 0.968  # of the routers against the labels
LATENCY = (34.49, 29.21, 0.27)  # seconds of 1,000 tokens by the base, with routers, and of the routers alone


def published(model: str) -> Published | None:
    """The paper's figures for a model by its Hub id or a folder of that name; None for any that the paper does not have."""
    owner, _, name = model.rstrip("/").rpartition("/")
    is_hub_id = bool(owner) and not owner.startswith((".", "~")) and "/" not in owner
    return MODELS.get(name.lower()) if not is_hub_id or owner.lower() in OWNERS else None
