"""Log-likelihoods under a policy that runs parts of blocks: plain forwards of whole questions, gates deciding on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drllm.model.partial import PartialPolicy, Step
from drllm.routes import PartialDepth
from drllm.scoring.loglik import LoglikScorer, Question, head_at, log_normalizers
from drllm.scoring.rows import make_batch, split_steps
from drllm.scoring.verdict import Verdict, loglik_verdict


@torch.no_grad()
def score_partial(scorer: LoglikScorer, policy: PartialPolicy, questions: Sequence[Question]) -> tuple[list[Verdict], list[PartialDepth]]:
    """Verdicts, and the passes that a question's tokens came to on average.

    Gates on a prompt read its context alone; gates on tokens read each token, a choice's among them, as published.
    """
    routed = scorer.routed
    verdicts: list[Verdict] = []
    depths: list[PartialDepth] = []
    widest = [len(question.rows) * max(len(row) for row in question.rows) for question in questions]
    for places in split_steps(widest, scorer.max_step_tokens):
        group = [questions[place] for place in places]
        rows = [row for question in group for row in question.rows]
        owner = [place for place, question in enumerate(group) for _ in question.rows]
        batch = make_batch(rows, scorer.packed, routed.model.dtype, routed.device)
        lengths = torch.tensor([len(row) for row in rows], device=routed.device)
        real = torch.arange(batch.input_ids.shape[1], device=routed.device)[None] < lengths[:, None]
        step = Step.of(batch.prompt_mask, real)
        with policy.installed(routed, step), head_at(routed.model, batch.scored):
            logits_NV = routed.model(**batch.inputs, use_cache=False).logits[0]
        chosen_N = logits_NV.gather(1, batch.targets.to(logits_NV.device)[:, None])[:, 0].float() - log_normalizers(logits_NV)
        sums = [[0.0] * len(question.n_chars) for question in group]
        for value, row, choice in zip(chosen_N.double().tolist(), batch.row_of.tolist(), batch.choice_of.tolist(), strict=True):
            sums[owner[row]][choice] += value
        used, n_tokens = [0.0] * len(group), [0] * len(group)
        for row, passes in enumerate(step.used_B.tolist()):
            used[owner[row]] += passes * len(rows[row])
            n_tokens[owner[row]] += len(rows[row])
        verdicts += [loglik_verdict(totals, question, scorer.metric) for totals, question in zip(sums, group, strict=True)]
        depths += [PartialDepth(passes / n) for passes, n in zip(used, n_tokens, strict=True)]
    return verdicts, depths
