"""What a search costs is foretold for every way to judge an answer."""

from drllm.scoring.generated import DEFAULT_NEW_TOKENS
from drllm.searching.cost import PATH_COST


def test_every_reward_has_a_cost():
    assert set(PATH_COST) == {"loglik", *DEFAULT_NEW_TOKENS}
    assert all(PATH_COST[reward] > PATH_COST["loglik"] for reward in DEFAULT_NEW_TOKENS), "decoding comes on top"
