"""Re-verification asks what it says it asks: in float32 for a 16-bit model, and with the options in another order."""

from __future__ import annotations

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel, SearchConfig
from drllm.scoring.loglik import LoglikScorer
from drllm.searching.worker import Verifier
from drllm.tasks import get_task, load_task
from rote import by_rote, rote_example

L = families.N_BLOCKS
ARC = get_task("arc_easy")
FULL, OTHER = Route.full(L), Route.parse("1201")


def half() -> RoutedModel:
    return RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512).bfloat16(), byte_tokenizer())


def test_a_model_that_always_says_a_is_right_where_the_answer_stands_first():
    """Whatever is asked, it answers "A.": so each rotation's verdict says where the right option stood."""
    config = SearchConfig(reward="letter", max_new_tokens=3)
    for answer in range(4):
        checks = Verifier(by_rote(), ARC, config).checks(rote_example("1", answer), [FULL])
        found = {check.check: check.correct for check in checks}
        wanted = {"fp32": answer == 0} | {f"rotated:{by}": answer == by for by in (1, 2, 3)}
        assert found == wanted


def test_checks_of_a_16_bit_model_are_computed_in_float32(data):
    """Their margins are those of a float32 model scored without the verifier, and not those that bfloat16 gives."""
    examples = load_task("arc_easy", data).examples["fit"][:6]
    verifier = Verifier(half(), ARC, SearchConfig())
    whole = RoutedModel.wrap(half().unwrap().float(), byte_tokenizer())
    scorers = {name: LoglikScorer(routed, 1) for name, routed in (("fp32", whole), ("bf16", half()))}
    unlike = 0
    for example in examples:
        margins = {}
        for name, scorer in scorers.items():
            scorer.load([scorer.question(ARC, example)])
            margins[name] = [verdict.margin_acc for verdict in scorer.score([(0, FULL), (0, OTHER)])]
        checks = verifier.checks(example, [FULL, OTHER])
        assert [check.margin for check in checks if check.check == "fp32:acc"] == margins["fp32"]
        unlike += margins["bf16"] != margins["fp32"]
    assert unlike == len(examples)
