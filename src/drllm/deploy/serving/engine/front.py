"""The front selector: a codebook's first blocks, in the server's own process, which read a prompt before the engine sees it.

Those blocks run once here and once more in the engine: what that costs is counted (`drllm_front_seconds`, and `seconds` of each answer).
Prompts that wait together are read together: one by one they would take longer than the engine, which prefills many at once. Shared
prefixes are kept (`prefixes.py`).

Shapes: B prompts, T tokens of the longest, D hidden size.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.deploy.serving.engine.prefixes import PIECE, Prefix, Prefixes, Prompt, n_tokens
from drllm.model.load import quiet_loading
from drllm.policies.codebook import Codebook, pool_prompt

STEP_TOKENS = 1024  # of one reading, padding included: more at once is no faster on a processor, and so longer prompts are read alone
MAX_PADDING = 2.0  # times a prompt's own length
MOST_HELD = 8192  # tokens of one reading whose keys and values are held: each prompt's, with the prefix that it shares
WARM_UP = ((1, 5), (3, 7))  # prompts and tokens: a lone prompt is compiled apart, and a length of 1 would be, were it not padded


_T = TypeVar("_T")


class Choice(NamedTuple):
    """The route of a prompt; the seconds from asking to knowing, the wait for other prompts included; and the tokens read for it."""

    route: Route
    seconds: float
    n_read: int


@dataclass(eq=False)
class _Waiting:
    """A prompt, and its route to come with the number of tokens read for it."""

    prompt: Prompt
    found: asyncio.Future[tuple[Route, int]]


def share_a_reading(lengths: Sequence[int], n_shared: int = 0) -> list[int]:
    """Which of the prompts that wait, the oldest first, are read with the first one: their places.

    Those nearest to it in length, as long as the padded tokens stay within `STEP_TOKENS` and none is padded to more than `MAX_PADDING`
    times its length; the first is always among them, however long. Lengths are of what is read, after `n_shared` tokens that are not:
    with those, the padded tokens stay within `MOST_HELD`.
    """
    taken, shortest, longest = [0], lengths[0], lengths[0]
    for place in sorted(range(1, len(lengths)), key=lambda place: abs(math.log(lengths[place] / lengths[0]))):
        low, high = min(shortest, lengths[place]), max(longest, lengths[place])
        n_read, n_held = high * (len(taken) + 1), (n_shared + high) * (len(taken) + 1)
        if high <= MAX_PADDING * low and n_read <= STEP_TOKENS and n_held <= MOST_HELD:
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
        keeps: whether shared prefixes are kept, as in the engine's prefix cache.
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
    def features(self, prompts: Sequence[list[int]]) -> Tensor:
        """(B, 2 D) float32: the pooled states of each prompt, read together.

        Shorter prompts are padded on the right, where causal attention keeps the padding from every token before it: no mask is needed.
        """
        lengths = torch.tensor([len(ids) for ids in prompts])
        ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
        ids_BT = nn.functional.pad(ids_BT, (0, max(0, 2 - ids_BT.shape[1])))
        x_BTD = self.decoder(input_ids=ids_BT.to(self.decoder.device), use_cache=False).last_hidden_state
        return pool_prompt(x_BTD, torch.arange(ids_BT.shape[1]) < lengths[:, None])

    @torch.inference_mode()
    def features_after(self, prompts: Sequence[Prompt], prefix: Prefix) -> Tensor:
        """As `features`, of prompts that all have this kept prefix, which is not read again."""
        assert self.prefixes is not None
        n_kept, x_BTD = n_tokens(prefix), self.prefixes.read(prompts, prefix)
        lengths_B1 = torch.tensor([[len(prompt.ids) - n_kept] for prompt in prompts])
        mean_BD, last_BD = pool_prompt(x_BTD, torch.arange(x_BTD.shape[1]) < lengths_B1).chunk(2, dim=1)
        n_B1, kept_D = lengths_B1.to(mean_BD.device), sum((piece.sum_D for piece in prefix), torch.zeros_like(mean_BD[0]))
        return torch.cat([(mean_BD * n_B1 + kept_D) / (n_B1 + n_kept), last_BD], dim=1)

    def decide(self, prompts: Sequence[list[int]]) -> list[Route | InputError]:
        """The route of each of the prompts, read together, or why there is none: its states are not finite."""
        return self._routes(prompts, self.features)

    def _routes(self, prompts: Sequence[_T], features: Callable[[Sequence[_T]], Tensor]) -> list[Route | InputError]:
        """As `decide`, by these features."""
        found: list[Route | InputError] = []
        for prompt, features_F in zip(prompts, features(prompts), strict=True):
            if len(prompts) > 1 and not bool(features_F.isfinite().all()):
                found += self._routes([prompt], features)  # the padding's states may be at fault, which no prompt should fail for
                continue
            try:
                found += self.codebook.routes_for(features_F[None])
            except InputError as error:
                found.append(error)
        return found

    async def choose(self, prompt_ids: list[int], salt: str = "") -> Choice:
        """The route of a prompt; `InputError` as from `decide`. Only prompts with the same cache salt share prefixes."""
        start = time.perf_counter()
        waiting = _Waiting(Prompt(prompt_ids, salt), asyncio.get_running_loop().create_future())
        if self.prefixes is not None:
            self.prefixes.see(waiting.prompt)
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
            prompts = [waiting.prompt for waiting in group]
            reading = asyncio.get_running_loop().run_in_executor(self._thread, self._decide_group, prompts, n_shared)
            await asyncio.wait([reading])
            failed = reading.exception()
            routes, n_first, n_kept = ([failed] * len(group), 0, 0) if failed else reading.result()
            for waiting, route in zip(group, routes, strict=True):
                if waiting.found.done():  # its client has left
                    continue
                if isinstance(route, BaseException):
                    waiting.found.set_exception(route)
                else:
                    waiting.found.set_result((route, len(waiting.prompt.ids) - n_kept + n_first))
                    n_first = 0

    def _decide_group(self, prompts: Sequence[Prompt], n_shared: int) -> tuple[list[Route | InputError], int, int]:
        """The routes of prompts that share their first `n_shared` tokens; how many tokens were read once for all of them, and were kept."""
        if self.prefixes is None or not n_shared:
            return self.decide([prompt.ids for prompt in prompts]), 0, 0
        n_before, prefix = n_tokens(self.prefixes.kept(prompts[0], n_shared)), self.prefixes.keep(prompts[0], n_shared)
        routes = self._routes(prompts, lambda some: self.features_after(some, prefix))
        return routes, n_shared - n_before, n_tokens(prefix)

    def _take_a_group(self) -> tuple[list[_Waiting], int] | None:
        """The prompts to read next, which wait no longer, and how many of their first tokens they share; None where nobody waits.

        Chosen among the oldest `STEP_TOKENS`, as no reading holds more: its cost must not grow with the number of those that wait.
        """
        oldest: list[_Waiting] = []
        while self._waiting and len(oldest) < STEP_TOKENS:
            waiting = self._waiting.popleft()
            if not waiting.found.done():  # else its client has left
                oldest.append(waiting)
        if not oldest:
            return None
        first, n_shared = oldest[0].prompt, self._shared(oldest[0].prompt)
        alike = [place for place, waiting in enumerate(oldest) if self._begins_alike(waiting.prompt, first, n_shared)]
        nearest = [alike[place] for place in share_a_reading([len(oldest[place].prompt.ids) - n_shared for place in alike], n_shared)]
        start = first.ids[:n_shared]
        taken = {place for place in nearest if oldest[place].prompt.ids[:n_shared] == start}  # no other prefix of the same hash
        self._waiting.extendleft(oldest[place] for place in reversed(range(len(oldest))) if place not in taken)
        return [oldest[place] for place in sorted(taken)], n_shared

    def _shared(self, prompt: Prompt) -> int:
        """How many of its first tokens other prompts begin with, too."""
        return self.prefixes.shared(prompt) if self.prefixes is not None else 0

    def _begins_alike(self, prompt: Prompt, first: Prompt, n_shared: int) -> bool:
        """Whether the longest shared prefix of a prompt is, by its hash, the first `n_shared` tokens of another."""
        if self._shared(prompt) != n_shared:
            return False
        last = n_shared // PIECE - 1
        return not n_shared or (prompt.salt, prompt.hashes[last]) == (first.salt, first.hashes[last])
