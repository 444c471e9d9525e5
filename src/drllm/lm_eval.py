"""`python -m drllm.lm_eval`: the stock command line of lm-evaluation-harness, with `--model drllm` and the offline tasks known to it.

    python -m drllm.lm_eval --model_args pretrained=runs/demo/routers --tasks drllm_arc_easy --batch_size 8

Every option is the harness's own. `--model drllm` is put in where no model is named; the folder of the `drllm_*` tasks is looked through
beside what `--include_path` names.
"""

import importlib.util
import sys

from drllm.cli.main import EXIT_INTERRUPTED, fail
from drllm.cli.terminal import one_line, quiet_other_packages, write_error
from drllm.core.errors import DrllmError


def main() -> int:
    """Run the harness's command line; what drllm refuses is one line and exit code 2, the harness's own errors are as it raises them."""
    if importlib.util.find_spec("lm_eval") is None:
        return fail("lm-evaluation-harness is not installed: pip install '.[eval]' in a clone of drllm")
    quiet_other_packages()
    from drllm.evaluation.harness.lm_eval_private import command_line
    from drllm.evaluation.harness.run import complete

    parser = command_line()
    try:
        arguments = parser.parse_args()
        if arguments.command == "run":
            complete(arguments)
        parser.execute(arguments)
    except DrllmError as error:
        return fail(one_line(error))
    except KeyboardInterrupt:
        write_error("drllm: interrupted; with --use_cache FILE the same command goes on where it was")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
