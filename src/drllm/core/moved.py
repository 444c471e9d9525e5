"""Old module names, for one version: importing one gives the new module's names and says so in one line.

Methods of other packages (`docs/add-a-method.md`) import them. `drllm/__init__.py` installs them.
"""

import functools
import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Below drllm: old module -> new ones, the first that has the name wins. What methods of other packages imported.
MOVED: dict[str, tuple[str, ...]] = {
    "config": ("core.config", "core.options"),
    "errors": ("core.errors",),
    "files": ("core.files",),
    "methods.gains": ("methods.matrix",),
    "methods.knob": ("methods.operating_point",),
    "methods.material": ("methods.training_data",),
    "methods.planned": ("methods.checked_records",),
    "model.codebook": ("policies.codebook",),
    "model.oracle": ("policies.oracle",),
    "model.policy": ("policies.policy", "policies.constant", "policies.given"),
    "model.routers": ("policies.routers",),
    "plans": ("runs.manifest",),
    "progress": ("core.progress",),
    "records": ("runs.records",),
    "routes": ("core.route",),
    "scoring.deciding": ("scoring.route_prediction",),
}
# Names that are called otherwise now: (new module, old name) -> new name.
RENAMED: dict[tuple[str, str], str] = {
    ("core.config", "GateConfig"): "GuaranteeConfig",
    ("core.options", "knob"): "option",
    ("methods.checked_records", "planned_questions"): "checked_questions",
    ("methods.checked_records", "planned_records"): "checked_records",
    ("methods.checked_records", "planned_scorer"): "manifest_scorer",
    ("methods.training_data", "Material"): "TrainingData",
    ("policies.given", "RowRoutes"): "GivenRoutes",
    ("runs.manifest", "path_plans"): "path_manifests",
    ("runs.manifest", "read_plan"): "read_manifest",
    ("runs.manifest", "search_plans"): "search_manifests",
}
PREFIX = "drllm."


def install() -> None:
    """Let `import` know the old names, as attributes of their packages too."""
    for old in MOVED:
        parent, _, child = (PREFIX + old).rpartition(".")
        module = sys.modules.setdefault(PREFIX + old, ModuleType(PREFIX + old))
        module.__spec__ = ModuleSpec(PREFIX + old, None)
        module.__getattr__ = functools.partial(_find, old)  # type: ignore[method-assign]
        setattr(importlib.import_module(parent), child, module)


def _find(old: str, name: str) -> Any:
    """The new object of an old name, with a warning; silent on any other name, since `pickle` asks every module for whatever it meets."""
    for home in () if name.startswith("__") else MOVED[old]:  # what `inspect` and others ask of every module
        place = importlib.import_module(PREFIX + home)
        wanted = RENAMED.get((home, name), name)
        if wanted in vars(place) and not _is_of_others(vars(place)[wanted], wanted):
            now = " and ".join(PREFIX + each for each in MOVED[old])
            warnings.warn(f"{PREFIX}{old} is {now} now; the old name goes with the next version", FutureWarning, stacklevel=2)
            return getattr(place, wanted)
    raise AttributeError(f"module {PREFIX + old!r} has no attribute {name!r}")


def _is_of_others(value: Any, name: str) -> bool:
    """Whether a module only imports this, from another package: torch's compiler pickles and so asks every module for `torch`."""
    if isinstance(value, ModuleType) or name in ("annotations", "TYPE_CHECKING"):
        return True
    return getattr(value, "__name__", None) == name and not (getattr(value, "__module__", None) or PREFIX).startswith(PREFIX)
