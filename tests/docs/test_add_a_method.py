"""The method of docs/add-a-method.md runs as it is printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from drllm import Policy, Route
from drllm.methods.base import Method

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def mine(monkeypatch):
    """The page's code as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    module = ModuleType("mine_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where its dataclass looks up annotations
    exec(compile(code, str(PAGE), "exec"), vars(module))
    return module


@pytest.mark.filterwarnings("error")
def test_it_makes_a_method_whose_policy_skips_the_block(mine, tmp_path):
    assert isinstance(mine.METHOD, Method)
    policy = mine.METHOD.fit(SimpleNamespace(n_layers=30), None, mine.METHOD.config(block=12), tmp_path)
    assert isinstance(policy, Policy)
    assert policy.route == Route.full(30).edit(12, 0)


def test_its_option_has_a_default_and_words(mine):
    assert mine.METHOD.config().block == 13
    with pytest.raises(TypeError, match="depth"):
        mine.METHOD.config(depth=1)
