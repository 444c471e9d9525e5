"""The tree search of groups of questions, as a worker does it: trees through one scorer, then the blind baseline, then the checks.

A question's record depends on the question, the model and the configuration alone. So one process, many workers, an interrupted
search and a resumed one all write the same records.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drllm.core.digest import json_digest, number_of
from drllm.core.route import Route
from drllm.runs.records import FINITE, Check, RouteRecord, shard_path, write_shard
from drllm.runs.store import Asked, Store, Verdict
from drllm.scoring.base import Question
from drllm.scoring.inquiries import Inquiry, Job, Replica, Wanted, write_new
from drllm.searching.tree import RouteTree
from drllm.searching.verify import Verifier


def question_seed(seed: int, task: str, example_id: str) -> int:
    """A tree's seed depends on its question alone, not on the group it falls in."""
    return number_of(f"{seed}:{task}:{example_id}")


@dataclass(frozen=True)
class Searching(Job):
    """What to do with every question of one task.

    Attributes:
        folder: of the task's records.
        counts: which verdict of a row is the reward.
        digests: of the questions that are left; what the store knows of them is not asked again.
        control: routes of the blind baseline.
    """

    folder: Path
    counts: str
    digests: tuple[str, ...]
    control: tuple[Route, ...] = ()

    @property
    def in_order(self) -> bool:
        """Where a number of questions is kept, the order in which they are visited counts."""
        return bool(self.config.keep)

    @property
    def most_routes(self) -> int:
        """The base, and those of the simulations and of the blind baseline."""
        return 1 + self.config.n_simulations + len(self.control)

    def is_done(self, index: int) -> bool:
        """Records are written last."""
        return shard_path(self.folder, index).is_file()

    def inquire(self, replica: Replica, question: Question, wanted: Wanted) -> Inquiry:
        """The question with its tree; the tree's base comes first."""
        name = self.task.name
        tree = RouteTree(replica.routed.n_layers, self.config, question_seed(self.config.seed, name, wanted.example.id))
        known = self._known(replica).get(question.digest, {})
        asked = Asked(name, wanted.split, wanted.example.id, question.digest)
        return Inquiry(question, asked, list(reversed(self.control)), tree, tree.ask(), dict(known))

    def _known(self, replica: Replica) -> Mapping[str, Mapping[Route, Verdict]]:
        """What the store held when the replica began."""
        if ("known", self.folder) not in replica.kept:
            replica.kept["known", self.folder] = Store(self.store).find(self.conditions, self.digests, self.counts)
        return replica.kept["known", self.folder]

    def finish(self, replica: Replica, index: int, inquiries: list[Inquiry]) -> None:
        """Verdicts first: records whose verdicts are not there would be broken."""
        about = [vars(self.conditions), repr(self.config), [one.asked.question for one in inquiries]]
        write_new(Store(self.store), f"search-{json_digest(about)}", self.conditions, inquiries)
        write_shard(self.folder, index, [self._record(replica, inquiry) for inquiry in inquiries])

    def _record(self, replica: Replica, inquiry: Inquiry) -> RouteRecord:
        tree, checks = inquiry.strategy, tuple[Check, ...]()
        assert isinstance(tree, RouteTree)
        routes = tuple(evaluation.route for evaluation in tree.evaluated)
        if inquiry.broken:
            checks = (Check(routes[0], FINITE, False, inquiry.verdicts[routes[0]].margin),)
        elif self.config.verify:
            if ("verifier", self.folder) not in replica.kept:
                replica.kept["verifier", self.folder] = Verifier(replica.routed, self.task, self.config)
            checks = replica.kept["verifier", self.folder].checks(inquiry.question.example, [routes[0], tree.chosen])
        control = () if inquiry.broken else self.control
        about = (inquiry.asked, self.conditions, self.counts, self.config.seed)
        return RouteRecord(*about, tree.chosen, routes, inquiry.verdicts, control, checks)
