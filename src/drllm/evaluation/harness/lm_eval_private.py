"""The parts of lm-evaluation-harness that it does not document as its interface, under names of our own. No other module uses one.

Checked on the version named below; `tests/evaluation/test_lm_eval_private.py` names the part that a later version changed.
"""

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from torch import Tensor

CHECKED = "0.4.13"


def command_line() -> HarnessCLI:
    """The harness's own command line, with its logging set up."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    return HarnessCLI()


def parse_run(words: Sequence[str]) -> Any:
    """What the `run` command makes of its options, which must be written out; `SystemExit` for what it does not know."""
    from lm_eval._cli import HarnessCLI

    parser = HarnessCLI()
    parser._subparsers.choices["run"].allow_abbrev = False
    return parser._parser.parse_args(["run", *words])


def settings_of(arguments: Any) -> EvaluatorConfig:
    """The settings of a run, checked by the harness: `ValueError`, `TypeError` or `OSError` where it refuses them."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    return EvaluatorConfig.from_cli(arguments)


def to_json(value: Any, **form: Any) -> bytes:
    """A result as the harness writes it, UTF-8; `form` as for `json.dumps`."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **form).encode()


@contextlib.contextmanager
def shots_sorted(sampler: Any, key: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
    """A sampler's pool of documents in another order, for one drawing."""
    pool = sampler.df
    sampler.df = sorted(pool, key=key)
    try:
        yield
    finally:
        sampler.df = pool


def stock_model() -> Any:
    """`HFLM` with its inner steps as methods to override; `stock_...` is what the harness does there itself."""
    from lm_eval.models.huggingface import HFLM

    stock: Any = HFLM  # its registering decorator hides its type

    class StockModel(stock):
        @abstractmethod
        def score_tokens(self, requests: Sequence[Any], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
            """(log-likelihood, is greedy) of each ((context, continuation), context tokens, continuation tokens)."""

        @abstractmethod
        def logits_of(self, ids_BT: Tensor) -> Tensor:
            """(B, T, V) of right-padded sequences, which `stock_score_tokens` asks for."""

        @abstractmethod
        def generate_tokens(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
            """The sequences (B, T) that a batch of contexts grows to."""

        def stock_score_tokens(self, requests: Sequence[Any], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

        def stock_generate_tokens(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
            return super()._model_generate(context, max_length, stop, **options)

        def find_batch_size(self, requests: Sequence[Any], longest: int) -> int:
            """The largest batch of the request at place `longest` that memory holds."""
            return self._detect_batch_size(requests, longest)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None, **_: Any) -> Any:
            return self.score_tokens(requests, disable_tqdm, override_bs)

        def _model_call(self, inps: Any, *_: Any, **__: Any) -> Any:
            return self.logits_of(inps)

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            return self.generate_tokens(context, max_length, stop, **options)

    return StockModel
