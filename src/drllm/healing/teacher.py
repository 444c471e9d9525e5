"""What the base at full depth says of some prompts, computed once and kept: its own answer, and its next-token distributions.

Of each distribution the `TOP` most likely tokens are kept, and how much is left for all others. So a KL to it counts all other tokens as
one: it is at most the whole vocabulary's.

Shapes: T tokens of a text, K kept tokens, V vocabulary, N tokens of several texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.files import remove_partials, write_bytes
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.healing.prompts import Ids
from drllm.model.prompts import left_pad
from drllm.model.routed import RoutedModel
from drllm.scoring.route_prediction import prompt_steps

TOP = 64
CHUNK = 32  # prompts of a file
LEAST = 1e-7  # probability that is left for all other tokens, at least: float32 knows no smaller difference to 1


@dataclass(frozen=True)
class Text:
    """A prompt, the base's answer behind it, and what the base says comes next behind each of its tokens."""

    ids: Ids  # T
    top: Tensor  # (T, K) token ids, the most likely first
    logs: Tensor  # (T, K) their log-probabilities, float32
    rest: Tensor  # (T,) that of all other tokens together
    weights: Tensor  # (T,) what each place counts in a mean


class Teacher:
    """Texts of prompts, in files of a folder; a file that is not there is computed.

    Args:
        new_tokens: of the base's answer; 0: none.
        answer_share: of a text's weight, what the places share at which the answer is decided; 0: every place counts the same.
    """

    def __init__(self, routed: RoutedModel, folder: Path, new_tokens: int, max_step_tokens: int, answer_share: float = 0.0):
        self.routed, self.folder, self.new_tokens, self.max_step_tokens = routed, folder, new_tokens, max_step_tokens
        self.answer_share = answer_share

    def texts(self, prompts: Sequence[Ids], label: str, name: str) -> list[Text]:
        """The text of each prompt; `name` is of the files, which hold these very prompts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partials(self.folder)
        chunks = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
        paths = [self.folder / f"{name}-{index:05d}.safetensors" for index in range(len(chunks))]
        done = sum(len(chunk) for chunk, path in zip(chunks, paths, strict=True) if path.is_file())
        found: list[Text] = []
        with Progress(label, len(prompts)) as progress:
            progress.resume(done)
            for chunk, path in zip(chunks, paths, strict=True):
                if not path.is_file():
                    write_bytes(path, save_tensors(self._told(chunk)))
                    progress.advance(len(chunk))
                found += _read(path)
        begins_alike = [text.ids[: len(prompt)] == prompt for text, prompt in zip(found, prompts, strict=False)]
        if len(found) != len(prompts) or not all(begins_alike):
            raise ArtifactError(f"{self.folder} holds {len(found)} other prompts than these {len(prompts)}: give another --out")
        return [replace(text, weights=self._weights(text, prompt)) for text, prompt in zip(found, prompts, strict=True)]

    def _weights(self, text: Text, prompt: Ids) -> Tensor:
        """From the prompt's last token on, the answer is decided; without one every place counts the same."""
        if not (self.answer_share and self.new_tokens):
            return text.weights
        before, behind = len(prompt) - 1, len(text.ids) - len(prompt) + 1
        share = self.answer_share if before else 1.0
        return torch.tensor([(1 - share) / max(1, before)] * before + [share / behind] * behind)

    @torch.no_grad()
    def _told(self, prompts: Sequence[Ids]) -> dict[str, Tensor]:
        texts = self._answered(prompts) if self.new_tokens else list(prompts)
        parts: list[dict[str, Tensor]] = [{}] * len(texts)
        for members, inputs in prompt_steps(self.routed, texts, self.max_step_tokens, by_length=True):
            logits = self.routed.model(**inputs, use_cache=False).logits
            for row, member in enumerate(members):
                parts[member] = _kept(logits[row, -len(texts[member]) :].float())
        ids = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
        about = {"ids": ids, "lengths": torch.tensor([len(text) for text in texts], dtype=torch.int32)}
        return about | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _answered(self, prompts: Sequence[Ids]) -> list[Ids]:
        """Each prompt and the base's greedy answer, without its last token: what comes behind that is of no use."""
        answers = greedy(self.routed, prompts, Route.full(self.routed.n_layers), self.new_tokens)
        return [(*prompt, *answer[:-1]) for prompt, answer in zip(prompts, answers, strict=True)]


def greedy(routed: RoutedModel, prompts: Sequence[Ids], route: Route, new_tokens: int) -> list[list[int]]:
    """Each prompt's greedy answer along a route, of so many tokens at most: token ids, its end token among them."""
    ids, mask = left_pad(prompts, routed.pad_id, routed.device)
    outputs = routed.generate(input_ids=ids, attention_mask=mask, policy=route, max_new_tokens=new_tokens, do_sample=False)
    return [output.token_ids for output in outputs]


def _kept(logits_TV: Tensor) -> dict[str, Tensor]:
    """The kept part of each distribution; `InputError` where the logits are NaN or infinite."""
    if not bool(logits_TV.isfinite().all()):
        raise InputError("the base's logits are NaN or infinite on a prompt: load it in bfloat16 or float32")
    logs, top = logits_TV.log_softmax(-1).topk(min(TOP, logits_TV.shape[1]))
    rest = (1 - logs.exp().sum(-1)).clamp(min=LEAST).log()
    return {"top": top.int().cpu(), "logs": logs.half().cpu(), "rest": rest.cpu()}


def _read(path: Path) -> list[Text]:
    """The texts of a file; `ArtifactError` where it cannot be read. Rounded probabilities are scaled to a sum of 1."""
    try:
        tensors = load_tensors(path.read_bytes())
        lengths = tensors["lengths"].tolist()
        logs = torch.cat([tensors["logs"].float(), tensors["rest"][:, None]], 1).log_softmax(1)
        parts = zip(*(part.split(lengths) for part in (tensors["ids"], tensors["top"], logs[:, :-1], logs[:, -1])), strict=True)
        return [Text(tuple(ids.tolist()), top, kept, rest, torch.ones_like(rest)) for ids, top, kept, rest in parts]
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path} is not readable ({first_line(error)}): delete it and run the same command again") from None


def divergence(logits_NV: Tensor, top_NK: Tensor, logs_NK: Tensor, rest_N: Tensor) -> Tensor:
    """KL (N,) of what a model says to what the base says, in nats, the tokens that were not kept counted as one."""
    logs_q = logits_NV.gather(1, top_NK.long()) - logits_NV.logsumexp(1, keepdim=True)
    rest_q = (1 - logs_q.exp().sum(1)).clamp(min=LEAST).log()
    return (logs_NK.exp() * (logs_NK - logs_q)).sum(1) + rest_N.exp() * (rest_N - rest_q)


def joined(texts: Sequence[Text], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`top`, `logs`, `rest` and `weights` of several texts, token after token (N, ...)."""
    parts = zip(*((text.top, text.logs, text.rest, text.weights) for text in texts), strict=True)
    top, logs, rest, weights = (torch.cat(part).to(device) for part in parts)
    return top, logs, rest, weights
