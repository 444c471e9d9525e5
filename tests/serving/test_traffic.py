"""Where a codebook decides, by the prompts that its servers have seen."""

import itertools
import json
import random

import families
from books import plain_selector
from drllm import Route, RoutedModel
from drllm.deploy.serving import traffic
from drllm.deploy.serving.launch import decide_where
from drllm.deploy.serving.traffic import Counted, Shared, Traffic, faster_place, read_traffic, traffic_file
from drllm.policies.codebook import Codebook, Point
from drllm.policies.constant import RoutePolicy


def plain_shared(prompts: list[list[int]], size: int) -> list[int]:
    """By comparing every prompt with all before it."""
    found = []
    for place, ids in enumerate(prompts):
        alike = [sum(itertools.accumulate((a == b for a, b in zip(ids, other, strict=False)), min)) for other in prompts[:place]]
        found.append(max(alike, default=0) // size * size)
    return found


def test_what_prompts_share_is_their_longest_common_beginning():
    rng = random.Random(0)
    prompts = [[rng.randrange(2) for _ in range(rng.randrange(1, 20))] for _ in range(60)]
    for size in (1, 3, 16):
        shared = Shared(size)
        assert [shared.count(ids, "11") for ids in prompts] == plain_shared(prompts, size)
    shared = Shared(4)
    assert [shared.count([1] * 9, route) for route in ("11", "12", "11")] == [0, 0, 8], "keys and values are a route's own"


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(traffic, "KEPT", 3)
    shared = Shared(1)
    for token in range(10):
        shared.count([token], "")
    assert len(shared._seen) == 3
    assert [shared.count([token], "") for token in (9, 0)] == [1, 0]


def test_the_place_is_that_of_fewer_passes():
    """By hand: 6 of 30 blocks run twice for what is not shared, a fifth of its passes; in the engine what is shared is run again."""
    short = Traffic(200, 10_000, 1_666, 0)
    assert faster_place(short, 6, 30) == (
        "engine",
        "200 prompts of 50 tokens, 17% shared: before the engine 17% of their passes run twice, in it 17%",
    )
    assert faster_place(Traffic(200, 10_000, 1_667, 0), 6, 30)[0] == "front"
    assert faster_place(Traffic(99, 10_000, 0, 0), 6, 30) == ("front", "99 prompts were counted so far, 100 say which place is faster")
    assert faster_place(Traffic(200, 10_000, 0, 10), 6, 30)[0] == "engine"
    place, why = faster_place(Traffic(200, 600_000, 0, 11), 6, 30)
    assert (place, why.split(": ")[1]) == ("front", "11 have more than 2,048 tokens, which the engine may cut only so")


def test_counts_outlive_a_server_and_add_up(tmp_path):
    path = tmp_path / "deep" / "counts.json"
    for server in range(2):
        counted = Counted(path, 2)
        found = [counted.add([1, 2, 3, server], "11") for _ in range(45)]
        assert [one.prompts for one in found if one.prompts] == [40 * server + 20, 40 * server + 40]
    kept = read_traffic(path)
    assert (kept.prompts, kept.tokens, kept.long) == (80, 320, 0)
    assert kept.shared == 2 * 39 * 4, "all but each server's first prompt; the last 5 of each are not written yet"
    path.write_text("{")
    assert read_traffic(path) == Traffic()
    path.write_text(json.dumps({"prompt": 3}))
    assert read_traffic(path) == Traffic()
    assert read_traffic(tmp_path / "none") == Traffic()


def test_what_auto_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "book"
    routed = RoutedModel.wrap(families.build("llama", vocab_size=300))
    size = 2 * routed.hidden_size
    routes = [Route.full(4), Route.full(4).edit(3, 2)]
    codebook = Codebook(routes, plain_selector(2, size, [0.0]), [Point(0.0)])
    routed.policy = codebook
    routed.save_pretrained(folder)
    place, why = decide_where(codebook, str(folder), 4, [])
    assert (place, why) == ("front", "0 prompts were counted so far, 100 say which place is faster")
    counted = Counted(traffic_file(str(folder)), 16)
    for _ in range(100):
        counted.add([1, 2, 3], "1111")
    assert decide_where(codebook, str(folder), 4, [])[0] == "engine"
    kept = decide_where(codebook, str(folder), 4, ["--enable-prefix-caching"])
    assert kept == ("front", "--vllm-args cut prompts or keep prefixes")
    half = Counted(traffic_file(str(folder)), 2)
    for _ in range(400):
        half.add([1, 2, 3], "1111")
    assert decide_where(codebook, str(folder), 4, [])[0] == "front"
    assert decide_where(codebook, str(folder), 4, ["--no-enable-prefix-caching"])[0] == "engine", "neither place keeps a prefix"
    for policy in (None, RoutePolicy(Route.full(4))):
        assert decide_where(policy, str(folder), 4, []) == ("auto", "")
    assert not traffic_file(str(folder)).is_relative_to(folder), "a policy's folder stays as it was saved"
