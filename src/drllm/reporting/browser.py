"""Where the routes of a method differ: routes that resemble each other in one group, each with its prompts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from drllm.core.errors import DrllmError
from drllm.core.route import Route
from drllm.reporting.parts import Prompt, RouteBrowser, RouteGroup
from drllm.runs.load import Run
from drllm.runs.manifest import data_of
from drllm.runs.names import BASE
from drllm.tasks import load_task, texts_digest

GROUPS = 8
NEAR = 3  # blocks: routes that differ in more are not "alike"
REST = -1  # the group of routes that are near no other group's commonest
PROMPTS = 40  # shown of a group, so that the page stays small; the counts are of all


Texts = dict[tuple[str, str], tuple[str, str]]  # the text of a prompt and of its right answer, by (task, id)


def read_questions(run: Run, split: str) -> tuple[Texts, list[str]]:
    """Texts of the questions that a split was evaluated on, from where it read them; and what is missing, a line each.

    Texts are shown only where they are those that were answered: ids alone do not tell two files apart. The Hub is not used.
    """
    found: Texts = {}
    missing = []
    summary = run.summaries[split]
    for task in summary.tasks:
        try:
            loaded = load_task(task, data_of(run.folder, summary.data.get(task)), hub=False)
        except DrllmError as error:
            missing.append(f"Texts of {task} are not shown, since its questions are not at hand: {error}")
            continue
        ids = {row["id"] for row in run.questions.get((split, BASE, task), [])}
        examples = [example for rows in loaded.examples.values() for example in rows if example.id in ids]
        if texts_digest(examples) != summary.texts.get(task) or len(examples) < len(ids):
            missing.append(f"Texts of {task} are not shown: {loaded.source} does not hold the questions that were asked.")
            continue
        for example in examples:
            answer = example.choices[example.answer] if isinstance(example.answer, int) else example.answer
            found[task, example.id] = _clean(f"{example.context} {example.question}".strip()), _clean(str(answer))
    return found, missing


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair, which JSON allows, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def differs(run: Run, split: str, method: str) -> bool:
    """Whether a method sends two prompts of a split along different routes."""
    routes = {row.get("route") for (where, name, _), rows in run.questions.items() if (where, name) == (split, method) for row in rows}
    return len(routes - {None, ""}) > 1


def absent(run: Run, split: str) -> str:
    """Which answers that a split's summary names are not in the folder; empty where none is missing."""
    summary = run.summaries[split]
    expected = dict.fromkeys((row.method, row.task) for row in summary.rows if row.task in summary.tasks)
    missing = [(method, task) for method, task in expected if (split, method, task) not in run.questions]
    if not missing:
        return ""
    methods = ", ".join(dict.fromkeys(method for method, _ in missing))
    return (
        f"{len(missing)} of the {len(expected)} sets of answers of the {split} split are missing (`evaluate/{split}`, of {methods}): "
        "the table has their figures from the summary, but their routes and prompts cannot be shown."
    )


def browse(run: Run, split: str, method: str, questions: Texts) -> RouteBrowser:
    """The groups of one method on one split, the largest first."""
    prompts = list(_prompts(run, split, method, questions))
    group_of = cluster(Counter(prompt.route for prompt in prompts))
    together = {group: [prompt for prompt in prompts if group_of[prompt.route] == group] for group in sorted(set(group_of.values()))}
    groups = sorted((_group(some, group == REST) for group, some in together.items()), key=lambda group: (group.is_rest, -group.n_prompts))
    return RouteBrowser(method, split, tuple(groups), NEAR)


def cluster(counts: Mapping[str, int], n_groups: int = GROUPS) -> dict[str, int]:
    """The group of each route, given how many prompts take it: the commonest routes lead one each, others join the nearest of them.

    Near is how few blocks two routes treat differently; of equally near ones the commoner. What differs from each of them in more than
    `NEAR` blocks is the rest. The base's route is group 0 by itself: that a prompt was left alone is not a shade of having been changed.
    """
    groups = {route: 0 for route in counts if Route.parse(route).is_full}
    changed = sorted((route for route in counts if route not in groups), key=lambda route: (-counts[route], route))
    leaders = changed[:n_groups]
    for route in changed:
        distances = [distance(route, leader) for leader in leaders]
        groups[route] = 1 + distances.index(min(distances)) if min(distances) <= NEAR else REST
    return groups


def distance(route: str, other: str) -> int:
    """How many blocks two routes treat differently."""
    visits = zip(Route.parse(route).visits, Route.parse(other).visits, strict=True)
    return sum(a != b for a, b in visits)


def _prompts(run: Run, split: str, method: str, questions: Texts) -> Iterable[Prompt]:
    for (where, name, task), rows in sorted(run.questions.items()):
        if (where, name) != (split, method):
            continue
        base = {row["id"]: row["correct"] for row in run.questions.get((split, BASE, task), [])}
        for row in rows:
            if row.get("route"):
                text = questions.get((task, row["id"]), ("", ""))
                yield Prompt(row["id"], task, *text, base.get(row["id"]), bool(row["correct"]), row["route"])


def _group(prompts: Sequence[Prompt], is_rest: bool) -> RouteGroup:
    routes = Counter(prompt.route for prompt in prompts)
    commonest = min(routes, key=lambda route: (-routes[route], route))
    by_task = Counter(prompt.task for prompt in prompts)
    changed = [prompt for prompt in prompts if prompt.is_changed]
    # Changed verdicts first: they are what a reader looks for.
    shown = sorted(prompts, key=lambda prompt: (not prompt.is_changed, not prompt.right, prompt.task, prompt.id))[:PROMPTS]
    tasks, furthest = tuple(sorted(by_task.items())), max(distance(route, commonest) for route in routes)
    better = sum(prompt.right for prompt in changed)
    worse = len(changed) - better
    return RouteGroup(commonest, furthest, len(routes), len(prompts), tasks, better, worse, tuple(shown), is_rest)
