"""Importing this imports every method, drllm's and installed packages', and with it the class of whatever policy it trains."""

import importlib

from drllm.core.errors import InputError
from drllm.methods.base import get_method, method_names

BROKEN: dict[str, str] = {}  # methods of other packages that cannot be loaded, and why

for _name in method_names():
    try:
        _method = get_method(_name)
        if _method.policy_module:
            importlib.import_module(_method.policy_module)
    except (InputError, ImportError) as error:
        BROKEN[_name] = str(error)
