"""A method as `docs/add-a-method.md` of version 0.1 taught it, in a package of its own, still trains and answers."""

from __future__ import annotations

import json
import sys
import warnings

import pytest

from drllm import RoutedModel, search, train
from drllm.cli.main import main
from drllm.methods import base
from runs import SEARCH, TASK, L, model, questions, write_rows

pytestmark = pytest.mark.long

PAGE = '''
from dataclasses import dataclass

from drllm import Route
from drllm.config import knob
from drllm.methods.base import Method


@dataclass(frozen=True)
class MineConfig:
    """Skip one block."""

    block: int = knob(1, "the block to skip")


def fit(routed, material, config, folder):
    from drllm.model.policy import RoutePolicy

    assert material.tasks and material.fit_records and material.prompts
    verdicts, margins = material.score([Route.full(routed.n_layers)])
    assert len(verdicts) == len(margins) == len(material.prompts)
    assert material.tune(2) and material.prompt_format == "raw"
    assert material.constant(Route.full(routed.n_layers)).route.is_full
    return RoutePolicy(Route.full(routed.n_layers).edit(config.block, 0))


METHOD = Method("mine", "one block skipped; one route", "nobody's", MineConfig, fit)
'''


def test_it_trains_with_its_options_and_generates(tmp_path, monkeypatch, capsys):
    (tmp_path / "old_mine.py").write_text(PAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(base.BUILT_IN, "mine", "old_mine:METHOD")
    routed = model()
    run = search(routed, [TASK], SEARCH, tmp_path / "run", write_rows(tmp_path / "sums.jsonl", questions(20)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # says what `knob` is called now
        config = base.get_method("mine").config(block=2)
        routed.policy = train(routed, run, config)
        routed.save_pretrained(run / "mine")
        assert main(["train", "--method", "mine", "--help"]) == 0
    assert "--block" in capsys.readouterr().out
    loaded = RoutedModel.from_pretrained(run / "mine", base=routed).policy
    assert loaded is not None
    assert str(loaded.route) == "1" * 2 + "0" + "1" * (L - 3)
    assert json.loads((run / "mine" / "drllm_config.json").read_text())["policy"] == "static"
    sys.modules.pop("old_mine")
