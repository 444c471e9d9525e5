"""The front selector: a codebook's first blocks, in the server's own process, which read a prompt before the engine sees it.

Those blocks run once here and once more in the engine: what that costs is counted (`drllm_front_seconds`, and `seconds` of each answer).
Prompts that wait together are read together: one by one they would take longer than the engine, which prefills many at once. What prompts
begin with alike is read once (`prefixes.py`).

Shapes: B prompts, T tokens of the longest, D hidden size.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.deploy.serving.engine.prefixes import Prefix, Prefixes
from drllm.model.load import quiet_loading
from drllm.policies.codebook import Codebook, pool_prompt

STEP_TOKENS = 1024  # of one reading, padding included: more at once is no faster on a processor, and so longer prompts are read alone
MAX_PADDING = 2.0  # times a prompt's own length
WARM_UP = ((1, 5), (3, 7))  # prompts and tokens: a lone prompt is compiled apart, and a length of 1 would be, were it not padded


class Choice(NamedTuple):
    """The route of a prompt, and what it took: the seconds from asking to knowing, the wait for other prompts included, and tokens read."""

    route: Route
    seconds: float
    n_read: int


@dataclass(eq=False)
class _Waiting:
    """A prompt, the cache salt of its client, and its route to come with the tokens that were read for it."""

    ids: list[int]
    salt: str
    found: asyncio.Future[tuple[Route, int]]


def share_a_reading(lengths: Sequence[int]) -> list[int]:
    """Which of the prompts that wait, the oldest first, are read with the first one: their places.

    Those nearest to it in length, as long as the padded tokens stay within `STEP_TOKENS` and none is padded to more than `MAX_PADDING`
    times its length; the first is always among them, however long.
    """
    taken, shortest, longest = [0], lengths[0], lengths[0]
    for place in sorted(range(1, len(lengths)), key=lambda place: abs(math.log(lengths[place] / lengths[0]))):
        low, high = min(shortest, lengths[place]), max(longest, lengths[place])
        if high <= MAX_PADDING * low and high * (len(taken) + 1) <= STEP_TOKENS:
            taken, shortest, longest = [*taken, place], low, high
    return sorted(taken)


class FrontSelector:
    """Decides each prompt's route by a codebook, prompts that wait together in one step of the model.

    What else is read changes the last bits of a prompt's states, so a choice close to its threshold can depend on it; how often it does
    is measured in `docs/benchmarks.md`.

    Args:
        codebook: of more than one route.
        checkpoint: folder or Hub id of the base; only its embedding and the blocks before `codebook.block` are loaded.
        dtype, device: of the engine.
        compiled: whether the blocks are compiled, which takes a minute at the first start: on a processor their many small operations
            take as long as their products. Last bits differ from the uncompiled blocks'.
        revision: of the base on the Hub, as the engine loads it; None for its default branch, or where `checkpoint` is a folder.
        keeps: whether what prompts begin with alike is kept, as in the engine's prefix cache.
    """

    def __init__(
        self,
        codebook: Codebook,
        checkpoint: str,
        dtype: torch.dtype,
        device: str,
        compiled: bool = False,
        revision: str | None = None,
        keeps: bool = True,
    ):
        self.codebook = codebook
        config: Any = AutoConfig.from_pretrained(checkpoint, revision=revision)
        text = config.get_text_config(decoder=True)
        if text.num_hidden_layers != codebook.n_layers:
            raise ArtifactError(f"the codebook is for {codebook.n_layers} blocks, {checkpoint} has {text.num_hidden_layers}")
        text.num_hidden_layers = codebook.block
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: codebook.block]
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=dtype, revision=revision)
        self.decoder = model.get_decoder().eval().to(device)
        self.decoder.norm = nn.Identity()  # a codebook reads the states between two blocks
        self.n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in self.decoder.parameters())
        self.prefixes = Prefixes(self.decoder) if keeps else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drllm-front")
        self._waiting: deque[_Waiting] = deque()  # the oldest first; some may have left
        self._reader: asyncio.Task[None] | None = None
        if compiled:
            for block in self.decoder.layers:
                block.compile(dynamic=True)
            for n_prompts, n_tokens in WARM_UP:
                self._thread.submit(self.features, [[0] * n_tokens] * n_prompts).result()

    @torch.inference_mode()
    def features(self, prompts: Sequence[list[int]], prefix: Prefix | None = None) -> Tensor:
        """(B, 2 D) float32: the pooled states of each prompt, read together.

        Shorter prompts are padded on the right, where causal attention keeps the padding from every token before it: no mask is needed.

        Args:
            prefix: what all of them begin with, where that is kept; each has at least one token more.
        """
        n_kept = len(prefix.ids) if prefix else 0
        lengths = torch.tensor([len(ids) - n_kept for ids in prompts])
        ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(ids[n_kept:]) for ids in prompts], batch_first=True)
        ids_BT = nn.functional.pad(ids_BT, (0, max(0, 2 - ids_BT.shape[1])))
        if prefix is None or self.prefixes is None:
            x_BTD = self.decoder(input_ids=ids_BT.to(self.decoder.device), use_cache=False).last_hidden_state
        else:
            x_BTD = self.prefixes.follow(ids_BT, prefix)
        pooled_BF = pool_prompt(x_BTD, torch.arange(ids_BT.shape[1]) < lengths[:, None])
        if prefix is None:
            return pooled_BF
        mean_BD, last_BD = pooled_BF.chunk(2, dim=1)
        n_B1 = lengths[:, None].to(pooled_BF.device)
        return torch.cat([(mean_BD * n_B1 + prefix.sum_D) / (n_B1 + n_kept), last_BD], dim=1)

    def decide(self, prompts: Sequence[list[int]], prefix: Prefix | None = None) -> list[Route | InputError]:
        """The route of each of the prompts, read together, or why there is none: its states are not finite."""
        found: list[Route | InputError] = []
        for ids, features_F in zip(prompts, self.features(prompts, prefix), strict=True):
            if len(prompts) > 1 and not bool(features_F.isfinite().all()):
                found += self.decide([ids], prefix)  # the padding's states may be at fault, which no prompt should fail for
                continue
            try:
                found += self.codebook.routes_for(features_F[None])
            except InputError as error:
                found.append(error)
        return found

    async def choose(self, prompt_ids: list[int], salt: str = "") -> Choice:
        """The route of a prompt; `InputError` as from `decide`. Prompts of one cache salt alone share what they begin with."""
        start = time.perf_counter()
        waiting = _Waiting(prompt_ids, salt, asyncio.get_running_loop().create_future())
        if self.prefixes is not None:
            self.prefixes.see(prompt_ids, salt)
        self._waiting.append(waiting)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        route, n_read = await waiting.found
        return Choice(route, time.perf_counter() - start, n_read)

    async def _read(self) -> None:
        """Read the prompts that wait, and those that come meanwhile; a client that leaves takes its own prompt alone with it."""
        await asyncio.sleep(0)  # prompts of one request ask one after the other
        while (taken := self._take_a_group()) is not None:
            group, n_shared = taken
            reading = asyncio.get_running_loop().run_in_executor(self._thread, self._decide_group, group, n_shared)
            await asyncio.wait([reading])
            failed = reading.exception()
            for place, waiting in enumerate(group):
                if waiting.found.done():  # its client has left
                    continue
                route, n_read = (failed, 0) if failed else reading.result()[place]
                if isinstance(route, BaseException):
                    waiting.found.set_exception(route)
                else:
                    waiting.found.set_result((route, n_read))

    def _decide_group(self, group: Sequence[_Waiting], n_shared: int) -> list[tuple[Route | InputError, int]]:
        """The routes of prompts whose first `n_shared` tokens are alike, and how many tokens were read for each.

        The first one's are all that were not kept before, the others' those that are its own.
        """
        first, prefix, n_before = group[0], None, 0
        if self.prefixes is not None and n_shared:
            before = self.prefixes.longest(first.ids[:n_shared], first.salt)
            n_before, prefix = len(before.ids) if before else 0, self.prefixes.keep(first.ids[:n_shared], first.salt)
        found = self.decide([waiting.ids for waiting in group], prefix)
        n_read = [len(waiting.ids) - n_shared for waiting in group]
        n_read[0] += n_shared - n_before
        return list(zip(found, n_read, strict=True))

    def _take_a_group(self) -> tuple[list[_Waiting], int] | None:
        """The prompts to read next, which wait no longer, and how many of their first tokens are alike; None where nobody waits.

        Chosen among the oldest `STEP_TOKENS`, as no reading holds more: its cost must not grow with the number of those that wait.
        """
        oldest: list[_Waiting] = []
        while self._waiting and len(oldest) < STEP_TOKENS:
            waiting = self._waiting.popleft()
            if not waiting.found.done():  # else its client has left
                oldest.append(waiting)
        if not oldest:
            return None
        starts = [self._start(waiting) for waiting in oldest]
        n_shared, alike = len(starts[0][1]), [place for place, start in enumerate(starts) if start == starts[0]]
        taken = {alike[place] for place in share_a_reading([len(oldest[place].ids) - n_shared for place in alike])}
        self._waiting.extendleft(waiting for place, waiting in reversed(list(enumerate(oldest))) if place not in taken)
        return [oldest[place] for place in sorted(taken)], n_shared

    def _start(self, waiting: _Waiting) -> tuple[str, list[int]]:
        """What a prompt begins with as others do, and with whose cache salt: empty where it shares nothing."""
        n_shared = self.prefixes.shared(waiting.ids, waiting.salt) if self.prefixes is not None else 0
        return waiting.salt if n_shared else "", waiting.ids[:n_shared]
