"""Old module names, for one version: importing one gives the new module's names and says so in one line.

Methods of other packages (`docs/add-a-method.md`) import some of them. `drllm/__init__.py` installs the finder.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Below drllm: old module -> new ones, the first that has the name wins.
MOVED: dict[str, tuple[str, ...]] = {
    "errors": ("core.errors",),
    "routes": ("core.route",),
    "config": ("core.config", "core.options"),
    "files": ("core.files",),
    "registry": ("core.names",),
    "progress": ("core.progress",),
    "tables": ("core.text", "stats.paired", "runs.summary", "reporting.summary_table"),
    "cards": ("policies.card", "policies.saved_config", "runs.card_facts"),
    "plans": ("runs.manifest",),
    "provenance": ("runs.provenance",),
    "records": ("runs.records",),
    "record_files": ("runs.merge",),
    "record_stats": ("runs.label_stats",),
    "pipeline": ("retrofitting.pipeline", "evaluation.fit"),
    "export": ("deploy.export",),
    "inspecting": ("deploy.inspection",),
    "evaluation.stats": ("stats.paired",),
    "evaluation.gate": ("stats.guarantee",),
    "evaluation.rows": ("runs.summary",),
    "evaluation.names": ("runs.names",),
    "model.policy": ("policies.policy", "policies.constant", "policies.given"),
    "model.routers": ("policies.routers",),
    "model.codebook": ("policies.codebook",),
    "model.oracle": ("policies.oracle",),
    "model.artifact": ("policies.saved", "policies.saved_config"),
    "model.partial": ("methods.rivals.gated_blocks",),
    "model.gates": ("methods.rivals.gates",),
    "methods.training_data": ("methods.training_data", "methods.fitting"),
    "methods.planned": ("methods.checked_records",),
    "methods.knob": ("methods.operating_point",),
    "methods.gains": ("methods.matrix",),
    "methods.controls": ("methods.blind_codebooks",),
    "methods.mindskip": ("methods.rivals.mindskip",),
    "methods.flexidepth": ("methods.rivals.flexidepth",),
    "scoring.deciding": ("scoring.route_prediction",),
    "scoring.rows": ("scoring.packing",),
}
# Names that are called otherwise now: (new module, old name) -> new name.
RENAMED: dict[tuple[str, str], str] = {
    ("core.options", "knob"): "option",
    ("core.config", "GateConfig"): "GuaranteeConfig",
    ("stats.guarantee", "gate"): "find_guarantee",
    ("policies.given", "RowRoutes"): "GivenRoutes",
    ("methods.codebook", "fit_book"): "fit_codebook",
    ("policies.saved_config", "digest"): "policy_digest",
    ("policies.saved_config", "read"): "read_config",
    ("policies.saved_config", "ArtifactConfig"): "SavedConfig",
    ("methods.training_data", "Material"): "TrainingData",
    ("runs.manifest", "search_plans"): "search_manifests",
    ("runs.manifest", "path_plans"): "path_manifests",
    ("runs.manifest", "read_plan"): "read_manifest",
    ("methods.checked_records", "planned_records"): "checked_records",
    ("methods.checked_records", "planned_questions"): "checked_questions",
    ("methods.checked_records", "planned_scorer"): "manifest_scorer",
    ("methods.rivals.gated_blocks", "PartialPolicy"): "GatedPolicy",
}
PREFIX = "drllm."


class _OldNames(MetaPathFinder, Loader):
    """Finds and makes the modules of old names; each looks its names up where they are now."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        known = fullname.startswith(PREFIX) and fullname.removeprefix(PREFIX) in MOVED
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        homes = MOVED[module.__name__.removeprefix(PREFIX)]
        now = " and ".join(PREFIX + home for home in homes)
        warnings.warn(f"{module.__name__} is {now} now; the old name goes with the next version", FutureWarning, stacklevel=2)

        def find(name: str) -> Any:
            for home in homes:
                place = importlib.import_module(PREFIX + home)
                if (wanted := RENAMED.get((home, name), name)) in vars(place):
                    return getattr(place, wanted)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


def install() -> None:
    """Let `import` know the old names; once a process."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
