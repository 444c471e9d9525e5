"""The method and the policy of docs/add-a-method.md run as they are printed."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from drllm import Policy, Route
from drllm.core.names import METHODS
from drllm.methods.base import Method
from fences import fences

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def page(monkeypatch):
    """The page's code as one module."""
    module = ModuleType("code_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where its dataclass looks up annotations
    for code in fences(PAGE, "python"):
        exec(compile(code, str(PAGE), "exec"), vars(module))
    return module


def test_it_makes_a_method_whose_policy_skips_the_block(page, tmp_path):
    assert isinstance(page.METHOD, Method)
    policy = page.METHOD.fit(SimpleNamespace(n_layers=30), None, page.METHOD.config(block=12), tmp_path)
    assert isinstance(policy, Policy)
    assert policy.route == Route.full(30).edit(12, 0)


def test_its_option_has_a_default_and_words(page):
    assert page.METHOD.config().block == 13
    with pytest.raises(TypeError, match="depth"):
        page.METHOD.config(depth=1)


def test_its_policy_decides_by_prompt_and_comes_back_from_its_files(page, tmp_path):
    saved = page.Short(4, block=2, tokens=3)
    assert saved.save(tmp_path) == ["short.json"]
    assert saved.name == "short"
    policy = page.Short.load(tmp_path)
    mask_BT = torch.tensor([[False, False, True, True], [True, True, True, True]])
    decider = policy.start(mask_BT)
    actions = [decider.decide(block, torch.zeros(2, 4, 8)).tolist() for block in range(4)]
    assert actions == [[1, 1], [1, 1], [0, 1], [1, 1]]


def test_its_package_names_the_method_where_drllm_looks_for_it():
    (text,) = fences(PAGE, "toml")
    project = tomllib.loads(text)["project"]
    assert project["dependencies"] == ["drllm"]
    (module, _, attribute) = project["entry-points"][METHODS]["mine"].partition(":")
    assert (module.rpartition(".")[2], attribute) == ("mine", "METHOD")
    assert "`my_package/mine.py`" in PAGE.read_text(encoding="utf-8")
