"""What a search costs is foretold for every way to judge an answer."""

import pytest

from drllm.core.config import SearchConfig
from drllm.core.route import Route
from drllm.scoring.generated import NEW_TOKENS
from drllm.searching.cost import PATH_COST, stages_of
from drllm.tasks import Example, LoadedTask, get_task
from drllm.tasks.wording import WORDINGS


def test_every_reward_has_a_cost():
    generated = {*NEW_TOKENS, *WORDINGS["ours"].new_tokens}
    assert set(PATH_COST) == {"loglik", *generated}
    assert all(PATH_COST[reward] > PATH_COST["loglik"] for reward in generated), "decoding comes on top"


@pytest.mark.parametrize(("reward", "decoded"), [("loglik", 0.0), ("letter", 0.15)])
def test_a_list_shares_its_prompts_and_decodes_each_answer(reward, decoded):
    """By hand, 4 blocks: the base runs 4; 1110 is a part of that; 1101 runs block 3 anew. 5 of 4 blocks, and three answers."""
    rows = [Example(f"q{n}", f"{n}?", ("no", "yes"), 0, "arc_easy") for n in range(10)]
    loaded = LoadedTask(get_task("arc_easy"), "nowhere", {"fit": rows, "tune": rows[:3], "calibrate": [], "test": []}, {})
    routes = [Route.parse("1110"), Route.parse("1101")]
    found = stages_of({"arc_easy": loaded}, SearchConfig(reward=reward, splits=("fit", "tune"), limit=8), 4, routes)
    each = 1.25 + 3 * decoded
    assert found == {f"arc_easy: fit 8, tune 3 questions, 2 routes, {each:.1f} a question": pytest.approx(11 * each)}
