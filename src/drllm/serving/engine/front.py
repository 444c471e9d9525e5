"""The front selector: a code book's first blocks, in the server's own process, which read a prompt before the engine sees it.

Those blocks run once here and once more in the engine: what that costs is counted (`drllm_front_seconds`, and `seconds` of each answer).

Shapes: T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from drllm.errors import ArtifactError
from drllm.model.codebook import Codebook, pool_prompt
from drllm.model.load import quiet_loading
from drllm.routes import Route


class FrontSelector:
    """Decides each prompt's route by a code book; one prompt at a time, so that a route never depends on what else is asked.

    Args:
        book: the code book, of more than one route.
        checkpoint: folder or Hub id of the base; only its embedding and the blocks before `book.block` are loaded.
        dtype, device: of the engine.
    """

    def __init__(self, book: Codebook, checkpoint: str, dtype: torch.dtype, device: str):
        self.book = book
        config: Any = AutoConfig.from_pretrained(checkpoint)
        text = config.get_text_config(decoder=True)
        if text.num_hidden_layers != book.n_layers:
            raise ArtifactError(f"the code book is for {book.n_layers} blocks, {checkpoint} has {text.num_hidden_layers}")
        text.num_hidden_layers = book.block
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: book.block]
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=dtype)
        self.decoder = model.get_decoder().eval().to(device)
        self.decoder.norm = nn.Identity()  # a code book reads the states between two blocks
        self.n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in self.decoder.parameters())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drllm-front")

    @torch.inference_mode()
    def decide(self, prompt_ids: list[int]) -> Route:
        """The route of one prompt."""
        ids = torch.tensor([prompt_ids], device=self.decoder.device)
        x_1TD = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return self.book.routes_for(pool_prompt(x_1TD, torch.ones_like(ids, dtype=torch.bool)))[0]

    async def choose(self, prompt_ids: list[int]) -> tuple[Route, float]:
        """The route, and the seconds from asking to knowing, the wait for other prompts included."""
        start = time.perf_counter()
        route = await asyncio.get_running_loop().run_in_executor(self._thread, self.decide, prompt_ids)
        return route, time.perf_counter() - start
