"""What a server's prompts look like, and where a codebook should decide for such prompts: before the engine, or in it. No torch, no vLLM.

Before the engine, the blocks up to where the codebook reads run twice, but for shared prefixes, which are kept there, too. In the engine
no block runs twice, but no prefix is kept and no prompt is cut: a shared prefix is computed again for each prompt. Both costs are counted
in block passes; a long prompt in one step makes others wait. That prefixes are read before they are kept is left out of the count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from drllm.core.errors import ArtifactError
from drllm.core.files import read_json, write_json
from drllm.model import packages
from drllm.policies.saved_config import policy_digest

ENOUGH = 100  # prompts that say something
KEPT = 1 << 16  # beginnings of prompts that are remembered, the latest
LONG = 2048  # tokens from which a prompt, in one step, makes others wait
LONG_SHARE = 0.05  # of prompts that may be so long
EVERY = 20  # prompts after which the file is written


@dataclass(frozen=True)
class Traffic:
    """Prompts seen so far.

    Attributes:
        prompts: whose route the policy decided.
        tokens: theirs together.
        shared: tokens that an earlier prompt of the same route began with, too, in whole blocks of the engine's cache.
        long: prompts of more than `LONG` tokens.
    """

    prompts: int = 0
    tokens: int = 0
    shared: int = 0
    long: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(one + two for one, two in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def beginnings(ids: Sequence[int], size: int, apart: str) -> Iterator[int]:
    """A hash of each beginning of so many tokens, twice as many and so on; `apart` sets the beginnings of some prompts apart."""
    before = hash(f"prompts of {apart}")  # of a text: Python draws those anew in each process, so nobody can prepare equal ones
    for end in range(size, len(ids) + 1, size):
        before = hash((before, tuple(ids[end - size : end])))
        yield before


class Shared:
    """How many of a prompt's tokens earlier ones began with; what is remembered is a hash of each beginning, `KEPT` of them at most."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self._seen: OrderedDict[int, None] = OrderedDict()

    def count(self, ids: Sequence[int], route: str) -> int:
        """Tokens of this prompt's longest beginning that was seen with this route, in whole blocks; all of its own are remembered."""
        shared, goes_on = 0, True
        for beginning in beginnings(ids, self.block_size, route):
            goes_on = goes_on and beginning in self._seen
            shared += self.block_size * goes_on
            self._seen[beginning] = None
            self._seen.move_to_end(beginning)
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return shared


def faster_place(traffic: Traffic, read: int, n_layers: int, keeps: bool = True) -> tuple[str, str]:
    """ "front" or "engine" for such prompts, and why, in words.

    Args:
        read: blocks that the codebook reads before it decides; before the engine they run twice, shared prefixes aside.
        keeps: whether prefixes are kept before the engine.
    """
    if traffic.prompts < ENOUGH:
        return "front", f"{traffic.prompts} prompts were counted so far, {ENOUGH} say which place is faster"
    again = traffic.shared if keeps else 0
    twice = read * (traffic.tokens - again) / n_layers
    shape = (
        f"{traffic.prompts:,} prompts of {traffic.tokens / traffic.prompts:.0f} tokens, {traffic.shared / traffic.tokens:.0%} shared"
        + ("" if keeps else ", not kept")
    )
    if traffic.long > LONG_SHARE * traffic.prompts:
        return "front", f"{shape}: {traffic.long:,} have more than {LONG:,} tokens, which the engine may cut only so"
    place = "engine" if twice > again else "front"
    costs = f"before the engine {twice / traffic.tokens:.0%} of their passes run twice, in it {again / traffic.tokens:.0%}"
    return place, f"{shape}: {costs}"


def traffic_file(policy: str) -> Path:
    """Where the prompts of the policy in this folder are counted, whatever server serves it."""
    return packages.cache_folder() / "traffic" / f"{policy_digest(Path(policy))}.json"


def read_traffic(path: Path) -> Traffic:
    """What was counted there; nothing where there is no file, or one that is torn: it is counted anew."""
    try:
        return Traffic(**(read_json(path, "", dict) if path.is_file() else {}))
    except (ArtifactError, TypeError):
        return Traffic()


class Counted:
    """Counts a server's prompts into a file, which holds numbers alone."""

    def __init__(self, path: Path, block_size: int):
        self.path, self.new, self._shared = path, Traffic(), Shared(block_size)

    def add(self, ids: Sequence[int], route: str) -> Traffic:
        """One prompt whose route the policy decided; once in `EVERY` all that was ever counted there, else nothing."""
        self.new += Traffic(1, len(ids), self._shared.count(ids, route), int(len(ids) > LONG))
        if self.new.prompts < EVERY:
            return Traffic()
        all_of_them, self.new = read_traffic(self.path) + self.new, Traffic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, asdict(all_of_them))
        return all_of_them
