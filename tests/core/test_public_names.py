"""The public names are a contract."""

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path

import pytest

import drllm

CONTRACT = (
    "Action",
    "Route",
    "RoutedModel",
    "SearchConfig",
    "RoutersConfig",
    "UnsupportedModelError",
    "search",
    "train",
    "evaluate",
    "report",
)


def test_every_public_name_is_there_after_importing_every_module():
    """A submodule named like a public function would overwrite it on import."""
    for module in pkgutil.walk_packages(drllm.__path__, "drllm."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # the plugin, where vLLM is not
            if not module.name.startswith("drllm.deploy.serving.engine.") or error.name not in ("vllm", "fastapi", "prometheus_client"):
                raise
    for name in (*CONTRACT, *drllm.__all__):
        assert callable(getattr(drllm, name)), name
    assert set(CONTRACT) <= set(drllm.__all__) <= set(dir(drllm))
    assert issubclass(drllm.InputError, drllm.DrllmError)
    assert issubclass(drllm.InputError, ValueError)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = drllm.nonsense


def test_type_checkers_and_the_loader_know_the_same_names():
    tree = ast.parse(Path(drllm.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    known = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert known == drllm._HOMES
    assert sorted(known) == drllm.__all__


@pytest.mark.slow
def test_pyright_finds_every_public_name(tmp_path: Path):
    pyright = pytest.importorskip("pyright", reason="needs pyright")
    (tmp_path / "user.py").write_text(
        f"from drllm import {', '.join(drllm.__all__)}\nfound: int = Route.full(4).n_passes\nwrong: str = SearchConfig().limit\n"
    )
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{Path(drllm.__file__).parents[1]}"]}}')
    done = pyright.run("-p", str(tmp_path), "--pythonpath", sys.executable, "--outputjson", capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [one["rule"] for one in found] == ["reportAssignmentType"], found


def test_signatures_of_the_contract():
    wrap = inspect.signature(drllm.RoutedModel.wrap).parameters
    assert list(wrap) == ["model_or_id", "tokenizer", "dtype", "device"]
    call = list(inspect.signature(drllm.RoutedModel.__call__).parameters)
    assert call[:6] == ["self", "input_ids", "attention_mask", "position_ids", "prompt_mask", "routes"]
    generate = inspect.signature(drllm.RoutedModel.generate).parameters
    assert {"prompts", "input_ids", "attention_mask", "policy", "max_new_tokens"} <= set(generate)
    assert {"tasks", "config", "out"} <= set(inspect.signature(drllm.search).parameters)
    for name in ("unwrap", "policy", "save_pretrained", "from_pretrained"):
        assert hasattr(drllm.RoutedModel, name)
