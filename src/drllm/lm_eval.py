"""`python -m drllm.lm_eval`: the stock command line of lm-evaluation-harness, with `--model drllm` and the offline tasks known to it.

    python -m drllm.lm_eval --model_args pretrained=runs/demo/routers --tasks drllm_arc_easy --batch_size 8

Every option is the harness's own. `--model drllm` is put in where no model is named; the folder of the `drllm_*` tasks is looked through
beside what `--include_path` names.
"""

import sys

from drllm.cli.lm_eval import main

if __name__ == "__main__":
    sys.exit(main())
