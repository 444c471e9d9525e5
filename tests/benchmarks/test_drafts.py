"""`benchmarks/drafts.py`: what drafts would save, by hand and on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drllm import Route
from runs import L, model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import drafts


@pytest.mark.parametrize(
    ("hits", "k", "steps"),
    [
        ([True] * 6, 2, 2 * (2 * 0.5 + 1)),  # two drafted and one of the check, twice
        ([False] * 3, 4, 3 * (4 * 0.5 + 1)),  # every draft fails: each check yields its own token
        ([True, False, True, True], 1, 2 * (0.5 + 1)),
    ],
)
def test_steps_that_a_text_takes(hits, k, steps):
    assert drafts.steps_spent(hits, k, 0.5) == steps


def test_the_best_number_of_tokens_to_draft_is_taken():
    assert drafts.bound([[True] * 90], 0.5) == (90 / (10 * (8 * 0.5 + 1)), 8)
    speedup, k = drafts.bound([[False] * 90], 0.5)
    assert (speedup, k) == (1 / 1.5, 1)
    low, high = drafts.interval([[True] * 20, [False] * 20], 0.5)
    assert low < drafts.bound([[True] * 20, [False] * 20], 0.5)[0] < high


def test_the_whole_model_accepts_its_own_text_and_a_draft_what_it_would_say(tmp_path):
    routed, prompts = model(), ["what is 1 and 2?", "so?"]
    texts = drafts.Texts(routed, tmp_path / "drafts.json", 6)
    texts.answers(prompts)
    full, cut = Route.full(L), Route([1] * (L - 1) + [0])
    texts.hits(prompts, [full, cut])
    assert all(all(hits) for hits in texts.of(full, prompts))
    said = routed.generate([[{"role": "user", "content": prompts[0]}]], policy=cut, max_new_tokens=1)[0].token_ids
    assert texts.of(cut, prompts)[0][0] == (said[0] == texts.kept["answers"][prompts[0]][0])
    again = drafts.Texts(routed, tmp_path / "drafts.json", 6)
    assert again.kept == texts.kept
    with pytest.raises(SystemExit, match="another model or length"):
        drafts.Texts(routed, tmp_path / "drafts.json", 7)
