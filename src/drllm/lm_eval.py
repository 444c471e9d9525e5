"""`python -m drllm.lm_eval`: the stock command line of lm-evaluation-harness, with `--model drllm` and the offline tasks known to it.

    python -m drllm.lm_eval --model_args pretrained=runs/demo/routers --tasks drllm_arc_easy --batch_size 8

Every option is the harness's own. `--model drllm` is put in where no model is named; the folder of the `drllm_*` tasks is looked through
beside what `--include_path` names.
"""

from __future__ import annotations

import importlib.util
import sys

from drllm.core.errors import DrllmError, InputError


def main() -> int:
    """Run the harness's command line; what drllm refuses is one line and exit code 2, the harness's own errors are as it raises them."""
    if importlib.util.find_spec("lm_eval") is None:
        return _fail(InputError("lm-evaluation-harness is not installed: pip install '.[eval]' in a clone of drllm"))
    from drllm.evaluation.harness.lm_eval_private import command_line
    from drllm.evaluation.harness.run import complete

    parser = command_line()
    try:
        arguments = parser.parse_args()
        if arguments.command == "run":
            complete(arguments)
        parser.execute(arguments)
    except DrllmError as error:
        return _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("drllm: interrupted; with --use_cache FILE the same command goes on where it was\n")
        return 130
    return 0


def _fail(error: DrllmError) -> int:
    sys.stderr.write(f"drllm: error: {' '.join(str(error).split())}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
