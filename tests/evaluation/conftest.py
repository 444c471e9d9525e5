"""What lm-evaluation-harness finds out anew in every run, found out once for all runs of these tests."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def harness_reads_itself_once():
    """The harness parses its 14,000 task files and asks the machine for its versions in each run: here once a process.

    Entries are copied, so that no run sees what another changed.
    """
    index = pytest.importorskip("lm_eval.tasks._index")
    from lm_eval.tasks import __path__ as stock
    from torch.utils import collect_env

    build, folder = index.TaskIndex.build, stock[0]
    read = functools.cache(lambda: build([Path(folder)]))

    def merged(paths, *, resolve_includes=True):
        found = {}
        for path in paths:
            entries = read() if str(path) == folder else build([path], resolve_includes=resolve_includes)
            found |= {name: dataclasses.replace(entry, cfg=entry.cfg and dict(entry.cfg)) for name, entry in entries.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.TaskIndex, "build", staticmethod(merged))
        patch.setattr(collect_env, "get_pretty_env_info", functools.cache(collect_env.get_pretty_env_info))
        yield
