"""List the methods that train a policy, and where each is from.

example:
  drllm methods
"""

import textwrap

from drllm.cli.job import Job, Lines
from drllm.methods.base import get_method, method_names


def run(job: Job) -> Lines:
    for name in method_names():
        method = get_method(name)
        yield f"{name:16} {method.about}"
        yield textwrap.indent(f"{method.paper}; drllm train --method {name}", " " * 17)
