"""A mergekit recipe: the slices of the base, in the order of the path, by which `mergekit-yaml` makes the checkpoint of a route.

mergekit copies tensors and sets the number of blocks; nothing else of the configuration follows the path. The checkpoint that it makes is
written once beside the recipe, run against the routed model, and deleted again.
"""

import tempfile
from pathlib import Path

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.files import write_text
from drllm.core.route import Route
from drllm.core.text import type_name
from drllm.deploy.formats.checkpoint import load_written, write_weights
from drllm.deploy.formats.folder import (
    Exported,
    end_of_card,
    finish,
    heading,
    in_another_order,
    made_by,
    made_of,
    new_folder,
    slices,
    title,
)
from drllm.model.equal_logits import difference_from
from drllm.model.load import hub_or_folder
from drllm.model.routed import RoutedModel
from drllm.model.shortened import path_config

CANNOT = "cannot express this route as a mergekit recipe"
RECIPE_FILE = "mergekit.yaml"


def write_recipe(routed: RoutedModel, route: Route, folder: Path) -> Exported:
    """mergekit.yaml and README; see `drllm.deploy.export.export`.

    Raises:
        InputError: mergekit cannot load the base: a GGUF file, or a model in memory.
        UnsupportedModelError: a list of the configuration would have to follow the path.
    """
    base = hub_or_folder(routed.base_id)
    if base is None:
        raise InputError(
            f"mergekit cannot load the base {title(routed)!r}: give a Hub id or a folder with safetensors, or export a checkpoint"
        )
    if "@" in base:
        raise InputError(f"mergekit takes what follows the @ in {base!r} for a revision: move the base to a folder without one")
    _refuse_lists(routed, route)
    with new_folder(folder) as place:
        write_text(place / RECIPE_FILE, recipe(routed, route, base))
        with tempfile.TemporaryDirectory(dir=place) as beside:
            write_weights(routed, route, Path(beside))
            difference, n_checked = difference_from(routed, route, load_written(routed, Path(beside), CANNOT), CANNOT)
        done = Exported(folder, str(route), route.n_passes, 0, 0, difference, n_checked, "mergekit")
        finish(place, routed, done, _readme(routed, route, done))
    return done


def _refuse_lists(routed: RoutedModel, route: Route) -> None:
    old = vars(routed.config)
    new = vars(path_config(routed.model, route).get_text_config(decoder=True))
    count = routed.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    changed = [name for name, value in new.items() if isinstance(value, list | tuple | int) and value != old.get(name) and name != count]
    if changed:
        what = f"its configuration says by {changed[0]} which block is which, and mergekit changes the number of blocks alone"
        raise UnsupportedModelError(f"model_type {routed.config.model_type!r} {CANNOT}: {what}; export a checkpoint instead")


def recipe(routed: RoutedModel, route: Route, base: str) -> str:
    """The recipe as YAML: slices with the end exclusive."""
    model = f"{base}@{routed.revision}" if routed.revision else base
    sources = "".join(f"  - sources:\n      - model: {model}\n        layer_range: [{start}, {end}]\n" for start, end in slices(route))
    dtype = type_name(routed.model.dtype)
    return f"# route {route}; mergekit-yaml {RECIPE_FILE} OUT\nslices:\n{sources}merge_method: passthrough\ndtype: {dtype}\n"


def _readme(routed: RoutedModel, route: Route, done: Exported) -> str:
    """What the recipe is, for whoever finds it."""
    head = heading(routed, route, "mergekit", "on one route of blocks: a mergekit recipe")
    return (
        f"{head}{in_another_order(routed, route, done)}; nothing is trained.\n\n"
        f"```\npip install mergekit\nmergekit-yaml {RECIPE_FILE} OUT\n```\n\n"
        f"{made_of(routed, route)}{made_by(routed, route, done)}{end_of_card(routed, done)}"
    )
