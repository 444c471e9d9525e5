"""The research package is a package of its own: it plugs in through entry points, and drllm does without it."""

import importlib
import importlib.metadata
import pkgutil

import pytest

import drllm_research
from drllm.cli.main import main
from drllm.core.names import COMMANDS, METHODS, POLICIES, load_plugin, plugin_names
from drllm.methods.base import Method
from drllm.policies.policy import Policy
from drllm_research.rivals.evaluator import EVALUATORS

MODULES = [found.name for found in pkgutil.walk_packages(drllm_research.__path__, "drllm_research.")]


def test_it_is_installed():
    assert set(plugin_names(POLICIES)) >= {*EVALUATORS}, "run `make install`, or `pip install -e research`"
    assert not any(issubclass(load_plugin(POLICIES, name), Policy) for name in EVALUATORS)
    assert all(isinstance(load_plugin(METHODS, name), Method) for name in plugin_names(METHODS))
    assert "reproduce" in plugin_names(COMMANDS)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("words", [["reproduce", "table3"], ["reproduce", "--help"]])
def test_without_it_the_command_says_how_to_get_it(words, monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == "drllm: error: `drllm reproduce` is in the research package: run `pip install -e research` in a checkout of drllm\n"
    assert main(["--help"]) == 0
    assert "reproduce" not in capsys.readouterr().out
