"""The front selector: a codebook's first blocks, in the server's own process, which read a prompt before the engine sees it.

Those blocks run once here and once more in the engine: what that costs is counted (`drllm_front_seconds`, and `seconds` of each answer).
Prompts that wait together are read together: one by one they would take longer than the engine, which prefills many at once.

Shapes: B prompts, T tokens of the longest, D hidden size.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Route
from drllm.model.load import quiet_loading
from drllm.policies.codebook import Codebook, pool_prompt

STEP_TOKENS = 1024  # of one reading, padding included: more at once is no faster on a processor, and so longer prompts are read alone
MAX_PADDING = 2.0  # times a prompt's own length
WARM_UP = ((1, 5), (3, 7))  # prompts and tokens: a lone prompt is compiled apart, and a length of 1 would be, were it not padded


_Waiting = tuple[list[int], asyncio.Future[Route]]  # a prompt, and its route to come


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
    """

    def __init__(
        self, codebook: Codebook, checkpoint: str, dtype: torch.dtype, device: str, compiled: bool = False, revision: str | None = None
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

    def decide(self, prompts: Sequence[list[int]]) -> list[Route | InputError]:
        """The route of each of the prompts, read together, or why there is none: its states are not finite."""
        found: list[Route | InputError] = []
        for ids, features_F in zip(prompts, self.features(prompts), strict=True):
            if len(prompts) > 1 and not bool(features_F.isfinite().all()):
                found += self.decide([ids])  # the padding's states may be at fault, which no prompt should fail for
                continue
            try:
                found += self.codebook.routes_for(features_F[None])
            except InputError as error:
                found.append(error)
        return found

    async def choose(self, prompt_ids: list[int]) -> tuple[Route, float]:
        """The route, and the seconds from asking to knowing, the wait for other prompts included; `InputError` as from `decide`."""
        start = time.perf_counter()
        route: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt_ids, route))
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        return await route, time.perf_counter() - start

    async def _read(self) -> None:
        """Read the prompts that wait, and those that come meanwhile; a client that leaves takes its own prompt alone with it."""
        await asyncio.sleep(0)  # prompts of one request ask one after the other
        while group := self._take_a_group():
            reading = asyncio.get_running_loop().run_in_executor(self._thread, self.decide, [ids for ids, _ in group])
            await asyncio.wait([reading])
            failed = reading.exception()
            for place, (_, route) in enumerate(group):
                found = failed or reading.result()[place]
                if route.done():  # its client has left
                    continue
                if isinstance(found, BaseException):
                    route.set_exception(found)
                else:
                    route.set_result(found)

    def _take_a_group(self) -> list[_Waiting]:
        """The prompts to read next, which wait no longer; none where nobody waits.

        Chosen among the oldest `STEP_TOKENS`, as no reading holds more: its cost must not grow with the number of those that wait.
        """
        oldest: list[_Waiting] = []
        while self._waiting and len(oldest) < STEP_TOKENS:
            ids, route = self._waiting.popleft()
            if not route.done():  # else its client has left
                oldest.append((ids, route))
        taken = set(share_a_reading([len(ids) for ids, _ in oldest])) if oldest else set()
        self._waiting.extendleft(prompt for place, prompt in reversed(list(enumerate(oldest))) if place not in taken)
        return [oldest[place] for place in sorted(taken)]
