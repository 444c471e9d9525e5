"""`research/drllm_research/studies/drafts.py`: what drafts would save, by hand and on a tiny model."""

from __future__ import annotations

import pytest

from drllm import Route
from drllm_research.studies import drafts
from runs import L, model

SURE = [99] * 6


@pytest.mark.parametrize(
    ("hits", "surely", "k", "t", "steps"),
    [
        ([True] * 6, SURE, 2, 0, 2 * (2 * 0.5 + 1)),  # two drafted and one of the check, twice
        ([False] * 3, SURE[:3], 4, 0, (3 * 0.5 + 1) + (2 * 0.5 + 1) + (0.5 + 1)),  # each check yields its own token; none behind the end
        ([True, False, True, True], SURE[:4], 1, 0, 2 * (0.5 + 1)),
        ([True, False, True, True], [99, 20, 99, 99], 8, 50, (2 * 0.5 + 1) + (2 * 0.5 + 1)),  # nothing is drafted behind the second
    ],
)
def test_steps_that_a_text_takes(hits, surely, k, t, steps):
    assert drafts.steps_spent(hits, surely, 0.5, k, t) == steps


def test_the_best_setting_of_a_rule_is_taken():
    yes, no = ([True] * 90, [99] * 90), ([False] * 90, [10] * 90)
    assert drafts.bound([yes], 0.5, "length") == (90 / (10 * (8 * 0.5 + 1)), 8)
    assert drafts.bound([no], 0.5, "length") == (1 / 1.5, 1)
    assert drafts.bound([no], 0.5, "confidence")[0] == 1 / 1.5, "a token that is not sure is drafted, and none behind it"
    assert drafts.bound([yes], 0.5, "limit")[0] == 90 / (45 + 1)
    assert drafts.bound([no], 0.5, "limit")[0] == 1
    low, high = drafts.interval([yes, no], 0.5, "length")
    assert low < drafts.bound([yes, no], 0.5, "length")[0] < high


def test_the_whole_model_accepts_its_own_text_and_a_draft_what_it_would_say(tmp_path):
    routed, prompts = model(), ["what is 1 and 2?", "so?"]
    texts = drafts.Texts(routed, tmp_path / "drafts.json", 6)
    texts.answers(prompts)
    full, cut = Route.full(L), Route([1] * (L - 1) + [0])
    texts.hits(prompts, [full, cut])
    assert all(all(hits) for hits, _ in texts.of(full, prompts))
    said = routed.generate([[{"role": "user", "content": prompts[0]}]], policy=cut, max_new_tokens=1)[0].token_ids
    assert texts.of(cut, prompts)[0][0][0] == (said[0] == texts.kept["answers"][prompts[0]][0])
    again = drafts.Texts(routed, tmp_path / "drafts.json", 6)
    assert again.kept == texts.kept
    with pytest.raises(SystemExit, match="another model or length"):
        drafts.Texts(routed, tmp_path / "drafts.json", 7)
